"""Lazy greedy deletion of sublayers by loss per saved cost: the initial path of a guided search.

Each step deletes the sublayer with the least loss per saved FLOP, until the policy is at chance level. A deletion is
probed again only when it comes first in the queue (lazy evaluation: Minoux 1978). The deletions are those of
BlockPruner (arXiv:2406.10594) and SLEB (arXiv:2402.09025), ranked by a loss instead of perplexity.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

Labels: TypeAlias = Mapping[str, str]
Move: TypeAlias = tuple[int, str]  # a layer, or the first layer of a tied group, and the sublayer
Probed: TypeAlias = "Probe | None"  # None where the probe failed


@dataclass(frozen=True)
class Probe:
    """Loss and cost of one probed policy.

    Attributes:
        loss: The guide's loss.
        cost: The cost that deletions save.
    """

    loss: float
    cost: float


def lazy_greedy(
    start: Labels,
    deletions: Callable[[Labels], Mapping[Move, Labels]],
    ratios: dict[Move, float],
    max_loss: float,
    batch_size: int,
) -> Generator[list[Labels], list[Probed], None]:
    """Walks one greedy path: yields batches of policies to probe and is sent their probes, None for a failed one.

    A deletion that fails, or saves nothing, is not tried again on this path.

    Args:
        start: The first policy.
        deletions: Maps a policy to the policies after one further deletion.
        ratios: Last measured loss per saved cost of each deletion, on this path or an earlier one; it is updated.
        max_loss: The loss at which the path ends: that of chance level.
        batch_size: How many policies may be probed at the same time.
    """
    (here,) = yield [start]
    labels, refused = start, set[Move]()
    while here is not None and here.loss < max_loss:
        options = {move: after for move, after in deletions(labels).items() if move not in refused}
        best = yield from _best_deletion(here, options, refused, ratios, batch_size)
        if best is None:
            return
        labels, here = best


def _best_deletion(
    here: Probe, options: dict[Move, Labels], refused: set[Move], ratios: dict[Move, float], batch_size: int
) -> Generator[list[Labels], list[Probed], tuple[Labels, Probe] | None]:
    """Probes deletions until the first of the queue was probed in this step; None where no deletion works."""
    probed: dict[Move, Probe] = {}
    while options:
        # A deletion without a ratio comes first.
        queue = sorted(options, key=lambda move: ratios.get(move, float("-inf")))
        if queue[0] in probed:
            return options[queue[0]], probed[queue[0]]
        candidates = [move for move in queue if move not in probed]
        without_ratio = [move for move in candidates if move not in ratios]
        batch = (without_ratio or candidates)[:batch_size]
        probes = yield [options[move] for move in batch]
        for move, probe in zip(batch, probes, strict=True):
            if probe is None or probe.cost >= here.cost:
                refused.add(move)
                del options[move]
            else:
                ratios[move] = (probe.loss - here.loss) / (here.cost - probe.cost)
                probed[move] = probe
    return None


def spread_over_front(points: Mapping[str, Probe], count: int) -> list[str]:
    """At most `count` non-dominated points, evenly spaced along the front, the most expensive first."""
    front: list[str] = []
    for name in sorted(points, key=lambda name: (points[name].cost, points[name].loss)):
        if not front or points[name].loss < points[front[-1]].loss:
            front.append(name)
    front.reverse()
    if len(front) <= count:
        return front
    return [front[round(index * (len(front) - 1) / (count - 1))] for index in range(count)]
