"""Non-dominated policies, where times that do not differ significantly count as equal."""

import math
from collections.abc import Sequence

from ...policies.metadata import Z95
from .time_model import TimeEstimate

Point = tuple[float, ...]
Times = Sequence[TimeEstimate | None]


def not_slower(time: TimeEstimate, other: TimeEstimate) -> bool:
    """True where a time is not significantly longer than another, at 95 %."""
    return time.ratio <= other.ratio + Z95 * time.difference_error(other)


def non_dominated_within(costs: Sequence[Point], times: Sequence[Times]) -> list[int]:
    """Indices of policies that no kept policy weakly dominates, significant differences in times only; ascending.

    Ties are not transitive: a chain of tied times may end far from where it starts. So policies are visited in order,
    the best in the other objectives first, and one is dropped where a policy kept before is as good (an
    epsilon-dominance, Laumanns et al. 2002). Every significant difference in times remains on the front.

    Args:
        costs: By policy its objectives, all minimised; a policy with a NaN is left out.
        times: By policy and objective the time with its error; None where the objective is no modelled time.
    """
    is_modelled = [any(time is not None for time in column) for column in zip(*times, strict=True)]

    def order(index: int) -> tuple[Point, float, int]:
        pairs = [*zip(costs[index], is_modelled, strict=True)]
        return tuple(cost for cost, timed in pairs if not timed), sum(cost for cost, timed in pairs if timed), index

    def weakly_dominates(index: int, other: int) -> bool:
        objectives = zip(costs[index], costs[other], times[index], times[other], strict=True)
        return all(
            cost <= other_cost if time is None or other_time is None else not_slower(time, other_time)
            for cost, other_cost, time, other_time in objectives
        )

    kept: list[int] = []
    for index in sorted((index for index, point in enumerate(costs) if not any(map(math.isnan, point))), key=order):
        if not any(weakly_dominates(other, index) for other in kept):
            kept.append(index)
    return sorted(kept)
