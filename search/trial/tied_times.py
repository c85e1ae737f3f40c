"""Which policies no other is as good as, where times that cannot be told apart count as equal."""

import math
from collections.abc import Sequence

from .modelled_time import SURE
from .time_model import TimeEstimate

Point = tuple[float, ...]
Times = Sequence[TimeEstimate | None]


def no_slower(one: TimeEstimate, other: TimeEstimate) -> bool:
    """True where a time is no longer than another, or not told from it."""
    return one.ratio <= other.ratio + SURE * one.apart(other)


def non_dominated_within(costs: Sequence[Point], times: Sequence[Times]) -> list[int]:
    """Indices of points of which none is as good as another but for times that are tied, ascending.

    Ties are not transitive: a chain of them may end far from where it began. So points are taken up in order, the best
    in what is not a time first, and one is left out where one that was taken up is as good (an epsilon-dominance,
    Laumanns et al. 2002). So every difference in times that can be told is on the front.

    Args:
        costs: By policy its objectives, all minimised; a policy with a NaN is left out.
        times: By policy and objective the time with its error; None where it is no modelled time.
    """
    modelled = [any(time is not None for time in column) for column in zip(*times, strict=True)]

    def order(index: int) -> tuple[Point, float, int]:
        pairs = [*zip(costs[index], modelled, strict=True)]
        return tuple(cost for cost, late in pairs if not late), sum(cost for cost, late in pairs if late), index

    def covers(one: int, other: int) -> bool:
        told = zip(costs[one], costs[other], times[one], times[other], strict=True)
        return all(
            cost <= than if time is None or beside is None else no_slower(time, beside)
            for cost, than, time, beside in told
        )

    kept: list[int] = []
    for index in sorted((index for index, point in enumerate(costs) if not any(map(math.isnan, point))), key=order):
        if not any(covers(one, index) for one in kept):
            kept.append(index)
    return sorted(kept)
