"""When a search has had enough: its trials are spent, the front grows no more, or time is up."""

import math
import time

from ..space.objectives import metric_definitions
from ..space.space import Space
from ..trial.hypervolume import IncrementalHypervolume, reference_point
from ..trial.pareto import objective_point
from ..trial.trial_result import TrialResult

MINUTE = 60.0
REPORT_SHARE, REPORT_SECONDS = 0.05, 60.0  # of the time, but at most so much: for the report
CONFIRM_SHARE = 0.3  # of the time, at most: to confirm the front


class Stopping:
    """Follows a search, and tells when `search.stop` of its space ends it.

    Args:
        space: The space.
        spent: Seconds that the search took before it was resumed.

    Attributes:
        confirm_seconds: How long it is expected to take to confirm the front, for which time is left.
    """

    def __init__(self, space: Space, spent: float = 0.0) -> None:
        self._space = space
        self._began = time.monotonic() - spent
        self._curve: list[float] = []
        self._growing: IncrementalHypervolume | None = None
        self._dense: TrialResult | None = None
        self.confirm_seconds = 0.0

    def follow(self, record: TrialResult) -> None:
        """Take note of a trial that has ended, or is set aside, or has answered more; the first complete one is dense.

        What few examples say may be luck, so it counts as growth only when a trial has answered all.
        """
        if record.duplicate_of is not None or record.is_probe:
            return
        objectives = self._space.objectives
        if self._growing is None and record.state == "complete":
            reference = reference_point(record.search, objectives, metric_definitions(self._space))
            self._growing = IncrementalHypervolume(list(objectives.values()), [reference[name] for name in objectives])
            self._dense = record
        if self._growing is None or self._dense is None:
            return
        point = objective_point(record.search, self._dense.search, objectives) if record.feasible else None
        volume = self._growing.add(point)
        if record.continues is None:
            self._curve.append(volume)
        elif self._curve:
            self._curve[-1] = volume

    @property
    def ends(self) -> float:
        """When everything but the report has to be over, by the monotonic clock; infinite without a limit."""
        minutes = self._space.search.stop.minutes
        if minutes is None or self._growing is None:
            return math.inf
        whole = minutes * MINUTE
        return self._began + whole - min(REPORT_SECONDS, REPORT_SHARE * whole)

    @property
    def is_late(self) -> bool:
        """True when no further trial should begin, nor one that was set aside go on, so that the front is confirmed."""
        kept = min(self.confirm_seconds, CONFIRM_SHARE * MINUTE * (self._space.search.stop.minutes or 0.0))
        return time.monotonic() >= self.ends - kept

    def reason(self) -> str | None:
        """Why no further trial should begin; None while one may."""
        stop = self._space.search.stop
        if self.is_late:
            return f"{stop.minutes:g} minutes are over, less what the front and the report take (search.stop.minutes)"
        grown = growth(self._curve, stop.stagnation)
        if grown is not None and grown <= stop.gain:
            said = f"the hypervolume grew by {grown:.2%} in the last {stop.stagnation} trials"
            return f"{said}, not more than {stop.gain:.2%} (search.stop.stagnation)"
        return None


def growth(curve: list[float], last: int | None) -> float | None:
    """How much a hypervolume grew in its last trials, as a share of what it was; None where there are too few."""
    if last is None or len(curve) <= last or not curve[-1 - last]:
        return None
    return curve[-1] / curve[-1 - last] - 1
