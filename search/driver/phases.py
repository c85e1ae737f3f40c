"""The phases of a search: how far each one is, and how long all of them will still take."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

LOADING, PREPARING = "loading the model", "preparing the study"
MEASURING_DENSE = "measuring dense"
PROBING, PROPOSING, PROMOTING, CONFIRMING = "probing", "proposing", "promoting", "confirming"
TRANSFERRING, DRAWING = "measuring transfer tasks", "drawing kept patches"
RANDOMISING, RECOVERING = "measuring random choices of tokens", "recovering"
GUESSED_STEPS = 4  # how many measured steps a guess counts as
SLOWEST = 2  # steps that may be exceptions, such as the first one, for which a worker prepares its inputs


@dataclass
class Phase:
    """One phase.

    Attributes:
        total: Expected number of steps.
        done: Steps that are done.
        before: Steps of those whose time did not count for the phase: done before this run, or in another phase.
        seconds: How long each of the other steps took.
        running: Seconds of the phase since the last of these.
        guess: Expected seconds per step by the forecast; None where there is none.
    """

    total: int = 0
    done: int = 0
    before: int = 0
    seconds: list[float] = field(default_factory=list)
    running: float = 0.0
    guess: float | None = None

    @property
    def left(self) -> int:
        """Steps to come."""
        return max(0, self.total - self.done)

    @property
    def pace(self) -> float | None:
        """Seconds per step: those of this run, and the guess as if some steps had taken so long; None without any.

        All steps to come are expected at this pace, so one slow step must not multiply: the slowest ones count as at
        most `1 + steps / 2` of the others. That limit rises with the number of steps, so rare long steps count in full.
        """
        taken = sorted([*self.seconds, *([] if self.guess is None else [self.guess] * GUESSED_STEPS)])
        if not taken:
            return None
        usual, slowest = taken[:-SLOWEST], taken[-SLOWEST:]
        if len(usual) > SLOWEST and any(usual):
            limit = sum(usual) / len(usual) * (1 + len(taken) / 2)
            slowest = [min(seconds, limit) for seconds in slowest]
        return (sum(usual) + sum(slowest)) / len(taken)

    def finish(self, steps: int) -> None:
        """Count further steps as done, each of an equal part of the time that the phase took for them."""
        counted = max(0, self.done + steps - self.before) - max(0, self.done - self.before)
        self.done += steps
        self.total = max(self.total, self.done)
        if counted > 0:
            self.seconds += [self.running / counted] * counted
            self.running = 0.0


@dataclass(frozen=True)
class PhaseState:
    """How far a search is.

    Attributes:
        name: The current phase.
        done: Its steps that are done.
        total: Its expected number of steps; 0 where it is not known.
        seconds_left: Expected seconds until the search ends; None where they are not known.
    """

    name: str
    done: int
    total: int
    seconds_left: float | None


class Phases:
    """All phases of a search; time counts for the current one.

    Args:
        clock: Returns seconds from any origin.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._since = clock, clock()
        self._phases: dict[str, Phase] = {}
        self._resumed: set[str] = set()
        self.current = ""

    def enter(self, name: str, total: int | None = None) -> None:
        """Make a phase the current one.

        Args:
            name: The phase.
            total: How many steps it has; None keeps the number that was set before.
        """
        self._count_time()
        self.current = name
        self.expect(name, self[name].total if total is None else total)

    def expect(self, name: str, total: int) -> None:
        """Set how many steps a phase has, done ones included."""
        self[name].total = max(total, self[name].done)

    def advance(self, name: str, steps: int = 1) -> None:
        """Count further steps of a phase as done."""
        self._count_time()
        self[name].finish(steps)

    def reach(self, name: str, done: int) -> None:
        """Set how many steps of a phase are done; at the first call, all of them were done before this run."""
        if name not in self._resumed:
            self._resumed.add(name)
            self[name].before = done
        self.advance(name, done - self[name].done)

    def count_elsewhere(self, name: str, steps: int) -> None:
        """Leave steps out of a phase's pace, because their time counted for another phase."""
        self[name].before += steps

    def __getitem__(self, name: str) -> Phase:
        return self._phases.setdefault(name, Phase())

    def _count_time(self) -> None:
        now = self._clock()
        self[self.current].running += now - self._since
        self._since = now

    @property
    def done(self) -> int:
        """Steps done in all phases."""
        return sum(phase.done for phase in self._phases.values())

    @property
    def total(self) -> int:
        """Steps of all phases."""
        return sum(phase.total for phase in self._phases.values())

    @property
    def state(self) -> PhaseState:
        """The current phase, and the time left in all of them."""
        phase = self[self.current]
        return PhaseState(self.current, phase.done, phase.total, self.seconds_left)

    @property
    def seconds_left(self) -> float | None:
        """Expected seconds of all steps to come, each phase at its own pace; None before any pace is known.

        A phase whose pace is unknown counts at the slowest pace of the others.
        """
        paces = [pace for phase in self._phases.values() if (pace := phase.pace) is not None]
        if not paces:
            return None
        return sum(phase.left * (max(paces) if phase.pace is None else phase.pace) for phase in self._phases.values())
