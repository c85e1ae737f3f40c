"""What `compare` prints on standard output: a table, or JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from ....evaluators.base import Split
from ...analysis.compare.fronts import coordinate
from ...analysis.compare.studies import ComparedStudy
from ...space.units import amount, phrase
from ...trial.pareto import objective_value
from ...trial.trial_result import TrialResult
from ..console import Output
from .comparison import Comparison
from .wording import (
    cell,
    equal_cost_sentences,
    equal_cost_title,
    front_notes,
    has_report,
    pair_notes,
    pair_sentence,
    policy_label,
    reference_text,
    report_volume,
    split_columns,
    subset_sentence,
)

MAX_SETTINGS = 12  # settings that the terminal lists


def print_comparison(comparison: Comparison) -> None:
    """Print one row per study, then the tests and what differs between the spaces."""
    console = Output()
    console.print(study_table(comparison))
    chosen = [(one, comparison.chosen[one.name]) for one in comparison.studies if one.name in comparison.chosen]
    if chosen:
        console.print(policies_table(comparison, "chosen", chosen))
    console.print(policies_table(comparison, "combined front", comparison.combined))
    lines = [f"Hypervolumes against {reference_text(comparison)}. Chosen: {comparison.chosen_by}."]
    lines += front_notes(comparison)
    lines += [pair_sentence(comparison, test) for test in comparison.tests] + pair_notes(comparison)
    for line in lines:
        console.print(line, markup=False, highlight=False)
    for found in comparison.equal_costs:
        bigger = [(one, found.best[one.name]) for one in comparison.studies if one.name in found.best]
        console.print(f"{equal_cost_title(comparison, found)}:", markup=False, highlight=False)
        smaller = (found.smaller, found.smaller.record.dense)
        console.print(policies_table(comparison, "policy", [smaller, *bigger]))
        for line in equal_cost_sentences(comparison, found):
            console.print(line, markup=False, highlight=False)
    for split, (counts, _) in comparison.tasks.items():
        console.print(task_scores(comparison, split))
        console.print(subset_sentence([*counts.items()], split), markup=False, highlight=False)
    for title, rows in {"allowed in layers": comparison.allowed, "setting": comparison.settings}.items():
        if rows:
            console.print(differences(comparison, title, rows))
    if len(comparison.settings) > MAX_SETTINGS:
        more = len(comparison.settings) - MAX_SETTINGS
        console.print(f"{more} more settings differ; --json and the page list all", highlight=False)


def study_table(comparison: Comparison) -> Table:
    """Each study's front."""
    table = _table("study", "policies\non the front", "hypervolume\nsearch", "hypervolume\nreport")
    for name, volume in comparison.volumes.items():
        table.add_row(name, str(volume.policies), f"{volume.search:.4f}", report_volume(volume))
    return table


def policies_table(
    comparison: Comparison, heading: str, policies: Sequence[tuple[ComparedStudy, TrialResult]]
) -> Table:
    """Policies of several studies."""
    headings = (f"{phrase(name)}\n{split if has_report(comparison, name) else ''}"
                for name, split in split_columns(comparison))  # fmt: skip
    table = _table("study", heading, *headings)
    for study, trial in policies:
        cells = (cell(comparison, study, trial, *column)[0] for column in split_columns(comparison))
        table.add_row(study.name, policy_label(study, trial), *cells)
    return table


def task_scores(comparison: Comparison, split: Split) -> Table:
    """One column per task."""
    counts, rows = comparison.tasks[split]
    table = _table(f"{phrase(comparison.quality or '')}, {split} split")
    for name, count in counts.items():
        table.add_column(f"{name} (n {count})", justify="right")
    unit = comparison.studies[0].record.metrics[comparison.quality or ""].unit
    for row, scores in rows.items():
        table.add_row(row, *(amount(scores[name].value, unit) for name in counts))
    return table


def differences(comparison: Comparison, title: str, rows: Any) -> Table:
    """One column per study."""
    table = _table(title, *(study.name for study in comparison.studies))
    for key, cells in [*rows.items()][:MAX_SETTINGS]:
        table.add_row(key, *cells)
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place == 0 else "right", overflow="fold")
    return table


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    """A comparison as plain data, for JSON."""
    return {
        "axes": {name: comparison.studies[0].record.objectives[name] for name in comparison.axes},
        "left_out": [*comparison.left_out],
        "reference": dict(comparison.reference),
        "studies": [study_data(comparison, study) for study in comparison.studies],
        "combined_front": [{"study": study.name, "trial": trial.number, **absolute_values(comparison, study, trial)}
                           for study, trial in comparison.combined],
        "equal_costs": [
            {
                "metric": found.metric,
                "smaller": found.smaller.name,
                "best": {name: trial.number for name, trial in found.best.items()},
                "tests": [asdict(test) for test in found.tests],
                "notes": [*found.untested],
            }
            for found in comparison.equal_costs
        ],
        "quality": comparison.quality,
        "tests": [asdict(test) for test in comparison.tests],
        "notes": front_notes(comparison) + pair_notes(comparison),
        "tasks": {
            split: {"examples": dict(counts), "scores": {row: {task: entry.value for task, entry in scores.items()}
                                                         for row, scores in rows.items()}}
            for split, (counts, rows) in comparison.tasks.items()
        },
        "allowed": {key: [*cells] for key, cells in comparison.allowed.items()},
        "settings": {key: [*cells] for key, cells in comparison.settings.items()},
    }  # fmt: skip


def absolute_values(comparison: Comparison, study: ComparedStudy, trial: TrialResult) -> dict[str, float]:
    """The objectives of a policy on the search split, in the units of their metrics."""
    record = study.record
    return {name: objective_value(name, trial.search[name], record.dense.search[name]) for name in comparison.axes}


def study_data(comparison: Comparison, study: ComparedStudy) -> dict[str, Any]:
    """One study as plain data; costs are shares, as in the reference point."""
    chosen = comparison.chosen.get(study.name)
    return {
        "name": study.name,
        "folder": str(study.folder),
        "model": study.record.model_id,
        **asdict(comparison.volumes[study.name]),
        "chosen": None if chosen is None else chosen.number,
        "front": [
            {
                "trial": number,
                "file": study.files.get(number),
                **{name: coordinate(comparison.studies[0], study, study.record.trial(number), name, "search")
                   for name in comparison.axes},
            }
            for number in study.record.front
        ],
    }  # fmt: skip
