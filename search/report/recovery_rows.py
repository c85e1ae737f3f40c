"""The policies that were trained once a search had ended, as rows of a table: before, after, and how ranks changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...evaluators.base import Split
from ..analysis.baseline_comparison import quality_metric
from ..analysis.study_record import StudyRecord, percent_of_dense, policy_files
from ..space.objectives import first_cost
from ..space.units import EXAMPLE_UNITS
from ..trial.recovery import Recovery
from ..trial.trial_result import TrialResult


@dataclass(frozen=True)
class Change:
    """One metric of a policy before and after its training; None where it was not measured.

    Attributes:
        metric: The metric.
        split: The examples.
        before: With the model's own weights.
        after: With the trained weights.
    """

    metric: str
    split: Split
    before: float | None
    after: float | None

    @property
    def gain(self) -> float | None:
        """After minus before; None where one is missing."""
        return None if self.before is None or self.after is None else self.after - self.before


@dataclass(frozen=True)
class RecoveryRow:
    """One policy that was trained.

    Attributes:
        trial: Its trial.
        file: Its file, where it is on the front after the trainings; None where it is not.
        percent: Its first cost in percent of dense; None without a cost.
        changes: Its metrics on examples, in the order of `columns`.
        ranks: Its place by quality among the trained policies before and after; None where the training failed.
        minutes: Of the training, of all rounds.
        failure: Why the training failed; None where it did not.
        steps: Of the training that counts.
        longer_failed: Why a longer training failed, whose shorter one counts; None where none did.
    """

    trial: int
    file: str | None
    percent: float | None
    changes: list[Change]
    ranks: tuple[int, int] | None
    minutes: float
    failure: str | None
    steps: int = 0
    longer_failed: str | None = None

    def data(self) -> dict[str, Any]:
        """The row as plain data."""
        return {
            "trial": self.trial,
            "policy": f"policies/{self.file}" if self.file else None,
            "measured": [{"metric": one.metric, "split": one.split, "before": one.before, "after": one.after}
                         for one in self.changes],
            "ranks": self.ranks,
            "minutes": self.minutes,
            "failure": self.failure,
            "steps": self.steps,
            "longer_failed": self.longer_failed,
        }  # fmt: skip


def columns(record: StudyRecord) -> list[tuple[str, Split]]:
    """The objectives that are measured on examples, each with the splits that have measurements of trained policies."""
    found = record.recovery.recoveries if record.recovery is not None else ()
    splits: tuple[Split, ...] = ("search", "report")
    return [
        (name, split)
        for name in record.objectives
        if record.metrics[name].unit in EXAMPLE_UNITS
        for split in splits
        if any(one.after is not None and name in measured(one.after, split) for one in found)
    ]


def measured(trial: TrialResult, split: Split) -> Any:
    """The measurements of a trial on a split, by metric."""
    return trial.report if split == "report" else trial.search


def recovery_rows(record: StudyRecord) -> list[RecoveryRow]:
    """The trained policies of a study, most expensive first; empty where none was trained."""
    if record.recovery is None:
        return []
    cost, files, names = first_cost(record.objectives), policy_files(record), columns(record)
    ranks = quality_ranks(record, record.recovery.recoveries)
    rows = []
    for one in record.recovery.recoveries:
        number = one.before.number
        changes = [Change(name, split, value_of(one.before, name, split), value_of(one.after, name, split))
                   for name, split in names]  # fmt: skip
        percent = None if cost is None else percent_of_dense(record, one.before, cost)
        failures = (None, one.failure) if one.after else (one.failure, None)
        row = RecoveryRow(number, files.get(number), percent, changes, ranks.get(number), one.seconds / 60, failures[0],
                          one.steps, failures[1])  # fmt: skip
        rows.append(row)
    return sorted(rows, key=lambda row: (-(row.percent or 0.0), row.trial))


def value_of(trial: TrialResult | None, name: str, split: Split) -> float | None:
    """A metric of a trial; None where it was not measured."""
    entry = None if trial is None else measured(trial, split).get(name)
    return None if entry is None else float(entry.value)


def quality_ranks(record: StudyRecord, recoveries: Sequence[Recovery]) -> dict[int, tuple[int, int]]:
    """By trial, its place by quality on the search split before and after; equal ones share the better place."""
    name = quality_metric(record)
    if name is None:
        return {}
    sign = -1 if record.objectives[name] == "maximize" else 1
    trained = [one for one in recoveries if one.after is not None]
    sides = [{one.before.number: sign * (trial.search[name].value) for one, trial in pairs}
             for pairs in ([(one, one.before) for one in trained],
                           [(one, one.after) for one in trained if one.after is not None])]  # fmt: skip
    before, after = (
        {number: 1 + sum(other < value for other in values.values()) for number, value in values.items()}
        for values in sides
    )
    return {number: (before[number], after[number]) for number in before}
