"""Writes a study's report: one self-contained HTML page, one picture, one CSV table of all trials."""

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from ....evaluators.base import Measurement
from ...analysis.study_record import StudyRecord, all_files
from ...trial.modelled_time import ModelledTime
from ...trial.trial_result import TrialResult
from ..figures import hypervolume_figure, plane_figure
from ..layer_map import describe
from ..planes import Plane, axis_title, baseline_dots, dots, planes
from ..sections import empty_front, headline, headline_criterion, measured_sections, reference_text, tiles
from ..sentences import assessment_lines
from .baselines import baseline_table
from .failures import failures
from .front_map import front_map
from .kept_patches import kept_patches
from .live import LiveState, live_panel
from .other_metrics import other_metrics_table
from .policies import policy_table
from .recoveries import trained_table
from .templates import render
from .transfer import transfer_table


@dataclass(frozen=True)
class PlaneView:
    """The figure of two objectives, and how many finished trials it does not show."""

    title: str
    html: str
    absent: int


def write_report(record: StudyRecord, folder: Path) -> None:
    """Write `report.html`, which needs no other file and no network, and `front.png`."""
    from ..picture import save_front  # matplotlib takes a second, which a search that runs does not spend.

    write_page(record, folder)
    save_front(record, folder / "front.png")


def write_page(record: StudyRecord, folder: Path, live: LiveState | None = None) -> None:
    """Write `report.html` at once, so that a browser never reads a part of it.

    Args:
        record: The study.
        folder: Its folder.
        live: What the search is doing; None where it has ended.
    """
    write_at_once(folder / "report.html", page(record, folder, live))


def write_at_once(path: Path, text: str) -> None:
    """Write a text file that is either the old one or the whole new one, also for a reader that opens it meanwhile."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_trials_csv(record: StudyRecord, path: Path) -> None:
    """Write one row per trial, numbers in full precision; an empty field was not measured, but may be predicted."""
    rows = trial_rows(record)
    columns = dict.fromkeys(key for row in rows for key in row)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(columns), restval="")
        writer.writeheader()
        writer.writerows(rows)


def trial_rows(record: StudyRecord) -> list[dict[str, Any]]:
    """One row per trial by column; None, or a missing column, was not measured."""
    return [_row(record, trial) for trial in record.trials]


def page(record: StudyRecord, folder: Path = Path(), live: LiveState | None = None) -> str:
    """The whole report as one HTML document.

    Args:
        record: The study.
        folder: Its folder, for the commands that use a policy.
        live: What the search is doing; None where it has ended.
    """
    return render(
        "page.html",
        name=record.name,
        model=record.model_id,
        live=None if live is None else live_panel(record, live),
        headline=headline(record),
        headline_criterion=headline_criterion(record),
        tiles=tiles(record),
        empty_front=empty_front(record),
        plotly_library=get_plotlyjs(),
        planes=[_plane(record, plane, index) for index, plane in enumerate(planes(record))],
        has_gaps=bool(record.in_gaps),
        layer_map=front_map(record, all_files(record)),
        table=policy_table(record, folder, None if live is None else live.documents),
        other_metrics=other_metrics_table(record),
        trained=trained_table(record),
        patches=kept_patches(record),
        transfer=transfer_table(record),
        baselines=baseline_table(record.searched),
        hypervolume=figure_html(hypervolume_figure(record.searched), "hypervolume"),
        reference=reference_text(record),
        assessment=assessment_lines(record),
        measured=measured_sections(record),
        failures=failures(record),
        space=record.space_text,
    )


def _plane(record: StudyRecord, plane: Plane, index: int) -> PlaneView:
    drawn = {dot.trial.number for dot in (*dots(record, plane), *baseline_dots(record, plane))}
    absent = sum(trial.state == "complete" and trial.number not in drawn for trial in record.trials)
    title = f"{axis_title(plane.y)} against {axis_title(plane.x)}"
    return PlaneView(title, figure_html(plane_figure(record, plane), f"plane-{index}"), absent)


def figure_html(figure: go.Figure, name: str) -> str:
    """A figure as an element of a page that holds plotly's library."""
    config = {"displayModeBar": False, "responsive": True}
    return figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=config, default_height="26rem")


def _row(record: StudyRecord, trial: TrialResult) -> dict[str, Any]:
    row: dict[str, Any] = {
        "trial": trial.number,
        "state": trial.state,
        "feasible": trial.feasible,
        "front": trial.number in record.front,
        "fingerprint": trial.policy.fingerprint,
        "policy": ", ".join(describe(trial.policy)),
        **({} if record.recovery is None else {"trained": trial.policy.weights is not None}),
        "worker": trial.worker,
        "failure": trial.failure,
        "seconds": trial.seconds.get("total"),
    }
    for name in record.metrics:
        row |= _fields(name, trial.search.get(name)) | _fields(f"report_{name}", trial.report.get(name))
    return row | {f"beyond_{name}": excess for name, excess in trial.violations.items()}


def _fields(name: str, entry: Measurement | None) -> dict[str, Any]:
    if entry is None:
        return {}
    if isinstance(entry, ModelledTime) and entry.is_predicted:
        return {f"{name}_predicted": entry.value}
    columns = {"n": entry.n, "dense": entry.dense, "stderr": entry.stderr, "iqr": entry.iqr}
    return {name: entry.value} | {f"{name}_{key}": value for key, value in columns.items() if value is not None}
