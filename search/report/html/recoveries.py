"""The report's table of trained policies, as values for `recoveries.html`."""

from dataclasses import dataclass

from ...analysis.study_record import StudyRecord
from ...space.units import amount, phrase, signed_points, unit_of
from ..recovery_rows import Change, columns, recovery_rows
from ..sentences import recovery_line
from .policies import MeasurementCell


@dataclass(frozen=True)
class TrainedRow:
    """One trained policy.

    Attributes:
        trial: Its trial.
        file: Its file; empty where it is not on the front.
        cost: Its first cost in percent of dense; empty without a cost.
        cells: A cell for each metric and split, the ranks, and the minutes.
        failure: Why its training failed; empty where it did not.
    """

    trial: int
    file: str
    cost: str
    cells: list[MeasurementCell]
    failure: str


@dataclass(frozen=True)
class TrainedTable:
    """The whole table.

    Attributes:
        columns: Title and note of each column.
        rows: The trained policies, most expensive first.
        line: What all trainings together changed.
        data: What the policies were trained on.
    """

    columns: list[tuple[str, str]]
    rows: list[TrainedRow]
    line: str
    data: str


def trained_table(record: StudyRecord) -> TrainedTable | None:
    """One row for each policy that was trained; None where none was."""
    if record.recovery is None:
        return None
    titles = [(phrase(name), f"before → after, {split} split") for name, split in columns(record)]
    titles += [("rank", "before → after, search split"), ("training", "minutes")]
    rows = []
    for row in recovery_rows(record):
        cost = "" if row.percent is None else f"{row.percent:.1f} % of dense"
        ranks = MeasurementCell(
            f"{row.ranks[0]} → {row.ranks[1]}" if row.ranks else "", missing="" if row.ranks else "–"
        )
        note = f"{row.steps} steps" + (f"; a longer one failed: {row.longer_failed}" if row.longer_failed else "")
        cells = [*map(change_cell, row.changes), ranks, MeasurementCell(f"{row.minutes:.1f}", note)]
        rows.append(TrainedRow(row.trial, row.file or "", cost, cells, row.failure or ""))
    data = record.recovery.settings["data"] or "the training split of the searched tasks"
    return TrainedTable(titles, rows, recovery_line(record), data.rpartition("/")[2])


def change_cell(change: Change) -> MeasurementCell:
    """One metric before and after, with the difference in small print."""
    if change.before is None and change.after is None:
        return MeasurementCell(missing="not measured")
    unit = unit_of(change.metric)
    sides = ("–" if value is None else amount(value, unit) for value in (change.before, change.after))
    note = ""
    if change.gain is not None:
        note = signed_points(change.gain) if unit == "fraction" else f"{change.gain:+.4f} {unit}"
    return MeasurementCell(" → ".join(sides), note)
