"""Draws the fronts of several studies in one plane, with plotly."""

import math
from collections.abc import Sequence

import plotly.graph_objects as go
from markupsafe import escape

from ....evaluators.base import Direction, Split
from ...analysis.compare.studies import ComparedStudy
from ...trial.pareto import pareto
from ...trial.trial_result import TrialResult
from ..figures import hover_text, layout
from ..planes import Plane
from .comparison import Comparison
from .wording import axis_title, on_axis

# The palette of Okabe and Ito without its yellow, which is hard to see on white. Symbols tell studies apart too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "pentagon", "hexagon2")


def front_figure(comparison: Comparison, plane: Plane) -> go.Figure:
    """The front of each study as steps; confirmed policies as open symbols, where the report split has them.

    Of several models, each has a star for its dense model.
    """
    x, y = (axis_title(comparison, name) for name in (plane.x, plane.y))
    figure = go.Figure(layout=layout(x, y, legend=""))
    for index, study in enumerate(comparison.studies):
        front = [study.record.trial(number) for number in study.record.front]
        colour, symbol = COLOURS[index % len(COLOURS)], SYMBOLS[index % len(SYMBOLS)]
        steps = _steps(comparison, study, plane, front)
        line = {"color": colour, "width": 2, "shape": "hv"}
        figure.add_scatter(x=[x for x, _ in steps], y=[y for _, y in steps], mode="lines", line=line,
                           hoverinfo="skip", showlegend=False)  # fmt: skip
        marker = {"color": colour, "symbol": symbol, "size": 10}
        figure.add_trace(_points(comparison, index, plane, front, "search", marker, str(escape(study.name))))
        confirmed = [trial for trial in front if plane.y in trial.report]
        marker = {"color": colour, "symbol": f"{symbol}-open", "size": 8}
        figure.add_trace(_points(comparison, index, plane, confirmed, "report", marker, ""))
        if comparison.is_absolute:
            marker = {"color": colour, "symbol": "star", "size": 16}
            figure.add_trace(_points(comparison, index, plane, [study.record.dense], "search", marker, ""))
    if comparison.is_absolute:
        for name, update in ((plane.x, figure.update_xaxes), (plane.y, figure.update_yaxes)):
            if comparison.studies[0].record.metrics[name].unit in ("flops", "bytes"):
                update(tickformat="~s")
    return figure


def _place(
    comparison: Comparison, study: ComparedStudy, trial: TrialResult, plane: Plane, split: Split
) -> tuple[float, float]:
    return (on_axis(comparison, study, trial, plane.x, split), on_axis(comparison, study, trial, plane.y, split))


def _steps(
    comparison: Comparison, study: ComparedStudy, plane: Plane, front: Sequence[TrialResult]
) -> list[tuple[float, float]]:
    """The policies that are Pareto-optimal in this plane alone, from left to right."""
    places = [_place(comparison, study, trial, plane, "search") for trial in front]
    directions: list[Direction] = [study.record.objectives[name] for name in (plane.x, plane.y)]
    return sorted(places[index] for index in pareto(places, directions))


def _points(
    comparison: Comparison,
    index: int,
    plane: Plane,
    trials: Sequence[TrialResult],
    split: Split,
    marker: dict[str, object],
    name: str,
) -> go.Scatter:
    study = comparison.studies[index]
    places = [(_place(comparison, study, trial, plane, split), trial) for trial in trials]
    drawn = [(place, trial) for place, trial in places if all(map(math.isfinite, place))]
    return go.Scatter(
        x=[x for (x, _), _ in drawn],
        y=[y for (_, y), _ in drawn],
        mode="markers",
        marker=marker,
        name=name,
        showlegend=bool(name),
        hovertext=[f"{escape(study.name)}, {hover_text(study.record, trial)}" for _, trial in drawn],
        hoverinfo="text",
        customdata=[f"{index}-{trial.number}" for _, trial in drawn],
    )
