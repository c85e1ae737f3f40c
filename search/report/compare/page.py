"""Writes a comparison of studies as one HTML page that needs no other file and no network."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plotly.offline import get_plotlyjs

from ....evaluators.base import Split
from ....policies.errors import PolicyError
from ....policies.policy import Policy
from ...analysis.compare.equal_cost import EqualCost
from ...analysis.compare.studies import ComparedStudy
from ...analysis.study_record import policy_files
from ...places import POLICIES
from ...space.units import amount, phrase
from ...trial.trial_result import TrialResult
from ..html.front_map import FrontMap, front_map
from ..html.page import figure_html, write_at_once
from ..html.templates import render
from ..html.usage import Usage, usage
from ..planes import planes
from .comparison import Comparison
from .figure import front_figure
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


@dataclass(frozen=True)
class PolicyRow:
    """One policy of a front.

    Attributes:
        name: The study's place and the trial, which links in the page lead to.
        label: Its file, or `dense`.
        note: Its trial.
        cells: Each measurement, and its absolute value in small print.
        usage: The commands that use it; None for dense, and where its file is missing.
    """

    name: str
    label: str
    note: str
    cells: list[tuple[str, str]]
    usage: Usage | None


@dataclass(frozen=True)
class SharedTable:
    """Policies of several studies in one table.

    Attributes:
        title: What they are.
        columns: What was measured, and on which split.
        rows: By policy its study, the place that a link leads to, its label, and its cells as in `PolicyRow`.
        lines: Sentences below the table.
    """

    title: str
    columns: list[tuple[str, str]]
    rows: list[tuple[str, str, str, list[tuple[str, str]]]]
    lines: list[str]


@dataclass(frozen=True)
class StudyView:
    """One study: its front as a table and as a layer map; its own report, as seen from the page."""

    name: str
    model: str
    folder: str
    report: str | None
    columns: list[tuple[str, str]]
    rows: list[PolicyRow]
    layer_map: FrontMap


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the page."""
    write_at_once(path, comparison_page(comparison, path.absolute().parent))


def comparison_page(comparison: Comparison, folder: Path | None = None) -> str:
    """The page as one HTML document.

    Args:
        comparison: The comparison.
        folder: Where the page will be, for links to the reports of the studies; None for no links.
    """
    first = comparison.studies[0].record
    drawn = planes(first) if len(comparison.axes) > 1 else []
    titles = [f"{phrase(plane.y)} against {phrase(plane.x)}" for plane in drawn]
    figures = [figure_html(front_figure(comparison, plane), f"plane-{place}") for place, plane in enumerate(drawn)]
    return render(
        "compare.html",
        plotly_library=get_plotlyjs(),
        names=[study.name for study in comparison.studies],
        planes=list(zip(titles, figures, strict=True)),
        volumes=[
            (name, volume.policies, f"{volume.search:.4f}", report_volume(volume))
            for name, volume in comparison.volumes.items()
        ],
        reference=reference_text(comparison),
        is_absolute=comparison.is_absolute,
        combined=_shared_table(comparison, "", comparison.combined, []),
        equal_costs=[_equal_cost(comparison, found) for found in comparison.equal_costs],
        front_notes=front_notes(comparison),
        chosen_by=comparison.chosen_by,
        tests=[pair_sentence(comparison, test) for test in comparison.tests],
        notes=pair_notes(comparison),
        tasks=[
            (split, subset_sentence([*counts.items()], split), counts, _scores(comparison, split))
            for split, (counts, _) in comparison.tasks.items()
        ],
        studies=[_study(comparison, place, folder) for place in range(len(comparison.studies))],
        allowed=comparison.allowed,
        settings=comparison.settings,
    )


def _scores(comparison: Comparison, split: Split) -> list[tuple[str, list[str]]]:
    """What each row of the table of tasks scores on each of them."""
    counts, rows = comparison.tasks[split]
    unit = comparison.studies[0].record.metrics[comparison.quality or ""].unit
    return [(row, [amount(scores[name].value, unit) for name in counts]) for row, scores in rows.items()]


def _columns(comparison: Comparison) -> list[tuple[str, str]]:
    """The headings of the columns of `split_columns`."""
    return [(phrase(name), f"{split} split" if has_report(comparison, name) else "")
            for name, split in split_columns(comparison)]  # fmt: skip


def _equal_cost(comparison: Comparison, found: EqualCost) -> SharedTable:
    """A smaller model beside bigger ones at its cost."""
    smaller = (found.smaller, found.smaller.record.dense)
    bigger = [(one, found.best[one.name]) for one in comparison.studies if one.name in found.best]
    sentences = equal_cost_sentences(comparison, found)
    return _shared_table(comparison, equal_cost_title(comparison, found), [smaller, *bigger], sentences)


def _shared_table(
    comparison: Comparison, title: str, policies: Sequence[tuple[ComparedStudy, TrialResult]], lines: list[str]
) -> SharedTable:
    places = {study.name: place for place, study in enumerate(comparison.studies)}
    rows = [
        (
            study.name,
            f"{places[study.name]}-{trial.number}",
            policy_label(study, trial),
            [cell(comparison, study, trial, *column) for column in split_columns(comparison)],
        )
        for study, trial in policies
    ]
    return SharedTable(title, _columns(comparison), rows, lines)


def _study(comparison: Comparison, place: int, folder: Path | None) -> StudyView:
    study = comparison.studies[place]
    rows = []
    for number in dict.fromkeys([study.record.dense.number, *study.record.front]):
        trial = study.record.trial(number)
        cells = [cell(comparison, study, trial, *column) for column in split_columns(comparison)]
        label = "dense" if number == study.record.dense.number else study.files.get(number, f"trial {number}")
        chosen = comparison.chosen.get(study.name)
        note = f"trial {number}" + (", chosen" if chosen is not None and chosen.number == number else "")
        rows.append(PolicyRow(f"{place}-{number}", label, note, cells, _usage(study, trial)))
    record = study.record
    drawn = front_map(record, policy_files(record), f"{place}-")
    report = study.folder / "report.html"
    link = os.path.relpath(report.absolute(), folder) if folder is not None and report.exists() else None
    return StudyView(study.name, record.model_id, str(study.folder), link, _columns(comparison), rows, drawn)


def _usage(study: ComparedStudy, trial: TrialResult) -> Usage | None:
    """The commands that use a policy, where its file holds this policy: a study that goes on has older files."""
    file = study.files.get(trial.number)
    if file is None:
        return None
    try:
        is_current = Policy.load(study.folder / POLICIES / file).fingerprint == trial.policy.fingerprint
    except PolicyError:
        return None
    return usage(study.folder, file) if is_current else None
