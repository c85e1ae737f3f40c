"""The hypervolume of a front: exact, for any number of objectives, and incremental."""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence

from ...evaluators.base import Direction, Measurement, Metric

# How far a divergence may go and still count: it has no worst, and at 1 nat most of the answers are others.
DIVERGENCE_CAP = 1.0
Point = tuple[float, ...]


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
    return {"fraction": 1.0, "nats": DIVERGENCE_CAP}.get(metric.unit) if direction == "minimize" else 0.0


def hypervolume(
    points: Sequence[Sequence[float]], directions: Sequence[Direction], reference: Sequence[float]
) -> float:
    """The volume that the points dominate up to the reference point; exact, for any number of objectives.

    Points with a NaN, and those beyond the reference point, add nothing.
    """
    corner = as_costs(reference, directions)
    costs = [as_costs(point, directions) for point in points if not any(map(math.isnan, point))]
    return _volume([cost for cost in costs if _inside(cost, corner)], corner)


class IncrementalHypervolume:
    """The hypervolume of points that come one by one, with costs in units of the reference: in 0..1 for fractions.

    Args:
        directions: Of each objective.
        reference: The reference point, in the objectives' own units.
    """

    def __init__(self, directions: Sequence[Direction], reference: Sequence[float]) -> None:
        self._directions = directions
        self._corner = as_costs(reference, directions)
        self._unit = math.prod(worst for worst in self._corner if worst > 0)
        self._front: list[Point] = []
        self._total = 0.0

    def add(self, point: Sequence[float] | None) -> float:
        """The hypervolume with one more point; None and a point with a NaN add nothing."""
        cost = None if point is None or any(map(math.isnan, point)) else as_costs(point, self._directions)
        if cost and _inside(cost, self._corner) and not any(covers(kept, cost) for kept in self._front):
            self._total += _exclusive(cost, self._front, self._corner)
            self._front = [kept for kept in self._front if not covers(cost, kept)] + [cost]
        return self._total / self._unit


def history(
    points: Iterable[Sequence[float] | None], directions: Sequence[Direction], reference: Sequence[float]
) -> list[float]:
    """Hypervolume after each point, as `IncrementalHypervolume` counts it.

    Args:
        points: One entry a trial, in the order of trials.
        directions: Of each objective.
        reference: The reference point, in the objectives' own units.
    """
    growing = IncrementalHypervolume(directions, reference)
    return [growing.add(point) for point in points]


def as_costs(point: Sequence[float], directions: Sequence[Direction]) -> Point:
    """The same point with every objective minimised."""
    return tuple(x if direction == "minimize" else -x for x, direction in zip(point, directions, strict=True))


def covers(one: Point, other: Point) -> bool:
    """True where a point is at least as good as another in every objective, all minimised."""
    return all(map(operator.le, one, other))


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
        if any(covers(kept, base) for kept in front):
            continue
        total += (corner[-1] - cost[-1]) * _exclusive(base, front, corner[:-1])
        front = [kept for kept in front if not covers(base, kept)] + [base]
    return total
