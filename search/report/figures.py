"""The figures of a report: interactive ones with plotly, and the one picture for pasting with matplotlib.

Every axis is in percent of the dense model's figure on the same examples, so that the search split and the report
split, and latencies of different hours, stand in one picture; but for a divergence, of which the dense model has none.
"""

import html
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ...evaluators.base import Direction, Split
from ..analysis.baseline_comparison import as_told
from ..analysis.study_record import StudyRecord, percent_of_dense
from ..space.units import versus_dense, amount, phrase, unit_of
from ..study.expected_results import Known
from ..trial.hypervolume import DIVERGENCE_CAP
from ..trial.pareto import pareto
from ..trial.trial_result import TrialResult
from .layer_map import describe
from .sections import sample_counts

Role = Literal["dense", "front", "dominated", "infeasible"]

TRIAL = "trial"  # the other axis where a study has one objective
HOVER_WIDTH, HOVER_LINES = 64, 8
FONT = "system-ui, sans-serif"
INK = {"dominated": "#8f959e", "infeasible": "#8f959e", "front": "#3b8ed0", "confirmed": "#d55e00", "dense": "#e69f00",
       "rule": "#8e5bb5"}  # fmt: skip
NAMES = {"dominated": "dominated", "infeasible": "breaks a constraint", "front": "Pareto front", "dense": "dense"}
MARKERS: dict[str, dict[str, Any]] = {
    "dominated": {"symbol": "circle", "size": 6, "opacity": 0.55},
    "infeasible": {"symbol": "x-thin-open", "size": 6, "opacity": 0.55},
    "front": {"symbol": "circle", "size": 10},
    "dense": {"symbol": "star", "size": 16},
}
RULE_SYMBOLS = ("triangle-up", "square", "triangle-down", "pentagon", "cross", "hexagon2", "bowtie", "hourglass",
                "triangle-left", "triangle-right", "star-diamond", "octagon")  # fmt: skip


@dataclass(frozen=True)
class Plane:
    """Two metrics against each other."""

    x: str
    y: str


@dataclass(frozen=True)
class Dot:
    """One trial in a plane.

    Attributes:
        confirmed: The same policy on the report split; None where it was not confirmed.
        stderr: Standard error of the confirmed y.
    """

    trial: TrialResult
    role: Role
    x: float
    y: float
    confirmed: tuple[float, float] | None
    stderr: float | None


def planes(record: StudyRecord) -> list[Plane]:
    """Every pair of objectives, a cost across where there is one."""
    names = list(record.objectives)
    if len(names) == 1:
        return [Plane(TRIAL, names[0])]
    costs_first = sorted(names, key=lambda name: record.objectives[name] == "maximize" or unit_of(name) == "nats")
    return [Plane(*pair) for pair in sorted(combinations(costs_first, 2), key=lambda pair: names.index(pair[1]))]


def role(record: StudyRecord, trial: TrialResult) -> Role | None:
    """How a trial is drawn; None where it is not, because it did not finish, or answered few examples only."""
    if not trial.full_fidelity and not (trial.state == "complete" and trial.breaks_a_bound):
        return None
    if trial.number == record.dense.number:
        return "dense"
    if trial.number in record.front:
        return "front"
    return "infeasible" if trial.breaks_a_bound else "dominated"


def dots(record: StudyRecord, plane: Plane) -> list[Dot]:
    """The trials that have both figures; those stopped at a constraint may lack one."""
    found = []
    for trial in record.trials:
        kind = role(record, trial)
        x = trial.number if plane.x == TRIAL else along_axis(record, trial, plane.x)
        y = along_axis(record, trial, plane.y)
        if kind is not None and math.isfinite(x) and math.isfinite(y):
            again = _confirmation(record, trial, plane, x) if kind == "front" else (None, None)
            found.append(Dot(trial, kind, x, y, *again))
    return found


def along_axis(record: StudyRecord, trial: TrialResult, name: str, split: Split = "search") -> float:
    """Where a figure stands on its axis: in percent of dense, or in nats; NaN where it is missing."""
    if unit_of(name) != "nats":
        return percent_of_dense(record, trial, name, split)
    entry = getattr(trial, split).get(name)
    return math.nan if entry is None else float(entry.value)


def top(found: Sequence[Dot]) -> float:
    """Up to where a divergence is shown at first: some that are far beyond what counts would leave the rest no room."""
    highest = max((dot.y for dot in found if dot.role == "front" and dot.y < DIVERGENCE_CAP), default=0.0)
    return 1.2 * (highest or DIVERGENCE_CAP)


def begun_with(record: StudyRecord, plane: Plane) -> list[Dot]:
    """The rules that the search began with; one that answered only some examples where it is expected to stand."""
    known = Known.of(record.trials)
    begun = tuple(as_told(record, trial, known) for trial in record.trials if trial.baseline is not None)
    return [
        dot for dot in dots(replace(record, trials=(record.dense, *begun)), plane) if dot.trial.baseline is not None
    ]


def staircase(found: Sequence[Dot], record: StudyRecord, plane: Plane) -> list[Dot]:
    """The part of the front that is optimal in this plane too, from left to right."""
    directions: list[Direction] = [record.objectives.get(plane.x, "minimize"), record.objectives[plane.y]]
    feasible = [dot for dot in found if dot.trial.feasible and plane.x != TRIAL]
    best = pareto([(dot.x, dot.y) for dot in feasible], directions)
    return sorted((feasible[index] for index in best), key=lambda dot: dot.x)


def plane_figure(record: StudyRecord, plane: Plane) -> go.Figure:
    """The trials in one plane; pointing at one shows its policy."""
    found = dots(record, plane)
    figure = go.Figure(layout=_layout(*(_axis_title(name) for name in (plane.x, plane.y))))
    steps = staircase(found, record, plane)
    line = {"color": INK["front"], "width": 2, "shape": "hv"}
    for kind in ("dominated", "infeasible", "front", "confirmed", "dense"):
        if kind == "front" and steps:
            xs, ys = [dot.x for dot in steps], [dot.y for dot in steps]
            figure.add_scatter(x=xs, y=ys, mode="lines", line=line, hoverinfo="skip", showlegend=False)
        group = [dot for dot in found if dot.role == kind or (kind == "confirmed" and dot.confirmed)]
        if group:
            figure.add_trace(_confirmed(record, group) if kind == "confirmed" else _markers(record, group, kind))
    if found and unit_of(plane.y) == "nats":
        figure.update_yaxes(range=[-top(found) / 20, top(found)])
    begun = begun_with(record, plane)
    for place, rule in enumerate(result.name for result in record.assessment.by_rule):
        group = [dot for dot in begun if rule in dot.trial.rules]
        symbol = f"{RULE_SYMBOLS[place % len(RULE_SYMBOLS)]}-open"
        look = {"color": INK["rule"], "symbol": symbol, "size": 13, "line": {"width": 1.5}}
        figure.add_trace(_points(record, group, name=rule, marker=look, showlegend=True))
    return figure


def hypervolume_figure(record: StudyRecord) -> go.Figure:
    """Hypervolume after each finished trial."""
    every = len(record.hypervolume) == len(record.trials)
    numbers = [trial.number for trial in record.trials if every or trial.state != "running"]
    line = {"color": INK["front"], "width": 2.5, "shape": "hv"}
    hover = "after trial %{x}: %{y:.4f}<extra></extra>"
    figure = go.Figure(layout=_layout("trial", "hypervolume"))
    curve = {"x": numbers, "y": list(record.hypervolume), "line": line, "hovertemplate": hover}
    return figure.add_scatter(mode="lines", showlegend=False, **curve)


def save_front(record: StudyRecord, path: Path) -> None:
    """Write the picture: quality against the first cost, the front with its confirmation and standard errors."""
    plane = planes(record)[0]
    figure = Figure(figsize=(8, 5), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    found = dots(record, plane)
    _draw_trials(axes, found, begun_with(record, plane))
    steps = staircase(found, record, plane)
    axes.step([dot.x for dot in steps], [dot.y for dot in steps], where="post", color=INK["front"], lw=1.5, zorder=2)
    axes.set_xlabel(_axis_title(plane.x))
    axes.set_ylabel(_axis_title(plane.y))
    behind = f"{phrase(plane.y)}: {sample_counts(record, plane.y)}"
    axes.set_title(f"{textwrap.fill(_plain(record.model_id), 90)}\n{behind}", loc="left", fontsize=10)
    if found and unit_of(plane.y) == "nats":
        axes.set_ylim(-top(found) / 20, top(found))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if found:
        axes.legend(frameon=False, fontsize=8)
    else:
        axes.text(0.5, 0.5, "no trial has both figures", ha="center", transform=axes.transAxes)
    FigureCanvasAgg(figure).print_png(path)


def card(record: StudyRecord, trial: TrialResult) -> str:
    """What stands beside the pointer: the trial, its figures, its policy."""
    lines = []
    for name in (name for name in record.metrics if name in trial.search):
        entry, base, unit = trial.search[name], record.dense.search.get(name), record.metrics[name].unit
        dense = entry.dense if entry.dense is not None else base.value if base else math.nan
        part = f", expected from {entry.n} of {entry.detail['total']} examples" if entry.is_partial else ""
        lines.append(f"{phrase(name)}: {amount(entry.value, unit)}, {versus_dense(entry.value, dense, unit)}{part}")
        if name in trial.report:
            again = "timed again" if unit == "ms" else "report split"
            lines.append(f"{phrase(name)}, {again}: {amount(trial.report[name].value, unit)}")
    entries = [entry.replace(" ", "\u00a0") for entry in describe(trial.policy)]  # a line ends between two of them
    policy = textwrap.wrap(", ".join(entries) or "dense", HOVER_WIDTH)
    policy = policy if len(policy) <= HOVER_LINES else [*policy[:HOVER_LINES], "…"]
    rules = [f"{name}: {setting}" for name, setting in trial.rules.items()]
    return "<br>".join([f"<b>trial {trial.number}</b>", *map(html.escape, [*rules, *lines, "", *policy])])


def _confirmation(
    record: StudyRecord, trial: TrialResult, plane: Plane, searched: float
) -> tuple[tuple[float, float] | None, float | None]:
    y = along_axis(record, trial, plane.y, "report")
    if not math.isfinite(y):
        return None, None
    again = along_axis(record, trial, plane.x, "report")
    x = again if math.isfinite(again) else searched
    stderr, unit = trial.report[plane.y].stderr, 1.0
    if unit_of(plane.y) != "nats":
        unit = record.dense.report[plane.y].value / 100
    return (x, y), None if stderr is None else stderr / unit


def _markers(record: StudyRecord, group: Sequence[Dot], kind: str) -> go.Scatter:
    return _points(record, group, marker={"color": INK[kind], **MARKERS[kind]}, showlegend=False)


def _points(record: StudyRecord, group: Sequence[Dot], **look: Any) -> go.Scatter:
    hover = {"hovertext": [card(record, dot.trial) for dot in group], "hoverinfo": "text"}
    return go.Scatter(x=[dot.x for dot in group], y=[dot.y for dot in group], mode="markers", **hover, **look)


def _confirmed(record: StudyRecord, group: Sequence[Dot]) -> go.Scatter:
    places = [dot.confirmed for dot in group if dot.confirmed]
    errors = {"type": "data", "array": [dot.stderr or 0 for dot in group], "thickness": 1, "width": 3}
    return go.Scatter(
        x=[x for x, _ in places],
        y=[y for _, y in places],
        error_y=errors,
        mode="markers",
        marker={"color": INK["confirmed"], "symbol": "diamond-open", "size": 8},
        hovertext=[card(record, dot.trial) for dot in group],
        hoverinfo="text",
        showlegend=False,
    )


def _layout(x: str, y: str) -> dict[str, Any]:
    """Text and grid lines take their colours from the page, which knows light from dark."""
    axis = {"zeroline": False, "gridcolor": "#8884", "automargin": True, "ticks": "", "ticklabelstandoff": 6}
    return {
        "template": "none",
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "title": {"text": "rules: "}},
        "margin": {"l": 56, "r": 16, "t": 16, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12},
        "hoverlabel": {"align": "left", "bgcolor": "#20242b", "font": {"color": "#fff", "family": FONT}},
        "xaxis": axis | {"title": {"text": x, "standoff": 12}},
        "yaxis": axis | {"title": {"text": y, "standoff": 12}},
    }


def _axis_title(name: str) -> str:
    return TRIAL if name == TRIAL else f"{phrase(name)}, {'nats' if unit_of(name) == 'nats' else '% of dense'}"


def _draw_trials(axes: Axes, found: Sequence[Dot], rules: Sequence[Dot]) -> None:
    shapes = {"dominated": ("o", 14), "infeasible": ("x", 14), "front": ("o", 40), "dense": ("*", 170)}
    for order, (kind, (shape, size)) in enumerate(shapes.items()):
        group = [dot for dot in found if dot.role == kind]
        if group:
            xs, ys = [dot.x for dot in group], [dot.y for dot in group]
            faint = 0.45 if kind in ("dominated", "infeasible") else 1.0
            label = NAMES[kind] if kind == "dense" else f"{NAMES[kind]} ({len(group)}, search split)"
            axes.scatter(xs, ys, s=size, marker=shape, c=INK[kind], alpha=faint, zorder=2 + order, lw=1, label=label)
    if rules:
        look: dict[str, Any] = {"marker": "^", "s": 60, "facecolors": "none", "edgecolors": INK["rule"], "lw": 1}
        label = f"published rules ({len(rules)}, search split)"
        axes.scatter([dot.x for dot in rules], [dot.y for dot in rules], zorder=6, label=label, **look)
    again = [(dot.confirmed, dot.stderr or 0) for dot in found if dot.confirmed]
    if again:
        xs, ys = [place[0] for place, _ in again], [place[1] for place, _ in again]
        label = f"confirmed ({len(again)}, report split, ± standard error)"
        style: dict[str, Any] = {"fmt": "D", "ms": 4, "mfc": "white", "c": INK["confirmed"], "elinewidth": 0.8}
        axes.errorbar(xs, ys, yerr=[error for _, error in again], capsize=2, zorder=5, label=label, **style)


def _plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")
