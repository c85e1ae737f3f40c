"""Hypervolume of a front: exact for any number of objectives, and incremental."""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence

from ...evaluators.base import Direction, Measurement, Metric

# Reference value of a divergence, which has no worst value: at 1 nat most answers differ from dense's.
DIVERGENCE_CAP = 1.0
Point = tuple[float, ...]


def reference_point(
    dense: Mapping[str, Measurement], objectives: Mapping[str, Direction], metrics: Mapping[str, Metric]
) -> dict[str, float]:
    """The reference point of the hypervolume; it depends on the dense model alone, never on other trials.

    - An accuracy: the accuracy at chance level.
    - Another fraction: its worst value, 0 where it is maximised and 1 where it is minimised.
    - Another maximised metric: 0.
    - A divergence: 1 nat.
    - A cost: the dense model's, so that only policies cheaper than dense count.
    """
    found = {name: reference_value(metrics[name], direction) for name, direction in objectives.items()}
    return {
        name: dense[name].value if value is None else max(value, dense[name].floor) for name, value in found.items()
    }


def reference_value(metric: Metric, direction: Direction) -> float | None:
    """One entry of the reference point before chance level is considered; None where it is the dense model's value."""
    return {"fraction": 1.0, "nats": DIVERGENCE_CAP}.get(metric.unit) if direction == "minimize" else 0.0


def hypervolume(
    points: Sequence[Sequence[float]], directions: Sequence[Direction], reference: Sequence[float]
) -> float:
    """Hypervolume between points and a reference point; exact for any number of objectives.

    Points with a NaN, and points beyond the reference point, add nothing.
    """
    corner = minimised(reference, directions)
    costs = [minimised(point, directions) for point in points if not any(map(math.isnan, point))]
    return _volume([cost for cost in costs if _strictly_better(cost, corner)], corner)


class IncrementalHypervolume:
    """Hypervolume of points that arrive one by one, divided by the product of the reference point's positive entries.

    That is the reference point with every objective minimised. So costs count as fractions of their reference.

    Args:
        directions: Of each objective.
        reference: The reference point, in the objectives' own units.
    """

    def __init__(self, directions: Sequence[Direction], reference: Sequence[float]) -> None:
        self._directions = directions
        self._corner = minimised(reference, directions)
        self._unit = math.prod(limit for limit in self._corner if limit > 0)
        self._front: list[Point] = []
        self._total = 0.0

    def add(self, point: Sequence[float] | None) -> float:
        """The hypervolume with one more point; None and a point with a NaN add nothing."""
        cost = None if point is None or any(map(math.isnan, point)) else minimised(point, self._directions)
        if cost and _strictly_better(cost, self._corner) and not any(weakly_dominates(f, cost) for f in self._front):
            self._total += _exclusive(cost, self._front, self._corner)
            self._front = [other for other in self._front if not weakly_dominates(cost, other)] + [cost]
        return self._total / self._unit


def hypervolume_history(
    points: Iterable[Sequence[float] | None], directions: Sequence[Direction], reference: Sequence[float]
) -> list[float]:
    """Hypervolume after each trial, in the unit of `IncrementalHypervolume`.

    Args:
        points: One entry a trial, in the order of trials.
        directions: Of each objective.
        reference: The reference point, in the objectives' own units.
    """
    incremental = IncrementalHypervolume(directions, reference)
    return [incremental.add(point) for point in points]


def minimised(point: Sequence[float], directions: Sequence[Direction]) -> Point:
    """The same point with every objective minimised."""
    return tuple(x if direction == "minimize" else -x for x, direction in zip(point, directions, strict=True))


def weakly_dominates(point: Point, other: Point) -> bool:
    """True where a point is at least as good as another in every objective, all minimised."""
    return all(map(operator.le, point, other))


def _strictly_better(cost: Point, corner: Point) -> bool:
    return all(x < limit for x, limit in zip(cost, corner, strict=True))


def _exclusive(cost: Point, others: Sequence[Point], corner: Point) -> float:
    """Exclusive hypervolume: what a point dominates and none of the others does (While, Bradstreet and Barone 2012)."""
    box = math.prod(limit - x for x, limit in zip(cost, corner, strict=True))
    shared = [tuple(map(max, cost, other)) for other in others]
    return box - _volume(shared, corner)


def _volume(costs: Sequence[Point], corner: Point) -> float:
    """Hypervolume of minimised points within the reference point; recursive, one objective fewer at each level."""
    if not costs:
        return 0.0
    if len(corner) == 1:
        return corner[0] - min(costs)[0]
    front: list[Point] = []
    total = 0.0
    # Sorted by the last objective, each point adds a prism: its exclusive volume in the other objectives times its
    # height up to the reference. Later points are worse in the last objective, so they take nothing from it.
    for cost in sorted(costs, key=lambda c: (c[-1], c)):
        base = cost[:-1]
        if any(weakly_dominates(other, base) for other in front):
            continue
        total += (corner[-1] - cost[-1]) * _exclusive(base, front, corner[:-1])
        front = [other for other in front if not weakly_dominates(base, other)] + [base]
    return total
