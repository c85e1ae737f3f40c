"""The Pareto front of a study's trials, and the objective values that decide it."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ...evaluators.base import Direction, Measurement, declared_metric
from ..space.objectives import first_cost
from ..space.units import unit_of
from .dominance import non_dominated
from .hypervolume import Point, minimised, weakly_dominates
from .modelled_time import DENSE, ModelledTime
from .tied_times import non_dominated_within
from .time_model import TimeEstimate
from .trial_result import TrialResult

Z95_ONE_SIDED = 1.645  # standard errors above chance level, at one-sided 95 % confidence


def dominates(point: Sequence[float], other: Sequence[float], directions: Sequence[Direction]) -> bool:
    """True where a point is at least as good as another in every objective and better in one."""
    cost, other_cost = minimised(point, directions), minimised(other, directions)
    return weakly_dominates(cost, other_cost) and cost != other_cost


def pareto(points: Sequence[Sequence[float]], directions: Sequence[Direction]) -> list[int]:
    """Indices of the non-dominated points, ascending.

    Of equal points only the first is on the front; a point with a NaN never is.
    """
    signs = np.array([1.0 if direction == "minimize" else -1.0 for direction in directions])
    costs = signs * np.array(points, float).reshape(len(points), len(signs))
    complete = np.flatnonzero(~np.isnan(costs).any(1))
    return [int(index) for index in complete[non_dominated(costs[complete])]]


def objective_value(name: str, measurement: Measurement, dense_measurement: Measurement | None) -> float:
    """The value of a metric that trials are compared by.

    A time is compared by its ratio to the dense time measured interleaved with it, times the milliseconds of the dense
    trial: a machine's speed drifts between trials, the ratio does not. Where the time model has smoothed that ratio,
    the smoothed one counts. Other metrics are compared as measured.

    Args:
        name: The metric.
        measurement: Of the trial.
        dense_measurement: Of the dense trial.
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
    """The objective values of one trial; None where one is missing or not finite."""
    names = list(objectives)
    if any(name not in measured or name not in dense for name in names):
        return None
    point = tuple(objective_value(name, measured[name], dense[name]) for name in names)
    return point if all(map(math.isfinite, point)) else None


def feasible_points(trials: Sequence[TrialResult], objectives: Iterable[str]) -> list[Point | None]:
    """Objective values of each trial; None where a trial cannot be on the front.

    A trial is left out that violates a constraint, was not measured at full fidelity, or is at chance level.

    Args:
        trials: The first is dense.
        objectives: Their names.
    """
    names = list(objectives)
    return [
        objective_point(trial.search, trials[0].search, names)
        if trial.feasible and not at_chance_level(trial.search, trials[0].search, names)
        else None
        for trial in trials
    ]


def at_chance_level(
    measured: Mapping[str, Measurement], dense: Mapping[str, Measurement], objectives: Iterable[str]
) -> bool:
    """True where a policy is at chance level in an objective and dense is above it, by a one-sided test at 95 %.

    Args:
        measured: A policy's measurements.
        dense: The dense model's measurements.
        objectives: Their names.
    """
    return any(
        name in measured and above_chance(dense[name]) and not above_chance(measured[name])
        for name in objectives
        if name in dense and dense[name].floor
    )


def above_chance(entry: Measurement) -> bool:
    """True for a value significantly above chance level, by a one-sided test at 95 %."""
    return entry.value > entry.floor + Z95_ONE_SIDED * (entry.stderr or 0.0)


def front_trials(trials: Sequence[TrialResult], objectives: Mapping[str, Direction]) -> tuple[int, ...]:
    """Numbers of the Pareto-optimal feasible trials, by falling first cost (dense comes first).

    A difference in a modelled time counts only where it is significant.
    """
    directions = list(objectives.values())
    cost = first_cost(objectives)
    cost_index = 0 if cost is None else list(objectives).index(cost)
    points = feasible_points(trials, objectives)
    feasible = [(trial, point) for trial, point in zip(trials, points, strict=True) if point is not None]
    times = [[time_estimate(trial, name) for name in objectives] for trial, _ in feasible]
    if any(time is not None and time is not DENSE for estimates in times for time in estimates):
        front = non_dominated_within([minimised(point, directions) for _, point in feasible], times)
    else:
        front = pareto([point for _, point in feasible], directions)
    numbered = [(feasible[index][0].number, feasible[index][1]) for index in front]
    return tuple(number for number, _ in sorted(numbered, key=lambda pair: (-pair[1][cost_index], pair[0])))


def evenly_spaced(trials: Sequence[TrialResult], count: int) -> list[TrialResult]:
    """At most `count` trials, evenly spaced over a sequence, with its first and last; of one, the one in the middle."""
    if len(trials) <= count:
        return [*trials]
    if count == 1:
        return [trials[len(trials) // 2]]
    return [trials[round(index * (len(trials) - 1) / (count - 1))] for index in range(count)]


def time_estimate(trial: TrialResult, name: str) -> TimeEstimate | None:
    """A trial's time as the time model estimates it; None for other metrics, and for times without an estimate.

    The dense trial has the ratio 1 without error, because all times are ratios to it.
    """
    entry = trial.search.get(name)
    if isinstance(entry, ModelledTime):
        return entry.estimate
    return DENSE if trial.policy.is_dense and unit_of(name) == "ms" else None
