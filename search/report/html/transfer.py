"""The report's table of transfer tasks, as values for `transfer.html`."""

from ....evaluators.base import Measurement
from ...analysis.study_record import StudyRecord, policy_files
from ...analysis.transfer import TaskAccuracy, Transfer, accuracy_by_task, searched_accuracy
from ...space.guide_metrics import QUALITY
from ...space.units import with_error
from ..sentences import share_text, transfer_line
from .policies import MeasurementCell, PolicyRow, PolicyTable


def transfer_table(record: StudyRecord) -> PolicyTable | None:
    """One row per policy of the front, one column per task; None where there are no transfer tasks."""
    found = record.assessment.transfer
    if found is None:
        return None
    dense = accuracy_by_task(record.dense.transfer)
    searched = searched_accuracy(record.dense)
    split = "report" if QUALITY in record.dense.report else "search"
    columns = [("searched tasks", f"{split} split, n {searched.n}")]
    columns += [(name, f"{task.metric.partition(',')[0]}, n {task.n}") for name, task in dense.items()]
    cells = [MeasurementCell(_value(searched)), *(MeasurementCell(_value(task)) for task in dense.values())]
    rows = [PolicyRow(record.dense.number, None, f"trial {record.dense.number}", cells)]
    for number, file in policy_files(record).items():
        rows.append(PolicyRow(number, file, f"trial {number}", _cells(record, found, number)))
    return PolicyTable(columns, rows, [("", transfer_line(record))])


def _cells(record: StudyRecord, found: Transfer, number: int) -> list[MeasurementCell]:
    """The kept share of one policy on the searched tasks and on each transfer task."""
    if number not in found.kept:
        return [MeasurementCell(missing="not measured")] * (1 + len(found.tasks))
    trial = record.trial(number)
    values: list[Measurement | TaskAccuracy] = [searched_accuracy(trial), *accuracy_by_task(trial.transfer).values()]
    shares = [found.searched[number], *found.kept[number].values()]
    return [
        MeasurementCell(share_text(share), _value(value))
        if share is not None
        else MeasurementCell(missing="dense is not above chance level")
        for share, value in zip(shares, values, strict=True)
    ]


def _value(measured: Measurement | TaskAccuracy) -> str:
    return with_error(measured.value, measured.stderr, "fraction")
