"""Which hidden states are worth their memory: the trie of what policies began with, and a store that keeps the best.

A state behind a layer saves the layers up to it whenever a policy begins with the same choices. So it is worth what it
saves beyond the nearest state before it that is kept too, as often as policies came by; those long ago count less, for
a search moves on.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

# Of 200 policies that a search proposed one after the other, 0.95 to 0.98 saves most, for all but the largest stores.
FADING = 0.98


class Sized(Protocol):
    """What a store keeps."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        ...


T = TypeVar("T", bound=Sized)


@dataclass
class Tally:
    """How often something came by; what was long ago counts less.

    Attributes:
        level: Logarithm of that, up to a term that is the same for all tallies at any time.
    """

    level: float = -math.inf
    _count: float = 0.0
    _last: int = 0

    def add(self, now: int) -> None:
        """Count once more.

        Args:
            now: How many policies there were.
        """
        self._count = 1 + self._count * FADING ** (now - self._last)
        self._last = now
        self.level = math.log(self._count) - math.log(FADING) * now


class PrefixTrie:
    """What policies begin with, as a trie: a node for the choices of the first layers, its child for one layer more.

    Attributes:
        policies: How many came by.
    """

    def __init__(self) -> None:
        self.policies = 0
        self._children: dict[tuple[int, Hashable], int] = {}
        self._parents: list[int] = []
        self._tallies: list[Tally] = []
        self._path: list[int] = []

    def visit(self, steps: Sequence[Hashable]) -> list[int]:
        """The nodes of a policy, by layer. It is counted once for as long as no other comes.

        Args:
            steps: What each layer does.
        """
        path, node = [], -1
        for step in steps:
            known = self._children.setdefault((node, step), len(self._parents))
            if known == len(self._parents):
                self._parents.append(node)
                self._tallies.append(Tally())
            path.append(node := known)
        if path != self._path:
            self._path = path
            self.policies += 1
            for node in path:
                self._tallies[node].add(self.policies)
        return path

    def above(self, node: int) -> Iterator[int]:
        """The nodes before it, the nearest first; -1 before the first layer is the last of them."""
        while node >= 0:
            node = self._parents[node]
            yield node

    def level(self, node: int) -> float:
        """How often policies came by; see `Tally`."""
        return self._tallies[node].level


@dataclass
class Shelf(Generic[T]):
    """What is kept of one batch.

    Attributes:
        values: By node.
        savings: By node, the logarithm of the layers that it saves beyond the nearest one before it.
        tally: How often the batch came.
        before: The tally's level before the batch came last.
        policy: The policy that it came for last.
    """

    values: dict[int, T] = field(default_factory=dict)
    savings: dict[int, float] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    before: float = -math.inf
    policy: int = 0

    def come(self, policy: int) -> None:
        """Count the batch.

        Args:
            policy: How many policies there were.
        """
        self.before, self.policy = self.tally.level, policy
        self.tally.add(policy)

    def level(self, policy: int) -> float:
        """How often the batch came for earlier policies: those that wait for their turn are not rarer."""
        return self.before if self.policy == policy and self.before > -math.inf else self.tally.level


class Store(Generic[T]):
    """Values by batch and node, as many of those worth most as fit.

    Args:
        max_bytes: What all of them may take together.
        beginnings: The trie of the nodes.
    """

    def __init__(self, max_bytes: int, beginnings: PrefixTrie) -> None:
        self.max_bytes = max_bytes
        self._beginnings = beginnings
        self._bytes = 0
        self._shelves: dict[Hashable, Shelf[T]] = {}

    def find(self, batch: Hashable, path: Sequence[int]) -> tuple[int, T] | None:
        """The place in a path of the last node whose value is kept, and the value; None where there is none."""
        shelf = self._shelves.setdefault(batch, Shelf())
        shelf.come(self._beginnings.policies)
        # Values that were dropped since have left more to save to those after them.
        shelf.savings = {node: self._saved(shelf, node) for node in shelf.values}
        place = next((place for place in reversed(range(len(path))) if path[place] in shelf.values), None)
        return None if place is None else (place, shelf.values[path[place]])

    def put(self, batch: Hashable, node: int, value: T) -> None:
        """Keep a value of a batch that was asked for, and drop what is worth least, perhaps itself, until all fit."""
        if value.nbytes > self.max_bytes:
            return
        shelf = self._shelves[batch]
        shelf.values[node] = value
        shelf.savings[node] = self._saved(shelf, node)
        self._bytes += value.nbytes
        while self._bytes > self.max_bytes:
            self._drop(shelf, node)

    def clear(self) -> None:
        """Drop everything."""
        self._shelves.clear()
        self._bytes = 0

    def _saved(self, shelf: Shelf[T], node: int) -> float:
        before = enumerate(self._beginnings.above(node), start=1)
        return math.log(next(layers for layers, above in before if above in shelf.values or above < 0))

    def _drop(self, newest: Shelf[T], latest: int) -> None:
        """Drop what is worth least; of equals the latest, for a walk in circles would miss all if the first went."""
        level, policies = self._beginnings.level, self._beginnings.policies
        worths = (
            (often + level(node) + saved, shelf is not newest or node != latest, shelf, node)
            for shelf, often in [(shelf, shelf.level(policies)) for shelf in self._shelves.values()]
            for node, saved in shelf.savings.items()
        )
        *_, shelf, node = min(worths, key=lambda entry: entry[:2])
        self._bytes -= shelf.values.pop(node).nbytes
        del shelf.savings[node]
