"""Times in a search: measures the machine's noise, finds costs that predict times, and times the front again."""

import math
import random
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ...evaluators.base import Measurement
from ...evaluators.timing.rounds import merge_rounds
from ...policies.policy import Policy
from ..space.units import phrase
from ..study.study import SearchStudy
from ..times.noise import noise_sentence, noise_warning, time_noise, time_spread
from ..times.stand_ins import find_stand_ins
from ..trial.modelled_time import is_time
from ..trial.outcome import Outcome
from ..trial.trial_result import TrialResult
from ..workers.ray_pool import Pool
from ..workers.time_limits import TimeLimits
from ..workers.worker import Job

if TYPE_CHECKING:
    from .progress import Progress

NOISE_MEASUREMENTS = 4  # measurements of dense against dense before the first trial
ROUNDS = 7  # measurements of each policy of the front at the end
TIMING_AGAIN = "timing the front again"


class Timing:
    """Measures and watches the times of a search.

    Args:
        study: Where the trials are.
        pool: The workers.
        progress: Shows what was found.
        limits: How long a measurement may take; None sets no limit.
    """

    def __init__(self, study: SearchStudy, pool: Pool, progress: "Progress", limits: TimeLimits | None = None) -> None:
        self.study, self.pool, self.progress, self._limits = study, pool, progress, limits
        self._evaluators = [*study.exclusive_evaluators]
        self._warned: set[str] = set()
        self._disturbed: set[tuple[str, str]] = set()

    @property
    def is_needed(self) -> bool:
        """True where the search measures times."""
        return bool(self._evaluators)

    def measure_noise(self) -> None:
        """Time dense against dense, once per study."""
        if not self._evaluators or self.study.noise_is_known:
            return
        self.progress.phase("dense against dense", NOISE_MEASUREMENTS)
        found: defaultdict[str, list[Measurement]] = defaultdict(list)
        for _, outcome in self._run(Job(Policy(), self._evaluators) for _ in range(NOISE_MEASUREMENTS)):
            if outcome.failure:
                self.progress.note(f"dense could not be timed against itself: {outcome.failure}")
            for name, entry in outcome.measurements.items():
                if is_time(name, entry):
                    found[name].append(entry)
            self.progress.advance()
        self.study.keep_noise(found)
        for name, entries in found.items():
            self.progress.note(noise_sentence(name, time_noise(entries) or 0.0, len(entries)))

    def update(self) -> None:
        """Look for costs that predict a time, and warn once about a machine that is too noisy."""
        if not self._evaluators or self.study.dense_measurements() is None:
            return
        results = self.study.results()
        self._note_disturbances(results)
        known = self.study.times.stand_ins
        for stand_in in find_stand_ins(results, self.study.space, self.study.exclusive_evaluators, known):
            self.study.keep_stand_in(stand_in)
            self.progress.note(stand_in.text)
        for name in {*self.study.space.objectives} & {*self.study.times.null} - self._warned:
            noise = time_noise(self.study.times.null[name])
            spread = None if noise is None else time_spread(results, name, noise)
            if noise is not None and spread is not None:
                self._warned.add(name)
                if warning := noise_warning(name, noise, spread):
                    self.progress.note(warning)

    def _note_disturbances(self, results: Sequence[TrialResult]) -> None:
        """Say what disturbed the measurement of a time, once for each time and kind of disturbance."""
        for result in results:
            for name, entry in result.search.items():
                for kind, text in entry.detail.get("warnings", {}).items():
                    if (name, kind) not in self._disturbed:
                        self._disturbed.add((name, kind))
                        self.progress.note(f"trial {result.number}, {phrase(name)}: {text} (said once; see the trials)")

    def measure_again(self, results: Sequence[TrialResult], ends: float = math.inf) -> None:
        """Time policies again, each next to dense, in rounds of a shuffled order, and store the medians.

        Args:
            results: The front, and dense.
            ends: When to stop, on the monotonic clock; what was timed by then counts.
        """
        untimed = [result for result in results if not self.study.is_timed(result.policy)]
        if not self._evaluators or not untimed:
            return
        self.progress.phase(TIMING_AGAIN, ROUNDS * len(untimed))
        shuffle = random.Random(self.study.space.search.seed)
        jobs = [
            Job(result.policy, self._evaluators, split="report", tag=result)
            for _ in range(ROUNDS)
            for result in shuffle.sample(untimed, len(untimed))
        ]
        outcomes: defaultdict[int, list[Outcome]] = defaultdict(list)
        for job, outcome in self._run(jobs, ends):
            if outcome.failure:
                self.progress.note(f"trial {job.tag.number} could not be timed again: {outcome.failure}")
            outcomes[job.tag.number].append(outcome)
            self.progress.advance()
        for result in untimed:
            rounds = [outcome.measurements for outcome in outcomes[result.number] if not outcome.failure]
            if rounds:
                merged = {name: merge_rounds([found[name] for found in rounds]) for name in rounds[0]}
                self.study.keep_times(result.policy, merged)

    def _run(self, jobs: Iterable[Job], ends: float = math.inf) -> Iterator[tuple[Job, Outcome]]:
        """Run jobs that need their device alone: one at a time on each device."""
        waiting = deque(jobs)
        while (waiting or self.pool.busy) and time.monotonic() < ends:
            while waiting and self.pool.has_quiet:
                job = waiting.popleft()
                job.seconds = self._limits.of("search", job.policy) if self._limits is not None else None
                self.pool.submit(job)
            finished = self.pool.next(ends)
            if finished is not None:
                yield finished
