"""Decides when a search stops proposing: the hypervolume stagnates, or its time is over."""

import math
import time

from ..space.objectives import metric_definitions
from ..space.space import Space
from ..trial.hypervolume import IncrementalHypervolume, reference_point
from ..trial.pareto import objective_point
from ..trial.trial_result import TrialResult

MINUTE = 60.0
REPORT_SHARE, REPORT_SECONDS = 0.05, 60.0  # time reserved for the report: a share of the limit, at most so many seconds
CONFIRM_SHARE = 0.3  # share of the limit that is reserved at most to confirm the front
RECOVER_SHARE = 0.4  # share of the limit that is reserved at most to train policies


class Stopping:
    """Applies `search.stop` of a space to a search.

    Args:
        space: The space.
        seconds_used: How long the search ran before it was resumed.

    Attributes:
        confirm_seconds: Expected seconds to confirm the front, which are reserved.
        recover_seconds: Expected seconds to train policies once the search has ended, which are reserved.
    """

    def __init__(self, space: Space, seconds_used: float = 0.0) -> None:
        self._space = space
        self._began = time.monotonic() - seconds_used
        self._curve: list[float] = []
        self._hypervolume: IncrementalHypervolume | None = None
        self._dense: TrialResult | None = None
        self.confirm_seconds = self.recover_seconds = 0.0

    def follow(self, result: TrialResult) -> None:
        """Count a trial that has ended, was paused or was promoted; the first complete one must be dense.

        A paused trial adds no hypervolume: its score on few examples may be luck. It counts when all are measured.
        """
        if result.duplicate_of is not None or result.is_probe:
            return
        objectives = self._space.objectives
        if self._hypervolume is None and result.state == "complete":
            reference = reference_point(result.search, objectives, metric_definitions(self._space))
            corner = [reference[name] for name in objectives]
            self._hypervolume = IncrementalHypervolume(list(objectives.values()), corner)
            self._dense = result
        if self._hypervolume is None or self._dense is None:
            return
        point = objective_point(result.search, self._dense.search, objectives) if result.feasible else None
        volume = self._hypervolume.add(point)
        if result.promoted_from is None:
            self._curve.append(volume)
        elif self._curve:
            self._curve[-1] = volume

    @property
    def ends(self) -> float:
        """When everything but the report must be over, on the monotonic clock; infinity without a limit.

        The limit applies once dense is measured.
        """
        minutes = self._space.search.stop.minutes
        if minutes is None or self._hypervolume is None:
            return math.inf
        limit = minutes * MINUTE
        return self._began + limit - min(REPORT_SECONDS, REPORT_SHARE * limit)

    @property
    def is_late(self) -> bool:
        """True when no trial should start or be promoted any more, so that time is left for what follows."""
        limit = MINUTE * (self._space.search.stop.minutes or 0.0)
        return time.monotonic() >= self.recover_until - min(self.recover_seconds, RECOVER_SHARE * limit)

    @property
    def recover_until(self) -> float:
        """When trainings must be over, so that time is left to confirm the front, on the monotonic clock."""
        limit = MINUTE * (self._space.search.stop.minutes or 0.0)
        return self.ends - min(self.confirm_seconds, CONFIRM_SHARE * limit)

    def reason(self) -> str | None:
        """Why no further trial should start; None where one may."""
        stop = self._space.search.stop
        if self.is_late:
            return f"{stop.minutes:g} minutes are over, less what the front and the report take (search.stop.minutes)"
        grown = relative_growth(self._curve, stop.stagnation)
        if grown is not None and grown <= stop.gain:
            growth = f"the hypervolume grew by {grown:.2%} in the last {stop.stagnation} trials"
            return f"{growth}, not more than {stop.gain:.2%} (search.stop.stagnation)"
        return None


def relative_growth(curve: list[float], num_trials: int | None) -> float | None:
    """Relative growth of a hypervolume over its last trials; None with too few of them, or from 0."""
    if num_trials is None or len(curve) <= num_trials or not curve[-1 - num_trials]:
        return None
    return curve[-1] / curve[-1 - num_trials] - 1
