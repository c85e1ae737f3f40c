"""Deciding which hidden states to keep: a prefix trie of policies, and a store of the most useful states.

A state after a layer saves the layers up to it, whenever a policy makes the same choices in them. Its value is the
number of layers it saves beyond the nearest kept state before it, times how often policies come by. Old visits count
less, because a search moves on.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

# Weight of a visit relative to the next one. Over 200 consecutive policies of a search, 0.95 to 0.98 saves most layers,
# for all but the largest stores.
DECAY = 0.98


class Sized(Protocol):
    """A value of a store."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        ...


T = TypeVar("T", bound=Sized)


@dataclass
class DecayedCount:
    """Counts visits with exponential decay.

    Attributes:
        log_count: Logarithm of the count, up to a term that at any time is the same for all counts.
    """

    log_count: float = -math.inf
    _count: float = 0.0
    _last: int = 0

    def add(self, now: int) -> None:
        """Count one visit.

        Args:
            now: The number of policies so far.
        """
        self._count = 1 + self._count * DECAY ** (now - self._last)
        self._last = now
        self.log_count = math.log(self._count) - math.log(DECAY) * now


class PrefixTrie:
    """A trie of policies: a node stands for the choices of the first layers, its child for one layer more.

    Attributes:
        policies: The number of policies that were visited.
    """

    def __init__(self) -> None:
        self.policies = 0
        self._children: dict[tuple[int, Hashable], int] = {}
        self._parents: list[int] = []
        self._counts: list[DecayedCount] = []
        self._path: list[int] = []

    def visit(self, steps: Sequence[Hashable]) -> list[int]:
        """The nodes of a policy, by layer; repeated visits of one policy count once.

        Args:
            steps: What each layer does.
        """
        path, node = [], -1
        for step in steps:
            child = self._children.setdefault((node, step), len(self._parents))
            if child == len(self._parents):
                self._parents.append(node)
                self._counts.append(DecayedCount())
            path.append(node := child)
        if path != self._path:
            self._path = path
            self.policies += 1
            for node in path:
                self._counts[node].add(self.policies)
        return path

    def ancestors(self, node: int) -> Iterator[int]:
        """The nodes before a node, the nearest first; the last is -1, the root before the first layer."""
        while node >= 0:
            node = self._parents[node]
            yield node

    def log_count(self, node: int) -> float:
        """How often policies visited a node; see `DecayedCount`."""
        return self._counts[node].log_count


@dataclass
class BatchValues(Generic[T]):
    """The values that are kept for one batch.

    Attributes:
        values: By node.
        log_savings: By node, the logarithm of the layers that it saves beyond the nearest kept node before it.
        count: How often the batch was asked for.
        previous_log_count: The count before the batch was last asked for.
        last_policy: The number of the policy that last asked for it.
    """

    values: dict[int, T] = field(default_factory=dict)
    log_savings: dict[int, float] = field(default_factory=dict)
    count: DecayedCount = field(default_factory=DecayedCount)
    previous_log_count: float = -math.inf
    last_policy: int = 0

    def record(self, policy: int) -> None:
        """Count one request of the batch.

        Args:
            policy: The number of policies so far.
        """
        self.previous_log_count, self.last_policy = self.count.log_count, policy
        self.count.add(policy)

    def log_count(self, policy: int) -> float:
        """How often earlier policies asked for the batch.

        The current policy does not count, so that batches it has yet to ask for do not look rarer.
        """
        if self.last_policy == policy and self.previous_log_count > -math.inf:
            return self.previous_log_count
        return self.count.log_count


class Store(Generic[T]):
    """Keeps values by batch and node within a number of bytes, and drops the least useful ones.

    Args:
        max_bytes: What all values may take together.
        trie: The trie of the nodes.
    """

    def __init__(self, max_bytes: int, trie: PrefixTrie) -> None:
        self.max_bytes = max_bytes
        self._trie = trie
        self._bytes = 0
        self._batches: dict[Hashable, BatchValues[T]] = {}

    @property
    def used_bytes(self) -> int:
        """What all values take together."""
        return self._bytes

    def find(self, batch: Hashable, path: Sequence[int]) -> tuple[int, T] | None:
        """The last node on a path whose value is kept: its place in the path and the value; None without any."""
        kept = self._batches.setdefault(batch, BatchValues())
        kept.record(self._trie.policies)
        # Where values were dropped since, those after them save more layers.
        kept.log_savings = {node: self._log_saved(kept, node) for node in kept.values}
        place = next((place for place in reversed(range(len(path))) if path[place] in kept.values), None)
        return None if place is None else (place, kept.values[path[place]])

    def put(self, batch: Hashable, node: int, value: T) -> None:
        """Keep a value of a batch that `find` was asked for, then drop the least useful ones, perhaps this one."""
        if value.nbytes > self.max_bytes:
            return
        kept = self._batches[batch]
        kept.values[node] = value
        kept.log_savings[node] = self._log_saved(kept, node)
        self._bytes += value.nbytes
        while self._bytes > self.max_bytes:
            self._drop(kept, node)

    def clear(self) -> None:
        """Drop everything."""
        self._batches.clear()
        self._bytes = 0

    def _log_saved(self, kept: BatchValues[T], node: int) -> float:
        before = enumerate(self._trie.ancestors(node), start=1)
        return math.log(next(layers for layers, ancestor in before if ancestor in kept.values or ancestor < 0))

    def _drop(self, newest: BatchValues[T], latest: int) -> None:
        """Drop the least useful value, of equally useful ones the latest.

        Batches repeat in a cycle: if the oldest value were dropped, every request would miss.
        """
        log_count, policies = self._trie.log_count, self._trie.policies
        values = (
            (batch_count + log_count(node) + saved, kept is not newest or node != latest, kept, node)
            for kept, batch_count in [(kept, kept.log_count(policies)) for kept in self._batches.values()]
            for node, saved in kept.log_savings.items()
        )
        *_, kept, node = min(values, key=lambda entry: entry[:2])
        self._bytes -= kept.values.pop(node).nbytes
        del kept.log_savings[node]
