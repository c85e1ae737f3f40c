"""Lazy greedy deletion of sublayers by loss per saved cost: the path that a guided search begins with.

From a policy, the sublayer whose removal loses least per saved FLOP goes next, and so on until nothing is left that is
better than guessing. A removal's ratio is measured anew only when it stands at the top of the queue (lazy evaluation:
Minoux 1978; the moves are those of BlockPruner, arXiv:2406.10594, and SLEB, arXiv:2402.09025, by a loss instead of
perplexity).
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

Labels: TypeAlias = Mapping[str, str]
Move: TypeAlias = tuple[int, str]  # a layer, or the first of a tied group, and the sublayer
Probed: TypeAlias = "Probe | None"


@dataclass(frozen=True)
class Probe:
    """What one probe measured.

    Attributes:
        loss: The guide's loss.
        cost: The cost that is saved.
    """

    loss: float
    cost: float


def lazy_greedy(
    start: Labels,
    deletions: Callable[[Labels], Mapping[Move, Labels]],
    stale: dict[Move, float],
    worst: float,
    width: int,
) -> Generator[list[Labels], list[Probed], None]:
    """Walk one path; each step yields policies to probe and is sent what they measured, None for one that failed.

    A removal that fails, or saves nothing, is not tried again on this path.

    Args:
        start: The policy to begin with.
        deletions: From a policy, what each further removal comes to.
        stale: Loss per saved cost of removals as it was last measured, on this path or an earlier one; kept up to date.
        worst: The loss at which the path ends: that of guessing.
        width: How many policies may be probed at the same time.
    """
    (here,) = yield [start]
    state, refused = start, set[Move]()
    while here is not None and here.loss < worst:
        options = {move: labels for move, labels in deletions(state).items() if move not in refused}
        fresh: dict[Move, Probe] = {}
        chosen: Move | None = None
        while options and chosen is None:
            # What was never measured comes first.
            queue = sorted(options, key=lambda move: stale.get(move, float("-inf")))
            if queue[0] in fresh:
                chosen = queue[0]
                break
            wanted = [move for move in queue if move not in fresh]
            unknown = [move for move in wanted if move not in stale]
            wanted = (unknown or wanted)[:width]
            found = yield [options[move] for move in wanted]
            for move, probe in zip(wanted, found, strict=True):
                if probe is None or probe.cost >= here.cost:
                    refused.add(move)
                    del options[move]
                else:
                    stale[move] = (probe.loss - here.loss) / (here.cost - probe.cost)
                    fresh[move] = probe
        if chosen is None:
            return
        state, here = options[chosen], fresh[chosen]


def evenly(points: Mapping[str, Probe], most: int) -> list[str]:
    """Some of the non-dominated points, their costs evenly spread, the most expensive first."""
    front: list[str] = []
    for name in sorted(points, key=lambda name: (points[name].cost, points[name].loss)):
        if not front or points[name].loss < points[front[-1]].loss:
            front.append(name)
    front.reverse()
    if len(front) <= most:
        return front
    return [front[round(place * (len(front) - 1) / (most - 1))] for place in range(most)]
