"""What `compare` prints on standard output: a table, or JSON."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from ....evaluators.base import Split
from ...analysis.compare.fronts import coordinate
from ...analysis.compare.studies import ComparedStudy
from ...space.units import amount, phrase
from ..console import Output
from .comparison import Comparison
from .wording import (
    cell,
    front_notes,
    has_report,
    pair_notes,
    pair_sentence,
    reference_text,
    report_volume,
    subset_sentence,
)

MAX_SETTINGS = 12  # settings that the terminal lists


def print_comparison(comparison: Comparison) -> None:
    """Print one row per study, then the tests and what differs between the spaces."""
    console = Output()
    console.print(study_table(comparison))
    if comparison.chosen:
        console.print(chosen_table(comparison))
    lines = [f"Hypervolumes against {reference_text(comparison)}. Chosen: {comparison.chosen_by}."]
    lines += front_notes(comparison)
    lines += [pair_sentence(comparison, test) for test in comparison.tests] + pair_notes(comparison)
    for line in lines:
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


def chosen_table(comparison: Comparison) -> Table:
    """The policy of each study that is tested."""
    columns: list[tuple[str, Split]] = []
    for name in comparison.axes:
        columns += [(name, "search"), (name, "report")] if has_report(comparison, name) else [(name, "search")]
    headings = (f"{phrase(name)}\n{split if has_report(comparison, name) else ''}" for name, split in columns)
    table = _table("study", "chosen", *headings)
    for study in comparison.studies:
        trial = comparison.chosen.get(study.name)
        if trial is not None:
            label = Path(study.files.get(trial.number, f"trial {trial.number}")).stem
            table.add_row(study.name, label, *(cell(comparison, study, trial, *column)[0] for column in columns))
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
