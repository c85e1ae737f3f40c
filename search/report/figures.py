"""The interactive figures of a report, drawn with plotly."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from ..analysis.study_record import StudyRecord
from ..space.units import amount, phrase, unit_of, versus_dense
from ..trial.trial_result import TrialResult
from .html.templates import render
from .layer_map import describe
from .planes import Dot, Plane, axis_title, baseline_dots, divergence_limit, dots, staircase

HOVER_WIDTH, HOVER_LINES = 64, 8
FONT = "system-ui, sans-serif"
COLOURS = {"dominated": "#8f959e", "infeasible": "#8f959e", "front": "#3b8ed0", "confirmed": "#d55e00",
           "dense": "#e69f00", "baseline": "#8e5bb5"}  # fmt: skip
MARKERS: dict[str, dict[str, Any]] = {
    "dominated": {"symbol": "circle", "size": 6, "opacity": 0.55},
    "infeasible": {"symbol": "x-thin-open", "size": 6, "opacity": 0.55},
    "front": {"symbol": "circle", "size": 10},
    "dense": {"symbol": "star", "size": 16},
}
BASELINE_SYMBOLS = ("triangle-up", "square", "triangle-down", "pentagon", "cross", "hexagon2", "bowtie", "hourglass",
                    "triangle-left", "triangle-right", "star-diamond", "octagon")  # fmt: skip


def plane_figure(record: StudyRecord, plane: Plane) -> go.Figure:
    """The trials in one plane; pointing at one shows its policy."""
    found = dots(record, plane)
    figure = go.Figure(layout=layout(axis_title(plane.x), axis_title(plane.y)))
    steps = staircase(found, record, plane)
    line = {"color": COLOURS["front"], "width": 2, "shape": "hv"}
    for kind in ("dominated", "infeasible", "front", "confirmed", "dense"):
        if kind == "front" and steps:
            xs, ys = [dot.x for dot in steps], [dot.y for dot in steps]
            figure.add_scatter(x=xs, y=ys, mode="lines", line=line, hoverinfo="skip", showlegend=False)
        group = [dot for dot in found if dot.role == kind or (kind == "confirmed" and dot.confirmed)]
        if group:
            figure.add_trace(_confirmed(record, group) if kind == "confirmed" else _markers(record, group, kind))
    if found and unit_of(plane.y) == "nats":
        limit = divergence_limit(found)
        figure.update_yaxes(range=[-limit / 20, limit])
    baselines = baseline_dots(record, plane)
    for place, name in enumerate(result.name for result in record.assessment.baseline_results):
        group = [dot for dot in baselines if name in dot.trial.baseline_settings]
        symbol = f"{BASELINE_SYMBOLS[place % len(BASELINE_SYMBOLS)]}-open"
        marker = {"color": COLOURS["baseline"], "symbol": symbol, "size": 13, "line": {"width": 1.5}}
        figure.add_trace(_points(record, group, name=name, marker=marker, showlegend=True))
    return figure


def hypervolume_figure(record: StudyRecord) -> go.Figure:
    """Hypervolume after each finished trial."""
    has_all = len(record.hypervolume) == len(record.trials)
    numbers = [trial.number for trial in record.trials if has_all or trial.state != "running"]
    line = {"color": COLOURS["front"], "width": 2.5, "shape": "hv"}
    hover = "after trial %{x}: %{y:.4f}<extra></extra>"
    figure = go.Figure(layout=layout("trial", "hypervolume"))
    curve = {"x": numbers, "y": list(record.hypervolume), "line": line, "hovertemplate": hover}
    return figure.add_scatter(mode="lines", showlegend=False, **curve)


def hover_text(record: StudyRecord, trial: TrialResult) -> str:
    """What stands beside the pointer: the trial, its measurements and its policy, in plotly's HTML."""
    lines = []
    for name in (name for name in record.metrics if name in trial.search):
        entry, dense_entry, unit = trial.search[name], record.dense.search.get(name), record.metrics[name].unit
        dense = entry.dense if entry.dense is not None else dense_entry.value if dense_entry else math.nan
        part = f", expected from {entry.n} of {entry.detail['total']} examples" if entry.is_partial else ""
        lines.append(f"{phrase(name)}: {amount(entry.value, unit)}, {versus_dense(entry.value, dense, unit)}{part}")
        if name in trial.report:
            source = "timed again" if unit == "ms" else "report split"
            lines.append(f"{phrase(name)}, {source}: {amount(trial.report[name].value, unit)}")
    # No-break spaces within an entry, so that lines break between entries alone.
    entries = [entry.replace(" ", "\u00a0") for entry in describe(trial.policy)]
    policy = textwrap.wrap(", ".join(entries) or "dense", HOVER_WIDTH)
    policy = policy if len(policy) <= HOVER_LINES else [*policy[:HOVER_LINES], "…"]
    baselines = [f"{name}: {setting}" for name, setting in trial.baseline_settings.items()]
    return render("hover.html", trial=trial.number, lines=[*baselines, *lines, "", *policy])


def _markers(record: StudyRecord, group: Sequence[Dot], kind: str) -> go.Scatter:
    return _points(record, group, marker={"color": COLOURS[kind], **MARKERS[kind]}, showlegend=False)


def _points(record: StudyRecord, group: Sequence[Dot], **style: Any) -> go.Scatter:
    return go.Scatter(
        x=[dot.x for dot in group], y=[dot.y for dot in group], mode="markers", **_pointed_at(record, group), **style
    )


def _pointed_at(record: StudyRecord, group: Sequence[Dot]) -> dict[str, Any]:
    """What is shown beside a point, and the numbers of the trials, by which the page finds their rows."""
    texts = [hover_text(record, dot.trial) for dot in group]
    return {"hovertext": texts, "hoverinfo": "text", "customdata": [dot.trial.number for dot in group]}


def _confirmed(record: StudyRecord, group: Sequence[Dot]) -> go.Scatter:
    places = [dot.confirmed for dot in group if dot.confirmed]
    errors = {"type": "data", "array": [dot.stderr or 0 for dot in group], "thickness": 1, "width": 3}
    return go.Scatter(
        x=[x for x, _ in places],
        y=[y for _, y in places],
        error_y=errors,
        mode="markers",
        marker={"color": COLOURS["confirmed"], "symbol": "diamond-open", "size": 8},
        showlegend=False,
        **_pointed_at(record, group),
    )


def layout(x: str, y: str, legend: str = "baselines: ") -> dict[str, Any]:
    """A transparent layout: the page's CSS colours text and grid lines, for light and dark mode.

    Args:
        x: Title of the x axis.
        y: Title of the y axis.
        legend: What stands before the legend.
    """
    axis = {"zeroline": False, "gridcolor": "#8884", "automargin": True, "ticks": "", "ticklabelstandoff": 6}
    return {
        "template": "none",
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "title": {"text": legend}},
        "margin": {"l": 56, "r": 16, "t": 16, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12},
        "hoverlabel": {"align": "left", "bgcolor": "#20242b", "font": {"color": "#fff", "family": FONT}},
        "xaxis": axis | {"title": {"text": x, "standoff": 12}},
        "yaxis": axis | {"title": {"text": y, "standoff": 12}},
    }
