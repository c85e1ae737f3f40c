"""What a search does about clocks: it finds out their noise, spends no more than needed, and times the front again."""

import math
import random
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...evaluators.base import Measurement
from ...policies.policy import Policy
from ..study.study import SearchStudy
from ..times.noise import noise_line, noise_of, spread_of, warning
from ..times.stand_ins import stand_ins
from ..trial.modelled_time import is_time
from ..trial.outcome import Outcome
from ..trial.trial_result import TrialResult
from ..workers.ray_pool import Pool
from ..workers.time_limits import Limits
from ..workers.worker import Job

if TYPE_CHECKING:
    from .progress import Progress

NULLS = 4  # measurements of dense against dense before the first trial
ROUNDS = 7  # visits to each member of the front at the end
AGAIN = "timing the front again"


class Timing:
    """Looks after the times of a search.

    Args:
        study: Where the trials are.
        pool: The workers that measure.
        progress: Where to say what was found.
        limits: How long a measurement may take; None sets no limit.
    """

    def __init__(self, study: SearchStudy, pool: Pool, progress: "Progress", limits: Limits | None = None) -> None:
        self.study, self.pool, self.progress, self._limits = study, pool, progress, limits
        self._names = [*study.timers]
        self._warned: set[str] = set()

    @property
    def is_needed(self) -> bool:
        """True where something is timed."""
        return bool(self._names)

    def find_noise(self) -> None:
        """Measure dense against dense before the search, once in a study."""
        if not self._names or self.study.noise_is_known:
            return
        self.progress.phase("dense against dense", NULLS)
        found: defaultdict[str, list[Measurement]] = defaultdict(list)
        for _, outcome in self._run(Job(Policy(), self._names) for _ in range(NULLS)):
            self.progress.guess(AGAIN, outcome.seconds.get("total", 0.0))
            if outcome.failure:
                self.progress.note(f"dense could not be timed against itself: {outcome.failure}")
            for name, entry in outcome.measurements.items():
                if is_time(name, entry):
                    found[name].append(entry)
            self.progress.advance()
        self.study.keep_noise(found)
        for name, entries in found.items():
            self.progress.note(noise_line(name, noise_of(entries) or 0.0, len(entries)))

    def look(self) -> None:
        """See whether a time is worth its measurements, and whether the machine is quiet enough; say what is new."""
        if not self._names or self.study.dense_measurements() is None:
            return
        records = self.study.records()
        for found in stand_ins(records, self.study.space, self.study.timers, self.study.times.stand_ins):
            self.study.keep_stand_in(found)
            self.progress.note(found.text)
        for name in {*self.study.space.objectives} & {*self.study.times.null} - self._warned:
            noise = noise_of(self.study.times.null[name])
            spread = None if noise is None else spread_of(records, name, noise)
            if noise is not None and spread is not None:
                self._warned.add(name)
                if said := warning(name, noise, spread):
                    self.progress.note(said)

    def measure_again(self, records: Sequence[TrialResult], ends: float = math.inf) -> None:
        """Time policies again, in rounds of a shuffled order, each next to dense, and keep what came out.

        Args:
            records: The front, and dense.
            ends: When it has to be over, by the monotonic clock; what was timed by then counts.
        """
        left = [record for record in records if not self.study.is_timed(record.policy)]
        if not self._names or not left:
            return
        self.progress.phase(AGAIN, ROUNDS * len(left))
        draw = random.Random(self.study.space.search.seed)
        jobs = [
            Job(record.policy, self._names, split="report", tag=record)
            for _ in range(ROUNDS)
            for record in draw.sample(left, len(left))
        ]
        visits: defaultdict[int, list[Outcome]] = defaultdict(list)
        for job, outcome in self._run(jobs, ends):
            if outcome.failure:
                self.progress.note(f"trial {job.tag.number} could not be timed again: {outcome.failure}")
            visits[job.tag.number].append(outcome)
            self.progress.advance()
        for record in left:
            whole = [outcome.measurements for outcome in visits[record.number] if not outcome.failure]
            if whole:
                self.study.keep_times(record.policy, {name: merged([one[name] for one in whole]) for name in whole[0]})

    def _run(self, jobs: Iterable[Job], ends: float = math.inf) -> Iterator[tuple[Job, Outcome]]:
        """Run jobs that need the device for themselves."""
        waiting = deque(jobs)
        while (waiting or self.pool.busy) and time.monotonic() < ends:
            while waiting and self.pool.has_idle and not (self.pool.shares_device and self.pool.busy):
                job = waiting.popleft()
                job.seconds = self._limits.of("search", job.policy) if self._limits is not None else None
                self.pool.submit(job)
            found = self.pool.next(ends)
            if found is not None:
                yield found


def merged(visits: Sequence[Measurement]) -> Measurement:
    """Several measurements of one policy as one; its standard error is from how far the visits lie apart.

    The time is dense's of all visits times the median ratio of the pairs, since milliseconds of another hour differ.
    """
    if any(not one.dense for one in visits):
        return visits[0] if len(visits) == 1 else Measurement(statistics.median(one.value for one in visits))
    pairs = [pairs_of(one) for one in visits]
    ours, dense = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    ratio, beside = float(np.median(ours / dense)), float(np.median(dense))
    apart = [float(np.median(one / other)) for one, other in pairs]
    error = 1.253 * statistics.stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else None
    return Measurement(
        ratio * beside,
        n=len(ours),
        dense=beside,
        stderr=None if error is None else error * beside,
        iqr=float(np.subtract(*np.percentile(ours, (75, 25)))),
        detail={"visits": len(visits), "repeats_ms": ours.tolist(), "dense_repeats_ms": dense.tolist()},
    )


def pairs_of(entry: Measurement) -> tuple[np.ndarray, np.ndarray]:
    """The repeats of a policy and of dense; the two medians where repeats were not kept."""
    ours, dense = (entry.detail.get(key, ()) for key in ("repeats_ms", "dense_repeats_ms"))
    if len(ours) != len(dense) or not len(ours):
        ours, dense = [entry.value], [entry.dense]
    return np.array(ours, float), np.array(dense, float)
