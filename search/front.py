"""The Pareto front of a study and its hypervolume: exact and deterministic."""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from skipsearch.search.space.objectives import first_cost

from ..evaluators.base import Direction, Measurement, Metric, Split, metric_of
from .dominance import non_dominated
from .modelled import DENSE, ModelledTime
from .record import StudyRecord, TrialRecord
from .space.units import unit_of
from .tied import non_dominated_within
from .time_model import TimeEstimate

# How far a divergence may go and still count: it has no worst, and at 1 nat most of the answers are others.
FAR = 1.0

CERTAIN = 1.645  # standard errors above guessing: of 20 policies that guess 19 stay below

Point = tuple[float, ...]


def dominates(one: Sequence[float], other: Sequence[float], directions: Sequence[Direction]) -> bool:
    """True where `one` is nowhere worse than `other` and somewhere better."""
    return _beats(_as_costs(one, directions), _as_costs(other, directions))


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
    metric = metric_of(name)
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


def percent_of_dense(record: StudyRecord, trial: TrialRecord, name: str, split: Split = "search") -> float:
    """A figure in percent of the dense model's on the same examples; NaN where either is missing."""
    ours, dense = (getattr(one, split).get(name) for one in (trial, record.dense))
    if ours is None or dense is None or not dense.value:
        return math.nan
    return 100 * objective_value(name, ours, dense) / float(dense.value)


def feasible_points(trials: Sequence[TrialRecord], objectives: Iterable[str]) -> list[Point | None]:
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


def front_trials(trials: Sequence[TrialRecord], objectives: Mapping[str, Direction]) -> tuple[int, ...]:
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
        kept = non_dominated_within([_as_costs(point, directions) for _, point in able], times)
    else:
        kept = pareto([point for _, point in able], directions)
    numbered = [(able[index][0].number, able[index][1]) for index in kept]
    return tuple(number for number, _ in sorted(numbered, key=lambda pair: (-pair[1][place], pair[0])))


def evenly(trials: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """At most `count` trials at even places of a sequence, both ends among them."""
    if len(trials) <= count:
        return [*trials]
    return [trials[round(place * (len(trials) - 1) / (count - 1))] for place in range(count)]


def as_time(trial: TrialRecord, name: str) -> TimeEstimate | None:
    """A trial's time as the model of all times sees it; None for other figures. Dense is what times are told by."""
    entry = trial.search.get(name)
    if isinstance(entry, ModelledTime):
        return entry.estimate
    return DENSE if trial.policy.is_dense and unit_of(name) == "ms" else None


def reference_point(
    dense: Mapping[str, Measurement], objectives: Mapping[str, Direction], metrics: Mapping[str, Metric]
) -> dict[str, float]:
    """The corner that the hypervolume is counted from; it depends on the dense model alone, never on the trials.

    What guessing gives for an accuracy; worst possible for another fraction (0 where maximised, 1 where minimised) and
    for other maximised figures (0); 1 nat for a divergence; the dense figure for a cost, so that only what is cheaper
    than dense counts.
    """
    found = {name: worst(metrics[name], direction) for name, direction in objectives.items()}
    return {
        name: dense[name].value if value is None else max(value, dense[name].floor) for name, value in found.items()
    }


def worst(metric: Metric, direction: Direction) -> float | None:
    """The worst figure that counts, see `reference_point`; None where that is the dense model's."""
    return {"fraction": 1.0, "nats": FAR}.get(metric.unit) if direction == "minimize" else 0.0


def hypervolume(
    points: Sequence[Sequence[float]], directions: Sequence[Direction], reference: Sequence[float]
) -> float:
    """The volume that the points dominate up to the reference point; exact, for any number of objectives.

    Points with a NaN, and those beyond the reference point, add nothing.
    """
    corner = _as_costs(reference, directions)
    costs = [_as_costs(point, directions) for point in points if not any(map(math.isnan, point))]
    return _volume([cost for cost in costs if _inside(cost, corner)], corner)


class Growing:
    """The hypervolume of points that come one by one, with costs in units of the reference: in 0..1 for fractions.

    Args:
        directions: Of each objective.
        reference: The reference point, in the objectives' own units.
    """

    def __init__(self, directions: Sequence[Direction], reference: Sequence[float]) -> None:
        self._directions = directions
        self._corner = _as_costs(reference, directions)
        self._unit = math.prod(worst for worst in self._corner if worst > 0)
        self._front: list[Point] = []
        self._total = 0.0

    def add(self, point: Sequence[float] | None) -> float:
        """The hypervolume with one more point; None and a point with a NaN add nothing."""
        cost = None if point is None or any(map(math.isnan, point)) else _as_costs(point, self._directions)
        if cost and _inside(cost, self._corner) and not any(_covers(kept, cost) for kept in self._front):
            self._total += _exclusive(cost, self._front, self._corner)
            self._front = [kept for kept in self._front if not _covers(cost, kept)] + [cost]
        return self._total / self._unit


def history(
    points: Iterable[Sequence[float] | None], directions: Sequence[Direction], reference: Sequence[float]
) -> list[float]:
    """Hypervolume after each point, as `Growing` counts it.

    Args:
        points: One entry a trial, in the order of trials.
        directions: Of each objective.
        reference: The reference point, in the objectives' own units.
    """
    growing = Growing(directions, reference)
    return [growing.add(point) for point in points]


def _as_costs(point: Sequence[float], directions: Sequence[Direction]) -> Point:
    """The same point with every objective minimised."""
    return tuple(x if direction == "minimize" else -x for x, direction in zip(point, directions, strict=True))


def _covers(one: Point, other: Point) -> bool:
    return all(map(operator.le, one, other))


def _beats(one: Point, other: Point) -> bool:
    return _covers(one, other) and one != other


def _inside(cost: Point, corner: Point) -> bool:
    return all(a < b for a, b in zip(cost, corner, strict=True))


def _exclusive(cost: Point, others: Sequence[Point], corner: Point) -> float:
    """What a point dominates and none of the others does (While, Bradstreet and Barone 2012)."""
    box = math.prod(worst - x for x, worst in zip(cost, corner, strict=True))
    shared = [tuple(map(max, cost, other)) for other in others]
    return box - _volume(shared, corner)


def _volume(costs: Sequence[Point], corner: Point) -> float:
    """Hypervolume of minimised points inside the corner, one dimension fewer at each recursion."""
    if not costs:
        return 0.0
    if len(corner) == 1:
        return corner[0] - min(costs)[0]
    front: list[Point] = []
    total = 0.0
    # By the last objective, best first: beyond its own height, a point shares nothing with those that follow.
    for cost in sorted(costs, key=lambda c: (c[-1], c)):
        base = cost[:-1]
        if any(_covers(kept, base) for kept in front):
            continue
        total += (corner[-1] - cost[-1]) * _exclusive(base, front, corner[:-1])
        front = [kept for kept in front if not _covers(base, kept)] + [base]
    return total
