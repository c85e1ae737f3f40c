"""The report's table that compares the search with the published baselines, as values for `baselines.html`."""

from dataclasses import dataclass

from ...analysis.baseline_comparison import confirmed_hypervolume, quality_metric, with_expected_scores
from ...analysis.study_record import BaselineComparison, BaselineResult, StudyRecord, percent_of_dense, policy_files
from ...baselines.registry import SOURCES
from ...space.units import amount, phrase, signed_points
from ...study.expected_results import ScorePredictor
from ...trial.trial_result import IntervalEstimate


@dataclass(frozen=True)
class TableCell:
    """One cell of the table.

    Attributes:
        lines: Texts, each with a note in small print beneath; None for no note.
        link: The trial that the first text links to; None for plain text.
    """

    lines: list[tuple[str, str | None]]
    link: int | None = None

    @classmethod
    def of(cls, text: str, note: str | None = None, link: int | None = None) -> "TableCell":
        """A cell of one text."""
        return cls([(text, note)], link)


@dataclass(frozen=True)
class BaselineRows:
    """One baseline.

    Attributes:
        name: Its name.
        source: Where it was published.
        arxiv: The arXiv number of the source; empty where it has none.
        settings: How many of its policies were tried.
        volume: Hypervolume of its own front.
        rows: One row per policy that is shown; none where no policy that keeps the constraints is better than dense.
    """

    name: str
    source: str
    arxiv: str
    settings: int
    volume: TableCell
    rows: list[list[TableCell]]


@dataclass(frozen=True)
class BaselineTable:
    """The whole table.

    Attributes:
        columns: Title and note of each column.
        num_policies: Policies on the front of the search.
        volume: Hypervolume of the front of the search.
        results: The baselines.
    """

    columns: list[tuple[str, str]]
    num_policies: int
    volume: TableCell
    results: list[BaselineRows]


def baseline_table(record: StudyRecord) -> BaselineTable | None:
    """The search beside each baseline; None where the search started from no baselines."""
    if not record.assessment.baseline_results:
        return None
    name = quality_metric(record)
    costs = [objective for objective in record.objectives if objective != name]
    columns = [("baseline", ""), ("hypervolume", "search split"), ("setting", "")]
    columns += [(phrase(cost), "of dense") for cost in costs]
    if name is not None:
        columns += [(phrase(name), "search split"), ("the search", "at no more cost"), ("gain", "search split")]
    front = [record.trial(number) for number in policy_files(record)]
    confirmed = sum(bool(trial.report) for trial in front)
    return BaselineTable(
        columns=columns,
        num_policies=len(front),
        volume=_volume(record.hypervolume[-1], confirmed_hypervolume(record, front), confirmed, len(front)),
        results=[_baseline(record, result, costs, name) for result in record.assessment.baseline_results],
    )


def _baseline(record: StudyRecord, result: BaselineResult, costs: list[str], name: str | None) -> BaselineRows:
    source, _, arxiv = SOURCES.get(result.name, "").partition("arXiv:")
    return BaselineRows(
        name=result.name,
        source=source,
        arxiv=arxiv,
        settings=result.settings,
        volume=_volume(result.hypervolume, result.report, result.confirmed, len(result.front)),
        rows=[_row(record, result.name, comparison, costs, name) for comparison in result.beside],
    )


def _volume(search: float, report: float | None, confirmed: int, count: int) -> TableCell:
    """A hypervolume on both splits, and of how many policies where not all are confirmed."""
    part = "" if confirmed == count else f" ({confirmed} of {count})"
    return TableCell.of(f"{search:.4f}", "" if report is None else f"report {report:.4f}{part}")


def _row(
    record: StudyRecord, baseline: str, comparison: BaselineComparison, costs: list[str], name: str | None
) -> list[TableCell]:
    """A baseline's policy, its costs, and the policy of the front that replaces it."""
    trial = with_expected_scores(record, record.trial(comparison.trial), ScorePredictor.fit(record.trials))
    row = [TableCell.of(trial.baseline_settings[baseline], f"trial {trial.number}")]
    row += [TableCell.of(f"{percent_of_dense(record, trial, cost):.0f} %") for cost in costs]
    if name is None:
        return row
    unit, entry = record.metrics[name].unit, trial.search[name]
    part = f"from {entry.n} of {entry.detail['total']}" if entry.is_partial else ""
    row.append(TableCell.of(amount(entry.value, unit), part))
    if comparison.best == comparison.trial:
        replacement = "itself" if comparison.best in record.front else "nothing better"
        return [*row, TableCell.of(replacement), TableCell([])]
    best = record.trial(comparison.best)
    notes = [f"{percent_of_dense(record, best, cost):.0f} %" for cost in costs[:1]] + [*best.baseline_settings]
    row.append(TableCell.of(f"trial {best.number}", ", ".join(notes), link=best.number))
    splits = {"": comparison.search, "report ": comparison.report}
    gains = [(split, *_estimate(gain, unit)) for split, gain in splits.items() if gain is not None]
    return [*row, TableCell([(f"{split}{text}", interval) for split, text, interval in gains])]


def _estimate(estimate: IntervalEstimate, unit: str) -> tuple[str, str]:
    """A gain and its interval as text."""

    def formatted(value: float) -> str:
        return signed_points(value) if unit == "fraction" else f"{value:+.3g} {unit}"

    ends = (formatted(end).removesuffix(" points") for end in (estimate.low, estimate.high) if end is not None)
    return formatted(estimate.value), " to ".join(ends)
