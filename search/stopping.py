"""When a search has had enough: its trials are spent, the front grows no more, or time is up."""

import time

from .front import Growing, reference_point
from .record import TrialRecord
from .results import known_metrics
from .space import Space
from .standing import Known, standing

MINUTE = 60.0


class Stopping:
    """Follows a search, and tells when `search.stop` of its space ends it.

    Args:
        space: The space.
        spent: Seconds that the search took before it was resumed.
    """

    def __init__(self, space: Space, spent: float = 0.0) -> None:
        self._space = space
        self._began = time.monotonic() - spent
        self._curve: list[float] = []
        self._growing: Growing | None = None
        self._known: Known | None = None

    def follow(self, record: TrialRecord) -> None:
        """Take note of a trial that has ended or is set aside; the first that is complete is dense."""
        if record.shared_from is not None or record.is_probe:
            return
        objectives = self._space.objectives
        if self._growing is None and record.state == "complete":
            reference = reference_point(record.search, objectives, known_metrics(self._space))
            self._growing = Growing(list(objectives.values()), [reference[name] for name in objectives])
            self._known = Known.of([record])
        if self._growing is not None and self._known is not None:
            self._curve.append(self._growing.add(standing(record, self._known, self._space)))

    def reason(self) -> str | None:
        """Why no further trial should begin; None while one may."""
        stop = self._space.search.stop
        minutes = (time.monotonic() - self._began) / MINUTE
        if stop.minutes is not None and self._growing is not None and minutes >= stop.minutes:
            return f"{stop.minutes:g} minutes are over (search.stop.minutes)"
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
