"""The report's table of the front, as values for `policies.html`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ....evaluators.base import Measurement, Split
from ...analysis.baseline_comparison import quality_metric
from ...analysis.study_record import StudyRecord, all_files, percent_of_dense, policy_files
from ...space.units import EXAMPLE_UNITS, amount, phrase, signed_points
from ...trial.modelled_time import ModelledTime
from ...trial.trial_result import TrialResult
from ..sections import gain_over_dense, measurement_text
from ..sentences import gap_line, selection_bias_line
from ..time_sentences import time_lines
from .usage import Usage, usage


@dataclass(frozen=True)
class MeasurementCell:
    """One measurement.

    Attributes:
        text: The value that policies are compared by.
        note: The absolute value and its spread, in small print.
        missing: Why there is no value; empty where there is one.
    """

    text: str = ""
    note: str = ""
    missing: str = ""


@dataclass(frozen=True)
class PolicyRow:
    """One policy; `file` is None for dense, and `usage` where the row has no commands."""

    trial: int
    file: str | None
    note: str
    cells: list[MeasurementCell]
    usage: Usage | None = None


@dataclass(frozen=True)
class PolicyTable:
    """The whole table.

    Attributes:
        columns: Title and note of each column.
        rows: The dense model, then the policies of the front, then those in its wide gaps.
        notes: Paragraphs beneath, each with the term that it explains or an empty string.
    """

    columns: list[tuple[str, str]]
    rows: list[PolicyRow]
    notes: list[tuple[str, str]]


def policy_table(record: StudyRecord, folder: Path, documents: Mapping[int, str] | None) -> PolicyTable:
    """One row per policy of the front, dense first, then those in wide gaps of the front.

    While the search runs, its front changes and has no files, since a command that was copied a minute ago must not
    measure another policy. The page then holds the policies themselves, under names that stay.

    Args:
        record: The study.
        folder: Its folder, for the commands.
        documents: While the search runs, each policy as YAML by its trial; None once their files are written.
    """
    files = all_files(record)
    columns = [(name, split) for name in record.metrics if _has_column(record, name) for split in _splits(record, name)]
    rows = []
    for trial in [record.dense, *(record.trial(number) for number in files)]:
        row = [_cell(record, trial, name, split) for name, split in columns]
        file = files.get(trial.number)
        use = None if file is None else usage(folder, file)
        if use is not None and documents is not None:
            use = usage(folder, f"trial-{trial.number}.yaml", documents[trial.number])
        rows.append(PolicyRow(trial.number, file, _row_note(record, trial), row, use))
    titles = [(phrase(name), _column_note(record, name, split)) for name, split in columns]
    return PolicyTable(titles, rows, _notes(record))


def _notes(record: StudyRecord) -> list[tuple[str, str]]:
    """What a tie means, how large the selection bias is, and how times were measured."""
    notes, name = [], quality_metric(record)
    if record.assessment.ties and name is not None:
        meaning = (
            f"means that the policy’s {phrase(name)} does not differ significantly from that of the next more "
            "expensive policy, by a paired test on the same examples (p > 0.05)."
        )
        notes.append(("Tied", meaning))
    if record.in_gaps:
        notes.append(("In a gap of the front", gap_line(record)))
    bias = selection_bias_line(record)
    if bias:
        notes.append(("", f"{bias} Trust the report split."))
    elif name is not None and policy_files(record):
        notes.append(("", "No policy of the front is confirmed on the report split yet."))
    return notes + [("", line) for line in time_lines(record)]


def _has_column(record: StudyRecord, name: str) -> bool:
    """True for objectives, and for other metrics whose value differs between policies of the front."""
    measured = [record.trial(number).search.get(name) for number in record.front]
    values = {entry.value for entry in measured if entry}
    return name in record.objectives or len(values) > 1


def _splits(record: StudyRecord, name: str) -> list[Split]:
    has_report = record.metrics[name].unit in EXAMPLE_UNITS or name in record.dense.report
    return ["search", "report"] if has_report else ["search"]


def _column_note(record: StudyRecord, name: str, split: Split) -> str:
    unit = record.metrics[name].unit
    if unit in EXAMPLE_UNITS:
        entry = getattr(record.dense, split).get(name)
        return f"{split} split" + (f", n {entry.n}" if entry else "")
    if unit == "ms":
        return "of dense, timed again (IQR)" if split == "report" else "of dense (IQR)"
    return "of dense"


def _row_note(record: StudyRecord, trial: TrialResult) -> str:
    """The trial's number, whether its model was trained, and the policy that it is tied with."""
    own = f"trial {trial.number}{', trained' if trial.policy.weights is not None else ''}"
    if trial.number in record.in_gaps:
        return f"{own}, in a gap of the front"
    tied_with = record.assessment.ties.get(trial.number)
    if tied_with is None:
        return own
    other = "dense" if tied_with == record.dense.number else f"trial {tied_with}"
    return f"{own}, tied with {other}"


def _cell(record: StudyRecord, trial: TrialResult, name: str, split: Split) -> MeasurementCell:
    entry: Measurement | None = getattr(trial, split).get(name)
    if entry is None:
        return MeasurementCell(missing="not confirmed" if split == "report" else "not measured")
    unit = record.metrics[name].unit
    if unit in EXAMPLE_UNITS:
        gain = gain_over_dense(record, trial, name, split)
        has_gain = unit != "nats" and trial is not record.dense and math.isfinite(gain)
        return MeasurementCell(measurement_text(record, name, entry), signed_points(gain) if has_gain else "")
    share = percent_of_dense(record, trial, name, split)
    text = f"{share:.1f} %{_time_error(entry)}" if math.isfinite(share) else "not a number"
    if isinstance(entry, ModelledTime) and entry.is_predicted:
        return MeasurementCell(text, "predicted")
    spread = "" if entry.iqr is None else f" ({amount(entry.iqr, unit).removesuffix(f' {unit}')})"
    return MeasurementCell(text, amount(entry.value, unit) + spread)


def _time_error(entry: Measurement) -> str:
    """The standard error of a time, in points of dense; empty where it is unknown."""
    if isinstance(entry, ModelledTime):
        return f" ± {100 * entry.estimate.error:.1f}"
    return f" ± {100 * entry.stderr / entry.dense:.1f}" if entry.stderr is not None and entry.dense else ""
