"""The report of a study: one self-contained page, one picture, one table of all trials."""

import csv
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from ...evaluators.base import Measurement
from ..analysis.baseline_comparison import quality_metric
from ..analysis.study_record import StudyRecord, policy_files
from ..space.units import phrase
from ..trial.trial_result import TrialResult
from .figures import begun_with, dots, hypervolume_figure, plane_figure, planes, save_front
from .html_baselines import rules_section
from .html_failures import failures_section
from .html_layer_map import map_section
from .layer_map import describe
from .sections import headline, headline_rule, measured_section, nothing_found, reference_text, table_section, tiles
from .sentences import assessment_lines, selection_bias_line
from .time_sentences import time_lines

TEMPLATE = "template.html"
TIED = (
    "<b>Tied</b> is a policy whose {} cannot be told from that of the next dearer one: in a paired test on the "
    "same examples, chance alone makes a difference as large with a probability above 5 %."
)


def write_report(record: StudyRecord, folder: Path) -> None:
    """Write `report.html`, which needs no other file and no network, and `front.png`."""
    (folder / "report.html").write_text(page(record), encoding="utf-8")
    save_front(record, folder / "front.png")


def write_trials_csv(record: StudyRecord, path: Path) -> None:
    """Write one row a trial; figures are written in full, an empty field was not measured."""
    rows = [_row(record, trial) for trial in record.trials]
    columns = dict.fromkeys(key for row in rows for key in row)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(columns), restval="")
        writer.writeheader()
        writer.writerows(rows)


def page(record: StudyRecord) -> str:
    """The whole report as one HTML document."""
    return Template((files(__package__) / TEMPLATE).read_text(encoding="utf-8")).substitute(
        name=escape(record.name),
        model=escape(record.model_id),
        headline=escape(headline(record)),
        tiles=tiles(record),
        rule=headline_rule(record),
        note=nothing_found(record),
        plotly=get_plotlyjs(),
        planes="".join(_plane(record, index) for index in range(len(planes(record)))),
        map=map_section(record) or "<p>There is no policy to draw.</p>",
        table=table_section(record) + table_notes(record),
        rules=rules_section(record),
        hypervolume=_div(hypervolume_figure(record), "hypervolume"),
        reference=reference_text(record),
        assessment="".join(f"<p>{escape(line)}</p>" for line in assessment_lines(record)),
        measured=measured_section(record) + failures_section(record),
        space=escape(record.space_text),
    )


def table_notes(record: StudyRecord) -> str:
    """What is to be read beside the table: what tied means, and how much of what it shows is luck."""
    notes, name = [], quality_metric(record)
    if record.assessment.ties and name is not None:
        notes.append(TIED.format(phrase(name)))
    curse = selection_bias_line(record)
    if curse:
        notes.append(f"<b>Winner’s curse.</b> {escape(curse)} Trust the report split.")
    elif name is not None and policy_files(record):
        notes.append("No policy of the front is confirmed on the report split yet.")
    notes += [escape(line) for line in time_lines(record)]
    return "".join(f"<p>{note}</p>" for note in notes)


def _plane(record: StudyRecord, index: int) -> str:
    plane = planes(record)[index]
    drawn = {dot.trial.number for dot in (*dots(record, plane), *begun_with(record, plane))}
    absent = sum(trial.state == "complete" and trial.number not in drawn for trial in record.trials)
    note = f"<figcaption>Stopped before both were measured on all examples, hence not drawn: {absent}.</figcaption>"
    return f"<figure>{_div(plane_figure(record, plane), f'plane-{index}')}{note if absent else ''}</figure>"


def _div(figure: go.Figure, name: str) -> str:
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
        "worker": trial.worker or "",
        "failure": trial.failure or "",
        "seconds": trial.seconds.get("total", ""),
    }
    for name in record.metrics:
        row |= _fields(name, trial.search.get(name)) | _fields(f"report_{name}", trial.report.get(name))
    return row | {f"beyond_{name}": excess for name, excess in trial.violations.items()}


def _fields(name: str, entry: Measurement | None) -> dict[str, Any]:
    if entry is None:
        return {}
    spread = {"n": entry.n, "dense": entry.dense, "stderr": entry.stderr, "iqr": entry.iqr}
    return {name: entry.value} | {f"{name}_{key}": value for key, value in spread.items() if value is not None}
