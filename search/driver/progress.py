"""What a user sees while a search runs: a bar on a terminal, and else a line in the log where there is news.

A search has phases: loading the model, what is found out first, proposing, promoting, confirming. The bar names the
one that runs with its own count; its total is that of all of them, as far as they can be told.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Column

from ...evaluators.base import Direction
from ...policies.wording import visible
from ..space.objectives import first_cost
from ..trial.pareto import feasible_points, front_trials
from ..trial.trial_result import TrialResult
from .phases import LOADING, PROPOSING, Phases

EACH = 10  # steps of a phase from one line in a log to the next


class Progress:
    """Shows how far each phase is, the size of the front, the best saving within the constraints, and the time left.

    Args:
        trials: The budget.
        objectives: Direction by metric.
        shown: False keeps it silent.
        console: Where to show it; standard error where none is given.
        clock: Seconds, of any origin.
    """

    def __init__(
        self,
        trials: int,
        objectives: Mapping[str, Direction],
        shown: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or Console(stderr=True)
        self.console.quiet = not shown
        self._objectives = objectives
        self._phases = Phases(clock)
        self._phases.expect(PROPOSING, trials)
        self._said: set[tuple[str, int]] = set()
        self._state = ""
        self._bar = Bar(
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
        self._task = self._bar.add_task("", total=trials, state="", left="")

    def __enter__(self) -> Self:
        self._bar.start()
        self.phase(LOADING)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def is_read(self) -> bool:
        """True where somebody may look; what is only to be shown need not be found out else."""
        return not self.console.quiet

    def note(self, text: str) -> None:
        """Say something in passing."""
        self.console.print(visible(text), markup=False, highlight=False, soft_wrap=True)

    def phase(self, name: str, total: int | None = None) -> None:
        """Go on with a phase.

        Args:
            name: What is done in it.
            total: How many steps it has; None where that was said before, or cannot be told.
        """
        self._phases.enter(name, total)
        self._show()

    def expect_more(self, name: str, steps: int) -> None:
        """Say how many steps of a phase are still to come, so that the total counts them."""
        self._phases.expect(name, self._phases[name].done + steps)

    def guess(self, name: str, seconds: float) -> None:
        """Say how long a step of a phase that has not begun will take, about."""
        self._phases[name].guess = seconds

    def advance(self, name: str | None = None) -> None:
        """One more step is done, of the phase that runs where no other is named."""
        self._phases.advance(name or self._phases.current)
        self._show()

    def update(self, records: Sequence[TrialResult], measured: int) -> None:
        """Show how far the trials are.

        Args:
            records: All trials.
            measured: How much of the budget is spent.
        """
        self._phases.reach(PROPOSING, measured)
        if self.is_read and (self.console.is_terminal or self._is_news()):
            self._state = self._found(records)  # With thousands of trials this takes its time.
        self._show()

    def _is_news(self) -> bool:
        """True where a log is to say how far the phase is: at its start, then every so many steps, never twice."""
        name = self._phases.current
        done = self._phases[name].done
        return (name, done - done % EACH) not in self._said

    def _show(self) -> None:
        if not self.is_read:
            return
        name = self._phases.current
        phase = self._phases[name]
        count = f" {phase.done}/{phase.total}" if phase.total else ""
        left = self._phases.seconds_left
        told = "" if left is None else f"left {clock_of(left)}"
        self._bar.update(
            self._task, description=f"{name}{count}", completed=self._phases.done, total=self._phases.total,
            state=self._state, left=told,
        )  # fmt: skip
        if not self.console.is_terminal and self._is_news():
            self._said.add((name, phase.done - phase.done % EACH))
            self.note("  ".join(filter(None, [f"{name}{count}", self._state, told])))

    def _found(self, records: Sequence[TrialResult]) -> str:
        finished = [record for record in records if record.state == "complete"]
        if not finished or not finished[0].policy.is_dense:
            return ""
        numbers = {*front_trials(finished, self._objectives)}
        front = [record for record in finished if record.number in numbers]
        return f"front {len(front)}  {best_saving([finished[0], *front], self._objectives)}"


def clock_of(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def best_saving(finished: Sequence[TrialResult], objectives: Mapping[str, Direction]) -> str:
    """The largest saving in the first cost among the trials that break no constraint."""
    cost = first_cost(objectives)
    dense = finished[0].search[cost].value if cost is not None else 0.0
    if cost is None or not dense:
        return ""
    place = list(objectives).index(cost)
    points = [point for point in feasible_points(finished, objectives) if point is not None]
    if not points:
        return "nothing within the constraints yet"
    best = min(point[place] for point in points)
    return f"best saving {1 - best / dense:.0%} of {cost}"
