"""The parts of a search that take time, how far each is, and how long what is left of all of them will take."""

import time
from collections.abc import Callable
from dataclasses import dataclass

LOADING, PREPARING = "loading the model", "preparing the study"
PROBING, PROPOSING, PROMOTING, CONFIRMING = "probing", "proposing", "promoting", "confirming"


@dataclass
class Phase:
    """One part.

    Attributes:
        total: How many steps it has, as far as that is known.
        done: How many are done.
        before: How many of those were done when this run began, as in a search that goes on.
        seconds: How long its steps took in this run.
        guess: Seconds that a step is expected to take, before one was done.
    """

    total: int = 0
    done: int = 0
    before: int = 0
    seconds: float = 0.0
    guess: float | None = None

    @property
    def left(self) -> int:
        """Steps to come."""
        return max(0, self.total - self.done)

    @property
    def pace(self) -> float | None:
        """Seconds a step; before one was done what was guessed, None where nothing was."""
        steps = self.done - self.before
        return self.seconds / steps if steps > 0 else self.guess


class Phases:
    """All parts of a search; time is counted for the one that was entered last.

    Args:
        clock: Seconds, of any origin.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._since = clock, clock()
        self._known: dict[str, Phase] = {}
        self._reached: set[str] = set()
        self.current = ""

    def enter(self, name: str, total: int | None = None) -> None:
        """Go on with a part.

        Args:
            name: What is done in it.
            total: How many steps it has; None where that was said before, or cannot be told.
        """
        self._count()
        self.current = name
        self.expect(name, self[name].total if total is None else total)

    def expect(self, name: str, total: int) -> None:
        """Say how many steps a part has, or will have when it comes."""
        self[name].total = max(total, self[name].done)

    def advance(self, name: str, steps: int = 1) -> None:
        """So many steps more are done."""
        self._count()
        self[name].done += steps
        self.expect(name, self[name].total)

    def reach(self, name: str, done: int) -> None:
        """So many steps are done; those that were at first were done before this run."""
        if name not in self._reached:
            self._reached.add(name)
            self[name].before = done
        self.advance(name, done - self[name].done)

    def __getitem__(self, name: str) -> Phase:
        return self._known.setdefault(name, Phase())

    def _count(self) -> None:
        now = self._clock()
        self[self.current].seconds += now - self._since
        self._since = now

    @property
    def done(self) -> int:
        """Steps done in all parts."""
        return sum(phase.done for phase in self._known.values())

    @property
    def total(self) -> int:
        """Steps of all parts."""
        return sum(phase.total for phase in self._known.values())

    @property
    def seconds_left(self) -> float | None:
        """What is left of each part at its own pace; at the slowest known one where a part has not begun."""
        paces = [pace for phase in self._known.values() if (pace := phase.pace) is not None]
        if not paces:
            return None
        return sum(phase.left * (max(paces) if phase.pace is None else phase.pace) for phase in self._known.values())
