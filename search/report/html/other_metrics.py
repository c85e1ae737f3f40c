"""The report's table of the metrics that the search did not use, as values for `other_metrics.html`."""

from collections.abc import Mapping

from ....evaluators.base import Measurement
from ...analysis.study_record import StudyRecord, policy_files
from ...space.guide_metrics import QUALITY
from .policies import MeasurementCell, PolicyRow, PolicyTable


def other_metrics_table(record: StudyRecord) -> PolicyTable | None:
    """One row per policy, one column per metric of the report's and the transfer tasks; None where there is none."""
    columns = [*of_tasks(record.dense.report), *of_tasks(record.dense.transfer)]
    if not columns:
        return None
    rows = []
    for number, file in {record.dense.number: None, **policy_files(record)}.items():
        trial = record.trial(number)
        values = of_tasks(trial.report) | of_tasks(trial.transfer)
        cells = [
            MeasurementCell(f"{values[key]:.4g}") if key in values else MeasurementCell(missing="not measured")
            for key in columns
        ]
        rows.append(PolicyRow(number, file, f"trial {number}", cells))
    return PolicyTable([(metric.replace("_", " "), task) for task, metric in columns], rows, [])


def of_tasks(measured: Mapping[str, Measurement]) -> dict[tuple[str, str], float]:
    """The other metrics of a measurement, by task and name."""
    entry = measured.get(QUALITY)
    found = {} if entry is None else entry.detail.get("other_metrics", {})
    return {(task, name): value for task, metrics in found.items() for name, value in metrics.items()}
