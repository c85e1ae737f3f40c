"""Confirms a finished search: measures its front on examples that the search never used."""

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..study.expected_results import MAX_CONFIRMED, baseline_front
from ..study.study import SearchStudy
from ..trial.pareto import evenly_spaced, front_trials
from ..trial.trial_result import TrialResult
from ..workers.prefix_affinity import layer_keys
from ..workers.ray_pool import Pool
from ..workers.time_limits import TimeLimits
from ..workers.worker import Job
from .phases import CONFIRMING

if TYPE_CHECKING:
    from .progress import Progress


def trials_to_confirm(study: SearchStudy) -> list[TrialResult]:
    """The dense trial, the front, and up to `MAX_CONFIRMED` trials of the front of the baselines."""
    results, objectives = study.final_results(), study.space.objectives
    baselines = baseline_front(results, objectives, lambda result: study.violations(result.search))
    chosen = {results[0].number, *front_trials(results, objectives)}
    chosen |= {result.number for result in evenly_spaced(baselines, MAX_CONFIRMED)}
    return [result for result in results if result.number in chosen]


def confirm(
    study: SearchStudy,
    pool: Pool,
    progress: "Progress",
    limits: TimeLimits,
    results: Sequence[TrialResult],
    evaluators: Sequence[str],
    ends: float,
) -> bool:
    """Measure trials on the report split.

    Args:
        study: Where the results go.
        pool: The workers.
        progress: Shows the progress.
        limits: How long a policy may take.
        results: The trials; those that are confirmed already are left out.
        evaluators: The evaluators that have a report split.
        ends: When to stop, on the monotonic clock.

    Returns:
        False where time was up before all were measured.
    """
    unconfirmed = [result for result in results if not study.is_confirmed(result.policy)]
    # Dense goes first, since its duration sets the time limit of the others. Those follow in the order of their first
    # layers, so that a worker's cached prefix serves the next policy.
    order = sorted(unconfirmed, key=lambda one: (not one.policy.is_dense, layer_keys(one.policy, study.num_layers)))
    waiting = deque(order)
    if waiting and time.monotonic() < ends:
        pool.start_workers()
    progress.phase(CONFIRMING, len(waiting) if evaluators else 0)
    while evaluators and (waiting or pool.busy) and time.monotonic() < ends:
        while waiting and pool.has_idle:
            result = waiting.popleft()
            limit = limits.of("report", result.policy)
            pool.submit(Job(result.policy, evaluators, split="report", tag=result, seconds=limit))
        finished = pool.next(ends)
        if finished is None:
            continue
        job, outcome = finished
        if job.policy.is_dense:
            limits.learn("report", outcome)
        if outcome.failure:
            progress.note(f"trial {job.tag.number} could not be confirmed: {outcome.failure}")
        else:
            study.confirm(job.policy.fingerprint, outcome.measurements)
        progress.advance()
    if evaluators and (waiting or pool.busy):
        left = len(waiting) + pool.busy
        progress.note(f"time is up with {left} policies to confirm; `--resume` with more time confirms them")
        return False
    return True
