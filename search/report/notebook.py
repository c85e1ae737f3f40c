"""What a search found, for notebooks and programs; a notebook draws it as the terminal and the report do."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ...policies.errors import StudyError
from ...policies.policy import Policy
from ..analysis.study_record import StudyRecord, policy_files
from ..places import POLICIES
from ..trial.trial_result import TrialResult
from .console import Output
from .folder import exported
from .layer_map import layer_map
from .picture import draw_front
from .terminal import front_table, print_summary, row

if TYPE_CHECKING:
    import pandas

WIDTH = 100  # columns of text in a notebook
DPI = 90  # of the picture of the front
TEXT = '<pre style="line-height: 1.25; font-family: Menlo, Consolas, monospace; white-space: pre">{code}</pre>'


@dataclass(frozen=True, repr=False, eq=False)
class Front(Sequence[Policy]):
    """The Pareto-optimal policies of a study, most expensive first, without dense.

    Each policy has its measurements as `policy.measured`: by metric the value, that of the dense model, the interval
    and the split of the examples.

    Attributes:
        record: The study.
        folder: Where its policies and their files are.
    """

    record: StudyRecord
    folder: Path

    def __len__(self) -> int:
        return len(policy_files(self.record))

    @overload
    def __getitem__(self, place: int) -> Policy: ...

    @overload
    def __getitem__(self, place: slice) -> list[Policy]: ...

    def __getitem__(self, place: int | slice) -> Policy | list[Policy]:
        numbers = [*policy_files(self.record)][place]
        return [self._policy(number) for number in numbers] if isinstance(numbers, list) else self._policy(numbers)

    def _policy(self, number: int) -> Policy:
        policy = exported(self.record, self.record.trial(number))
        return policy.beside(self.folder) if policy.files else policy

    def __repr__(self) -> str:
        return f"Front({len(self)} policies of {self.record.name!r})"

    def _repr_html_(self) -> str:
        """The picture of the front and its table."""
        rows = {Path(file).stem: self._row(number) for number, file in policy_files(self.record).items()}
        console = _recorder()
        console.print_table(front_table(self.record, rows))
        return picture_html(self.record) + _html(console)

    def _row(self, number: int) -> dict[str, Any]:
        return row(self.record, self.record.trial(number), None)


@dataclass(frozen=True, repr=False, eq=False)
class Study:
    """A search and what it found.

    Attributes:
        record: Every figure of the study as plain values.
        folder: Where its database, its policies and its report are.
    """

    record: StudyRecord
    folder: Path

    @property
    def front(self) -> Front:
        """The Pareto-optimal policies, most expensive first, without dense."""
        return Front(self.record, self.folder / POLICIES)

    @property
    def dense(self) -> Policy:
        """The policy that leaves nothing out, with its measurements."""
        return exported(self.record, self.record.dense)

    @property
    def trials(self) -> tuple[TrialResult, ...]:
        """Every trial, in the order in which they were proposed."""
        return self.record.trials

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row a trial, with the columns of `trials.csv`; what was not measured is missing.

        Raises:
            StudyError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError:
            hint = "pip install 'skipsearch[pandas]'; the same table is in the study's folder, as trials.csv"
            raise StudyError("a data frame needs the package pandas, which is not installed", hint=hint) from None
        from .html.page import trial_rows

        return pandas.DataFrame(trial_rows(self.record))

    def __repr__(self) -> str:
        policies = f"{len(self.front)} policies on the front"
        return f"Study({self.record.name!r}: {len(self.trials)} trials, {policies}, in {str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """The picture of the front and the summary that `skipsearch report` prints."""
        console = _recorder()
        print_summary(self.record, self.folder, console)
        return picture_html(self.record) + _html(console)


def policy_html(policy: Policy) -> str:
    """The layer map of a policy."""
    console = _recorder()
    console.print(layer_map(policy, policy.num_layers))
    return _html(console)


def picture_html(record: StudyRecord) -> str:
    """The picture of the front, inside the HTML."""
    encoded = base64.b64encode(draw_front(record, DPI)).decode()
    alternative = f"The front of the study: {len(policy_files(record))} policies"
    return f'<img alt="{alternative}" style="max-width: 100%" src="data:image/png;base64,{encoded}">'


def _recorder() -> Output:
    """A console that keeps what is printed, in colour."""
    return Output(
        record=True, file=io.StringIO(), width=WIDTH, force_terminal=True, force_jupyter=False,
        color_system="truecolor", legacy_windows=False, _environ={},
    )  # fmt: skip


def _html(console: Output) -> str:
    """What a console has recorded; colours stand beside the text, because viewers of notebooks drop style sheets."""
    return console.export_html(inline_styles=True, code_format=TEXT)
