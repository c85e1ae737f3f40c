"""The Pareto front of a study and its hypervolume: exact and deterministic."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ...evaluators.base import Direction, Measurement, declared_metric
from ..space.objectives import first_cost
from ..space.units import unit_of
from .dominance import non_dominated
from .hypervolume import Point, as_costs, covers
from .modelled_time import DENSE, ModelledTime
from .tied_times import non_dominated_within
from .time_model import TimeEstimate
from .trial_result import TrialResult

CERTAIN = 1.645  # standard errors above guessing: of 20 policies that guess 19 stay below


def dominates(one: Sequence[float], other: Sequence[float], directions: Sequence[Direction]) -> bool:
    """True where `one` is nowhere worse than `other` and somewhere better."""
    return _beats(as_costs(one, directions), as_costs(other, directions))


def pareto(points: Sequence[Sequence[float]], directions: Sequence[Direction]) -> list[int]:
    """Indices of the points that no other dominates, ascending.

    Of equal points the first stays; a point with a NaN is never on the front.
    """
    signs = np.array([1.0 if direction == "minimize" else -1.0 for direction in directions])
    costs = signs * np.array(points, float).reshape(len(points), len(signs))
    known = np.flatnonzero(~np.isnan(costs).any(1))
    return [int(place) for place in known[non_dominated(costs[known])]]


def objective_value(name: str, measurement: Measurement, dense_measurement: Measurement | None) -> float:
    """The figure the search compares.

    A time is compared by its ratio to the dense one that was measured interleaved with it, in units of the
    baseline's milliseconds: the clock of a machine drifts between trials, the ratio does not. Where a model of all
    times has smoothed that ratio, its figure counts. Others are compared raw.
    """
    if isinstance(measurement, ModelledTime) and dense_measurement is not None:
        return measurement.estimate.ratio * dense_measurement.value
    metric = declared_metric(name)
    if metric is None or metric.kind != "time" or not measurement.dense:
        return measurement.value
    if dense_measurement is None or measurement == dense_measurement:
        return measurement.value
    return measurement.value / measurement.dense * dense_measurement.value


def objective_point(
    measured: Mapping[str, Measurement], dense: Mapping[str, Measurement], objectives: Iterable[str]
) -> Point | None:
    """The objectives' values of one trial; None where one is missing or not finite."""
    names = list(objectives)
    if any(name not in measured or name not in dense for name in names):
        return None
    point = tuple(objective_value(name, measured[name], dense[name]) for name in names)
    return point if all(map(math.isfinite, point)) else None


def feasible_points(trials: Sequence[TrialResult], objectives: Iterable[str]) -> list[Point | None]:
    """One entry a trial: its objectives' values, or None where it cannot be on the front. The first trial is dense."""
    names = list(objectives)
    return [
        objective_point(trial.search, trials[0].search, names)
        if trial.feasible and not only_guesses(trial.search, trials[0].search, names)
        else None
        for trial in trials
    ]


def only_guesses(
    measured: Mapping[str, Measurement], dense: Mapping[str, Measurement], objectives: Iterable[str]
) -> bool:
    """True where an objective that dense is better at than guessing is not, by a one-sided test at 95 %.

    Args:
        measured: What a policy measured.
        dense: What the dense model measured.
        objectives: Their names.
    """
    return any(
        name in measured and above_guessing(dense[name]) and not above_guessing(measured[name])
        for name in objectives
        if name in dense and dense[name].floor
    )


def above_guessing(entry: Measurement) -> bool:
    """True for a figure that luck does not explain where what guessing measures is the truth."""
    return entry.value > entry.floor + CERTAIN * (entry.stderr or 0.0)


def front_trials(trials: Sequence[TrialResult], objectives: Mapping[str, Direction]) -> tuple[int, ...]:
    """Numbers of the Pareto-optimal feasible trials, by falling first cost (dense comes first).

    No trial is on it for a difference in a time that lies within the interval of that difference.
    """
    directions = list(objectives.values())
    cost = first_cost(objectives)
    place = 0 if cost is None else list(objectives).index(cost)
    points = feasible_points(trials, objectives)
    able = [(trial, point) for trial, point in zip(trials, points, strict=True) if point is not None]
    times = [[as_time(trial, name) for name in objectives] for trial, _ in able]
    if any(time is not None and time is not DENSE for row in times for time in row):
        kept = non_dominated_within([as_costs(point, directions) for _, point in able], times)
    else:
        kept = pareto([point for _, point in able], directions)
    numbered = [(able[index][0].number, able[index][1]) for index in kept]
    return tuple(number for number, _ in sorted(numbered, key=lambda pair: (-pair[1][place], pair[0])))


def evenly(trials: Sequence[TrialResult], count: int) -> list[TrialResult]:
    """At most `count` trials at even places of a sequence, both ends among them."""
    if len(trials) <= count:
        return [*trials]
    return [trials[round(place * (len(trials) - 1) / (count - 1))] for place in range(count)]


def as_time(trial: TrialResult, name: str) -> TimeEstimate | None:
    """A trial's time as the model of all times sees it; None for other figures. Dense is what times are told by."""
    entry = trial.search.get(name)
    if isinstance(entry, ModelledTime):
        return entry.estimate
    return DENSE if trial.policy.is_dense and unit_of(name) == "ms" else None


def _beats(one: Point, other: Point) -> bool:
    return covers(one, other) and one != other
