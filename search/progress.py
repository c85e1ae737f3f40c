"""What a user sees while a search runs: a bar on standard error, and nothing where standard error is no terminal."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from ..evaluators.base import Direction
from ..policies.wording import visible
from .front import feasible_points, first_cost, front_trials
from .record import TrialRecord


class Progress:
    """Shows trials done, the size of the front, the best saving within the constraints, and the time left.

    Args:
        trials: The budget.
        objectives: Direction by metric.
        shown: False keeps it silent.
    """

    def __init__(self, trials: int, objectives: Mapping[str, Direction], shown: bool = True) -> None:
        self.console = Console(stderr=True, quiet=not shown)
        self._trials = trials
        self._objectives = objectives
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._bar.add_task("search", total=trials, state="loading the model")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        """Say something in passing."""
        self.console.print(visible(text), markup=False, highlight=False)

    def update(self, records: Sequence[TrialRecord], measured: int) -> None:
        """Show how far the search is."""
        said = not self.console.is_terminal and measured and measured % 10 == 0
        self._bar.update(self._task, completed=measured)
        if self.console.quiet or not (self.console.is_terminal or said):
            return  # Thousands of trials take their time, and nobody looks.
        state = self._state(records)
        self._bar.update(self._task, state=state)
        if said:
            self.note(f"{measured}/{self._trials} trials  {state}")

    def _state(self, records: Sequence[TrialRecord]) -> str:
        finished = [record for record in records if record.state == "complete"]
        if not finished or not finished[0].policy.is_dense:
            return "measuring the dense model"
        numbers = {*front_trials(finished, self._objectives)}
        front = [record for record in finished if record.number in numbers]
        return f"front {len(front)}  {best_saving([finished[0], *front], self._objectives)}"

    def confirming(self, count: int) -> None:
        """Begin the second part: the front on the report split."""
        self._bar.update(self._task, description="confirm", total=count, completed=0, state="on the report split")

    def confirmed(self) -> None:
        """One more policy of the front is confirmed."""
        self._bar.advance(self._task)


def best_saving(finished: Sequence[TrialRecord], objectives: Mapping[str, Direction]) -> str:
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
