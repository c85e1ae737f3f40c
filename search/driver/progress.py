"""Shows the progress of a search: a bar on a terminal, otherwise a log line when there is news.

A search has phases: loading the model, probing, proposing, promoting, confirming. The bar names the current phase with
its own count; its total covers all phases, as far as they can be predicted.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Column

from ...evaluators.base import Direction
from ...policies.wording import escape_invisible
from ..space.objectives import first_cost
from ..trial.pareto import feasible_points, front_trials
from ..trial.trial_result import TrialResult
from .phases import LOADING, PROPOSING, Phases, PhaseState

LOG_INTERVAL = 10  # steps of a phase between two lines of a log
MAX_NOTES = 30  # of the notes that are kept, the latest


class Progress:
    """Shows the phase, the size of the front, the best saving within the constraints, and the time left.

    Args:
        trials: The budget.
        objectives: Direction by metric.
        shown: False keeps it silent.
        console: Where to show it; None for standard error.
        clock: Returns seconds from any origin.

    Attributes:
        notes: The latest lines that were noted.
        watcher: Called after each change, until it is None again.
        bar: The bar that a terminal shows.
    """

    def __init__(
        self,
        trials: int,
        objectives: Mapping[str, Direction],
        shown: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or Console(stderr=True, force_terminal=_moves_the_cursor())
        self.console.quiet = not shown
        self._objectives = objectives
        self._phases, self._clock, self._began = Phases(clock), clock, clock()
        self._phases.expect(PROPOSING, trials)
        self._logged: set[tuple[str, int]] = set()
        self._state = ""
        self.notes: deque[str] = deque(maxlen=MAX_NOTES)
        self.watcher: Callable[[], None] | None = None
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            # A narrow terminal cuts this column alone.
            TextColumn("{task.fields[state]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            expand=True,
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self.bar.add_task("", total=trials, state="", left="")

    def __enter__(self) -> Self:
        self.bar.start()
        self.phase(LOADING)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    @property
    def is_shown(self) -> bool:
        """False where nothing is shown and nothing watches, so that callers can skip computing what would be."""
        return not self.console.quiet or self.watcher is not None

    @property
    def state(self) -> PhaseState:
        """The phase, how far it is, and the time left."""
        return self._phases.state

    @property
    def elapsed(self) -> float:
        """Seconds since the start of the run."""
        return self._clock() - self._began

    def note(self, text: str) -> None:
        """Print a line above the bar, or into the log."""
        self.notes.append(escape_invisible(text))
        self._print(text)

    def _print(self, text: str) -> None:
        self.console.print(escape_invisible(text), markup=False, highlight=False, soft_wrap=True)

    def phase(self, name: str, total: int | None = None) -> None:
        """Enter a phase.

        Args:
            name: The phase.
            total: How many steps it has; None keeps the number that was set before.
        """
        self._phases.enter(name, total)
        self._show()

    def expect_more(self, name: str, steps: int) -> None:
        """Set how many steps of a phase are still to come."""
        self._phases.expect(name, self._phases[name].done + steps)

    def guess(self, name: str, seconds: float) -> None:
        """Set how long a step of a phase takes by the forecast."""
        self._phases[name].guess = seconds

    def count_elsewhere(self, name: str, steps: int = 1) -> None:
        """Leave steps out of a phase's pace, because their time counted for another phase."""
        self._phases.count_elsewhere(name, steps)

    def advance(self, name: str | None = None) -> None:
        """Count one more step as done, of the current phase unless another is named."""
        self._phases.advance(name or self._phases.current)
        self._show()

    def update(self, results: Sequence[TrialResult], measured: int) -> None:
        """Show the state of the trials.

        Args:
            results: All trials.
            measured: How much of the budget is used.
        """
        self._phases.reach(PROPOSING, measured)
        if not self.console.quiet and (self.console.is_terminal or self._is_news()):
            self._state = self._front_state(results)  # Slow with thousands of trials.
        self._show()

    def _is_news(self) -> bool:
        """True where the log has no line yet for this phase and this interval of its steps."""
        name = self._phases.current
        done = self._phases[name].done
        return (name, done - done % LOG_INTERVAL) not in self._logged

    def _show(self) -> None:
        if not self.console.quiet:
            self._draw()
        if self.watcher is not None:
            self.watcher()

    def _draw(self) -> None:
        name = self._phases.current
        phase = self._phases[name]
        count = f" {phase.done}/{phase.total}" if phase.total else ""
        seconds = self._phases.seconds_left
        left = "" if seconds is None else f"left {duration(seconds)}"
        self.bar.update(
            self._task, description=f"{name}{count}", completed=self._phases.done, total=self._phases.total,
            state=self._state, left=left,
        )  # fmt: skip
        if not self.console.is_terminal and self._is_news():
            self._logged.add((name, phase.done - phase.done % LOG_INTERVAL))
            self._print("  ".join(filter(None, [f"{name}{count}", self._state, left])))

    def _front_state(self, results: Sequence[TrialResult]) -> str:
        """The size of the front and the best saving; empty before dense is measured."""
        finished = [result for result in results if result.state == "complete"]
        if not finished or not finished[0].policy.is_dense:
            return ""
        numbers = {*front_trials(finished, self._objectives)}
        front = [result for result in finished if result.number in numbers]
        return f"front {len(front)}  {best_saving([finished[0], *front], self._objectives)}"


def _moves_the_cursor() -> bool:
    """True where a bar can be drawn: the log of a CI or of a notebook takes lines, whatever colours it wishes."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def duration(seconds: float) -> str:
    """A duration as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def best_saving(results: Sequence[TrialResult], objectives: Mapping[str, Direction]) -> str:
    """The largest saving in the first cost among feasible trials; empty without a cost.

    Args:
        results: Finished trials; the first is dense.
        objectives: Direction by metric.
    """
    cost = first_cost(objectives)
    dense = results[0].search[cost].value if cost is not None else 0.0
    if cost is None or not dense:
        return ""
    place = list(objectives).index(cost)
    points = [point for point in feasible_points(results, objectives) if point is not None]
    if not points:
        return "nothing within the constraints yet"
    best = min(point[place] for point in points)
    return f"best saving {1 - best / dense:.0%} of {cost}"
