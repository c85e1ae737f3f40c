"""Confirms a finished search: measures its front on examples that the search never used."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...evaluators.base import Direction, Split
from ...evaluators.patches.kept_patches import KeptPatchesEvaluator, drawn_layers
from ..baselines.random_twin import random_twin
from ..guide.wide_gaps import policies_in_gaps
from ..space.guide_metrics import QUALITY
from ..study.expected_results import MAX_CONFIRMED, baseline_front
from ..study.study import SearchStudy, VisitKey
from ..trial.pareto import evenly_spaced, front_trials
from ..trial.trial_result import TrialResult
from ..workers.prefix_affinity import layer_keys
from ..workers.ray_pool import Pool
from ..workers.time_limits import TimeLimits
from ..workers.worker import Job
from .phases import CONFIRMING, DRAWING, RANDOMISING, TRANSFERRING

if TYPE_CHECKING:
    from .progress import Progress

MAX_RANDOM = 6  # policies of the front that are compared with their random twins, at most


def trials_to_confirm(study: SearchStudy) -> list[TrialResult]:
    """The dense trial, the front, policies in its wide gaps, and up to `MAX_CONFIRMED` of the front of the baselines.

    Beside them, the policies of the front that trained ones change, with their trained weights and without.
    """
    results, outcomes, objectives = study.final_results(), study.outcomes(), study.space.objectives
    baselines = baseline_front(results, objectives, lambda result: study.violations(result.search))
    front = front_trials(outcomes, objectives)
    trained = [result for result in outcomes if result.number in front and result.policy.weights is not None]
    searched = front_trials(results, objectives)
    chosen = {results[0].number, *front, *searched, *policies_in_gaps(results, searched, objectives, study.guide)}
    chosen |= {result.number for result in evenly_spaced(baselines, MAX_CONFIRMED)}
    return [*(result for result in results if result.number in chosen), *trained]


def dense_and_front(study: SearchStudy) -> list[TrialResult]:
    """The dense trial and the front, trained policies with their trained weights."""
    results = study.outcomes()
    chosen = {results[0].number, *front_trials(results, study.space.objectives)}
    return [result for result in results if result.number in chosen]


def random_twins(results: Sequence[TrialResult], objectives: Mapping[str, Direction]) -> list[TrialResult]:
    """The front's policies with token ratios, each with the policy of its random twin in place of its own."""
    front = {*front_trials(results, objectives)}
    twins = [(result, random_twin(result.policy)) for result in results if result.number in front]
    found = [replace(result, policy=twin) for result, twin in twins if twin is not None]
    return evenly_spaced(found, MAX_RANDOM)


def trials_to_draw(study: SearchStudy) -> list[TrialResult]:
    """The dense trial, which has the pictures, and the front's policies with token ratios; none without those."""
    dense, *front = dense_and_front(study)
    drawn = [result for result in front if drawn_layers(result.policy, study.num_layers)]
    return [dense, *drawn] if drawn else []


@dataclass(frozen=True)
class Visit:
    """A further measurement of policies, once a search has ended.

    Attributes:
        key: What the study stores it under.
        split: The examples.
        phase: What the progress calls it.
    """

    key: VisitKey
    split: Split
    phase: str


REPORT = Visit("report", "report", CONFIRMING)
RANDOM = Visit("random", "report", RANDOMISING)
TRANSFER = Visit("transfer", "transfer", TRANSFERRING)
PATCHES = Visit("patches", "search", DRAWING)


def further_visits(
    study: SearchStudy, evaluators: Sequence[str]
) -> list[tuple[Visit, Sequence[str], list[TrialResult]]]:
    """What is measured of which policies, by which evaluators, once the front is confirmed; no choice depends on it.

    Args:
        study: The study.
        evaluators: The evaluators that have a report split.
    """
    visits: list[tuple[Visit, Sequence[str], list[TrialResult]]] = []
    twins = random_twins(study.outcomes(), study.space.objectives)
    if twins:
        visits.append((RANDOM, evaluators, twins))
    if study.space.has_transfer:
        visits.append((TRANSFER, [QUALITY], dense_and_front(study)))
    return [*visits, (PATCHES, [KeptPatchesEvaluator.name], trials_to_draw(study))]


def confirm(
    study: SearchStudy,
    pool: Pool,
    progress: "Progress",
    limits: TimeLimits,
    results: Sequence[TrialResult],
    evaluators: Sequence[str],
    ends: float,
    visit: Visit = REPORT,
) -> bool:
    """Measure trials on the report split, or what else is measured once a search has ended.

    Args:
        study: Where the results go.
        pool: The workers.
        progress: Shows the progress.
        limits: How long a policy may take.
        results: The trials; those that are measured already are left out.
        evaluators: The evaluators that measure them.
        ends: When to stop, on the monotonic clock.
        visit: What is measured.

    Returns:
        False where time was up before all were measured.
    """
    unconfirmed = [result for result in results if not study.is_confirmed(result.policy, visit.key)]
    # Dense goes first, since its duration sets the time limit of the others. Those follow in the order of their first
    # layers, so that a worker's cached prefix serves the next policy.
    order = sorted(unconfirmed, key=lambda one: (not one.policy.is_dense, layer_keys(one.policy, study.num_layers)))
    waiting = deque(order)
    if waiting and time.monotonic() < ends:
        pool.start_workers()
    progress.phase(visit.phase, len(waiting) if evaluators else 0)
    while evaluators and (waiting or pool.busy) and time.monotonic() < ends:
        while waiting and pool.has_idle:
            result = waiting.popleft()
            limit = limits.of(visit.split, result.policy)
            pool.submit(Job(result.policy, evaluators, split=visit.split, tag=result, seconds=limit))
        finished = pool.next(ends)
        if finished is None:
            continue
        job, outcome = finished
        if job.policy.is_dense and visit.split != "search":
            limits.learn(visit.split, outcome)
        if outcome.failure:
            progress.note(f"trial {job.tag.number} failed in {visit.phase}: {outcome.failure}")
        else:
            study.confirm(job.policy.fingerprint, outcome.measurements, visit.key)
        progress.advance()
    if evaluators and (waiting or pool.busy):
        left = len(waiting) + pool.busy
        progress.note(f"time is up with {left} policies left in {visit.phase}; `--resume` with more time measures them")
        return False
    return True
