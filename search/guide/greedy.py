"""Lazy greedy deletion of sublayers by loss per saved cost: the initial paths of a guided search.

Each step deletes the sublayer with the least loss per saved FLOP, until the policy is at chance level. A deletion is
probed again only when it comes first in the queue (lazy evaluation: Minoux 1978). The deletions are those of
BlockPruner (arXiv:2406.10594) and SLEB (arXiv:2402.09025), ranked by a loss instead of perplexity.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

Labels: TypeAlias = Mapping[str, str]
Move: TypeAlias = tuple[int, str]  # a layer, or the first layer of a tied group, and the sublayer
Probed: TypeAlias = "Probe | None"  # None where the probe failed
T = TypeVar("T")
Probes: TypeAlias = Generator[list[Labels], list[Probed], T]

PATIENCE = 3  # turns in a row at which a path is dominated before it is put off


@dataclass(frozen=True)
class Probe:
    """Loss and cost of one probed policy.

    Attributes:
        loss: The guide's loss.
        cost: The cost that deletions save.
    """

    loss: float
    cost: float


class GreedyPath:
    """One walk of lazy greedy deletion.

    Its generators yield batches of policies to probe and are sent their probes, None for a failed one. A deletion that
    fails, or saves nothing, is not tried again on the path.

    Args:
        name: What it starts from.
        start: The first policy.
        deletions: Maps a policy to the policies after one further deletion.
        ratios: Last measured loss per saved cost of each deletion, on this path or another one; it is updated.
        max_loss: The loss at which the path ends: that of chance level.
        batch_size: How many policies may be probed at the same time.

    Attributes:
        here: Loss and cost of the policy that the path has reached; None where it has ended.
    """

    def __init__(
        self,
        name: str,
        start: Labels,
        deletions: Callable[[Labels], Mapping[Move, Labels]],
        ratios: dict[Move, float],
        max_loss: float,
        batch_size: int,
    ) -> None:
        self.name = name
        self.here: Probed = None
        self._labels, self._deletions, self._ratios = start, deletions, ratios
        self._max_loss, self._batch_size = max_loss, batch_size
        self._refused: set[Move] = set()

    def begin(self) -> Probes[None]:
        """Probes the first policy."""
        (here,) = yield [self._labels]
        self._reach(self._labels, here)

    def step(self) -> Probes[None]:
        """Deletes the sublayer with the least loss per saved cost; the path ends where no deletion works."""
        options = {move: after for move, after in self._deletions(self._labels).items() if move not in self._refused}
        probed: dict[Move, Probe] = {}
        while options:
            # A deletion without a ratio comes first.
            queue = sorted(options, key=lambda move: self._ratios.get(move, float("-inf")))
            if queue[0] in probed:
                self._reach(options[queue[0]], probed[queue[0]])
                return
            candidates = [move for move in queue if move not in probed]
            without_ratio = [move for move in candidates if move not in self._ratios]
            batch = (without_ratio or candidates)[: self._batch_size]
            probes = yield [options[move] for move in batch]
            self._rank(dict(zip(batch, probes, strict=True)), options, probed)
        self.here = None

    def _rank(self, probes: Mapping[Move, Probed], options: dict[Move, Labels], probed: dict[Move, Probe]) -> None:
        """Stores the ratios of probed deletions, and refuses those that failed or save nothing."""
        for move, probe in probes.items():
            if probe is None or self.here is None or probe.cost >= self.here.cost:
                self._refused.add(move)
                del options[move]
            else:
                self._ratios[move] = (probe.loss - self.here.loss) / (self.here.cost - probe.cost)
                probed[move] = probe

    def _reach(self, labels: Labels, here: Probed) -> None:
        self._labels = labels
        self.here = here if here is not None and here.loss < self._max_loss else None


def race_paths(paths: Sequence[GreedyPath], on_turn: Callable[[GreedyPath], None]) -> Probes[None]:
    """Walks several paths, the most expensive one first, and puts off those that fall behind.

    A path is put off where a point of another path dominates it at `PATIENCE` of its turns in a row. So many starts
    cost little more probes than one. When all others have ended, those put off go on, the cheapest first: it may reach
    costs that no other path has reached.

    Args:
        paths: The paths.
        on_turn: Called with the path whose policies are yielded next.
    """
    for path in paths:
        on_turn(path)
        yield from path.begin()
    visited = [(path, path.here) for path in paths if path.here is not None]
    behind = dict.fromkeys(paths, 0)
    while costs := {path: path.here.cost for path in paths if path.here is not None}:
        running = [path for path in costs if behind[path] < PATIENCE]
        path = max(running, key=costs.__getitem__) if running else min(costs, key=costs.__getitem__)
        if running:
            behind[path] = behind[path] + 1 if is_behind(path, visited) else 0
            if behind[path] == PATIENCE:
                continue
        on_turn(path)
        yield from path.step()
        visited += [] if path.here is None else [(path, path.here)]


def is_behind(path: GreedyPath, visited: Sequence[tuple[GreedyPath, Probe]]) -> bool:
    """True where another path has reached a lower loss at no higher cost."""
    here = path.here
    others = [point for other, point in visited if other is not path]
    return here is not None and any(point.cost <= here.cost and point.loss < here.loss for point in others)


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
