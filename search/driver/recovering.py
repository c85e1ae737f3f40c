"""Trains the best policies of a search once it has ended, and measures them again."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...evaluators.base import Direction, evaluator_class
from ..places import POLICIES
from ..space.search_settings import Recover
from ..study.study import SearchStudy
from ..trial.hypervolume import minimised
from ..trial.outcome import Outcome
from ..trial.pareto import evenly_spaced, front_trials, objective_point
from ..trial.recovery_attributes import (
    TRAININGS,
    folder_name,
    is_kept,
    read_weights,
    recovery_attribute,
    recovery_key,
    settings_digests,
)
from ..trial.trial_result import TrialResult
from ..workers.ray_pool import Pool
from ..workers.worker import Job
from .phases import RECOVERING

if TYPE_CHECKING:
    from .progress import Progress


class Recovering:
    """The trainings of a search.

    Args:
        study: Where their results go.
        pool: The workers.
        progress: Shows the progress.
        settings: `search.recover` of the space.
    """

    def __init__(self, study: SearchStudy, pool: Pool, progress: "Progress", settings: Recover) -> None:
        self._study, self._pool, self._progress, self._settings = study, pool, progress, settings
        self._digests = settings_digests(settings)

    def begin(self) -> None:
        """Time a training step of dense, once for the settings: a mistake in them shows before the search.

        Raises:
            SkipsearchError: the model cannot be trained, or the training data has mistakes.
        """
        digests = [*self._digests.values()]
        if self._study.study.user_attrs.get(TRAININGS, {}).get("digests") == digests:
            return
        self._progress.note("timing a step of the trainings that follow the search")
        seconds = self._pool.step_seconds(self._study.folder.resolve())
        kept = {"digests": digests, "step_seconds": seconds, "settings": self._settings.model_dump(mode="json")}
        self._study.study.set_user_attr(TRAININGS, kept)

    def recover(self, ends: float) -> None:
        """Train the candidates, and in further rounds the better half of them, and store what was measured.

        Args:
            ends: When to stop, on the monotonic clock; a training that runs then goes on from its checkpoint when the
                search is resumed.
        """
        candidates = find_candidates(self._study, self._settings.top)
        for steps in self._digests:
            if not self._train(candidates, steps, ends):
                return
            candidates = find_survivors(self._study, candidates)

    def _train(self, candidates: Sequence[TrialResult], steps: int, ends: float) -> bool:
        """Train policies for so many steps, those that were not; False where time was up before all were trained."""
        attrs, names = self._study.study.user_attrs, measured_again(self._study)
        waiting = deque(one for one in candidates if recovery_key(self._digests[steps], one.policy) not in attrs)
        later = sum(count for longer, count in self._settings.rounds(len(candidates)) if longer > steps)
        self._progress.phase(RECOVERING)
        self._progress.expect_more(RECOVERING, len(waiting) + later)
        if waiting and time.monotonic() < ends:
            self._pool.start_workers()
        while (waiting or self._pool.busy) and time.monotonic() < ends:
            while waiting and self._pool.has_idle:
                self._submit(waiting.popleft(), names, steps)
            finished = self._pool.next(ends)
            if finished is not None:
                self._finish(*finished)
        if left := len(waiting) + self._pool.busy:
            self._pool.stop_workers()
            text = f"time is up with {left} policies left in {RECOVERING}; `--resume` with more time trains them"
            self._progress.note(text)
        return not left

    def _submit(self, result: TrialResult, names: Sequence[str], steps: int) -> None:
        folder = self._study.folder.resolve() / POLICIES / folder_name(result, self._digests[steps])
        folder.mkdir(parents=True, exist_ok=True)
        self._pool.submit(Job(result.policy, names, recover_to=folder, steps=steps, tag=result))

    def _finish(self, job: Job, outcome: Outcome) -> None:
        """Store the result of a training, or leave one that the machine could not do to a resumed search."""
        result: TrialResult = job.tag
        self._progress.advance(RECOVERING)
        if outcome.fault == "machine":
            text = f"trial {result.number} was not trained and is left to `--resume`: {outcome.failure}"
            self._progress.note(text)
            return
        if outcome.failure:
            self._progress.note(f"trial {result.number} failed in {RECOVERING}: {outcome.failure}")
        weights = None if outcome.failure or job.recover_to is None else read_weights(job.recover_to)
        key = recovery_key(self._digests[job.steps], result.policy)
        self._study.study.set_user_attr(key, recovery_attribute(outcome, weights, job.steps))


def measured_again(study: SearchStudy) -> list[str]:
    """The evaluators that measure a trained policy: all but those of times, which trained weights do not change."""
    return [name for name in study.space.evaluate if not all(map(is_kept, evaluator_class(name).metrics))]


def find_candidates(study: SearchStudy, top: int) -> list[TrialResult]:
    """The policies to train: those of the front, most expensive first, then those nearest to it.

    Of a front with more policies than are to be trained, they are evenly spaced over it. A policy that violates a
    constraint counts where training can mend that: the constraint is on a metric that is measured on examples.

    Args:
        study: The study.
        top: How many, at most.
    """
    results, objectives = study.final_results(), study.space.objectives
    numbers = front_trials(results, objectives)
    on_examples = {metric for name in study.space.evaluate if evaluator_class(name).splits
                   for metric in evaluator_class(name).metrics}  # fmt: skip

    def may_join(result: TrialResult) -> bool:
        """True for a policy beside the front that has all objectives and breaks nothing that training cannot mend."""
        broken = {name for name, excess in result.violations.items() if excess > 0}
        is_own = result.duplicate_of is None and not result.policy.is_dense and result.number not in numbers
        return is_own and result.full_fidelity and broken <= on_examples

    by_number = {result.number: result for result in results}
    others = [result for result in results if may_join(result)]
    return front_first([by_number[number] for number in numbers], others, objectives, top, results[0])


def find_survivors(study: SearchStudy, trained: Sequence[TrialResult]) -> list[TrialResult]:
    """The better half of the policies of a round, by what was measured with their trained weights.

    Args:
        study: The study.
        trained: The trials of the round, with the model's own weights.
    """
    numbers, objectives = {result.number for result in trained}, study.space.objectives
    after = {one.before.number: one.after for one in study.recoveries()
             if one.after is not None and one.failure is None and one.before.number in numbers}  # fmt: skip
    dense = study.final_results()[0]
    members = front_trials([dense, *after.values()], objectives)
    front = [dense if number == dense.number else after[number] for number in members]
    others = [result for number, result in after.items() if number not in members]
    chosen = {result.number for result in front_first(front, others, objectives, (len(after) + 1) // 2, dense)}
    return [result for result in trained if result.number in chosen]


def front_first(
    front: Sequence[TrialResult], others: Sequence[TrialResult], objectives: Mapping[str, Direction], count: int,
    dense: TrialResult,
) -> list[TrialResult]:  # fmt: skip
    """At most so many policies: those of the front, evenly spaced over it where there are more, then the nearest."""
    own = [result for result in front if not result.policy.is_dense]
    if len(own) >= count:
        return evenly_spaced(own, count)
    return [*own, *nearest(others, front, dense, objectives)[: count - len(own)]]


def nearest(
    others: Sequence[TrialResult],
    front: Sequence[TrialResult],
    dense: TrialResult,
    objectives: Mapping[str, Direction],
) -> list[TrialResult]:
    """Policies by their distance to the front, the nearest first; of equal ones the earlier trial.

    The distance is the smallest amount that would have to be taken from every objective of a policy for no policy of
    the front to dominate it (the additive epsilon indicator, Zitzler et al. 2003). Objectives count in units of their
    range over these policies and the front.

    Args:
        others: Policies beside the front.
        front: The front.
        dense: The dense trial.
        objectives: Direction by metric.
    """
    directions = [*objectives.values()]

    def point(result: TrialResult) -> tuple[float, ...] | None:
        found = objective_point(result.search, dense.search, objectives)
        return None if found is None else minimised(found, directions)

    known = [(result, at) for result in others if (at := point(result)) is not None]
    corners = np.array([at for result in front if (at := point(result)) is not None])
    if not known or not len(corners):
        return [result for result, _ in known]
    points = np.array([at for _, at in known])
    spread = np.ptp(np.concatenate([points, corners]), axis=0)
    gaps = (points[:, None] - corners[None]) / np.where(spread > 0, spread, 1.0)
    distances = gaps.min(axis=2).max(axis=1)
    return [known[place][0] for place in np.argsort(distances, kind="stable")]
