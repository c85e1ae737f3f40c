"""What a search has measured so far, how good that is, and what it cost: see `search.py`."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from search_problems import CORNER, DIRECTIONS, Codes

from skipsearch.policies.runtime.retention import PrefixTrie, Store
from skipsearch.search.trial.hypervolume import hypervolume, hypervolume_history
from skipsearch.search.trial.pareto import pareto

KEPT = 16  # policies, of all layers of which states may be kept


class Spent(Exception):
    """The budget is used up."""


@dataclass(frozen=True)
class One:
    """A state that is not read."""

    nbytes: int = 1


class Reuse:
    """Which layers run where hidden states are kept: `policies.runtime.prefix.PrefixStates` without a model.

    Args:
        capacity: How many states may be kept.
    """

    def __init__(self, capacity: float) -> None:
        self._trie = PrefixTrie()
        self._store: Store[One] = Store(capacity, self._trie)

    def first(self, steps: Sequence[Hashable]) -> int:
        """The first layer that has to run.

        Args:
            steps: What each layer does.
        """
        path = self._trie.visit(steps)
        found = self._store.find(None, path)
        first = 0 if found is None else found[0] + 1
        for node in path[first:]:
            self._store.put(None, node, One())
        return first


class Ledger:
    """Measures policies, each once, until the budget is spent.

    Args:
        problem: What is searched.
        budget: So many different policies; None for any number.
        passes: So many layer-token executions, in passes of the dense model over all examples.

    Attributes:
        points: Loss and cost by policy, in the order of measuring.
        codes: The policies.
        executions: What was executed by the time that each of them was measured: every time as a whole, and with
            states kept where there is a model. In dense passes.
        spent: The same, until now.
    """

    def __init__(self, problem: Any, budget: int | None, passes: float = np.inf) -> None:
        self.problem, self.budget, self.passes = problem, budget, passes
        self.points: dict[bytes, tuple[float, float]] = {}
        self.codes: list[Codes] = []
        self.executions: list[tuple[float, float]] = []
        self.spent = (0.0, 0.0)
        self._all = tuple(range(problem.examples))
        self._reuse = Reuse(KEPT * problem.layers)
        self._some = self._all, self._reuse

    def __call__(self, code: Codes, again: bool = False) -> tuple[float, float]:
        """The loss and the cost of a policy.

        Args:
            code: The policy.
            again: Run it even where it is known, as a search does that remembers nothing.
        """
        code = np.asarray(code, np.int8)
        key = code.tobytes()
        if key in self.points:
            if again:
                self._execute(code, self._all)
            return self.points[key]
        if len(self.codes) == self.budget:
            raise Spent
        self._execute(code, self._all)
        cost = float(self.problem.costs[np.arange(len(code)), code].sum())
        self.points[key] = self.problem.measure(code), cost
        self.codes.append(code)
        self.executions.append(self.spent)
        return self.points[key]

    def part(self, code: Codes, rows: tuple[int, ...]) -> float:
        """The loss of a policy on some examples: it costs, and is no point of any front."""
        code = np.asarray(code, np.int8)
        self._execute(code, rows)
        return self.problem.measure(code, rows)

    def _execute(self, code: Codes, rows: tuple[int, ...]) -> None:
        if self.spent[0] >= self.passes:
            raise Spent
        work, first = self.problem.work[code], 0
        if hasattr(self.problem, "steps"):
            first = self._kept(rows).first(self.problem.steps(code))
        unit = len(rows) / self.problem.examples / self.problem.layers
        self.spent = self.spent[0] + unit * work.sum(), self.spent[1] + unit * work[first:].sum()

    def _kept(self, rows: tuple[int, ...]) -> Reuse:
        """The states of all examples, or of the few drawn last, which never come again once others are drawn."""
        if rows == self._all:
            return self._reuse
        if rows != self._some[0]:
            self._some = rows, Reuse(np.inf)
        return self._some[1]

    def curves(self) -> dict[str, list[float]]:
        """At some counts of policies: hypervolume on the search's examples and on others, and what was executed."""
        points, front = list(self.points.values()), list[int]()
        seen = hypervolume_history(points, DIRECTIONS, CORNER)
        counts = thinned(len(points))
        held_out = []
        for before, count in zip([0, *counts], counts, strict=False):
            known = [*front, *range(before, count)]
            front = [known[place] for place in pareto([points[index] for index in known], DIRECTIONS)]
            again = [(self.problem.held_out(self.codes[index]), points[index][1]) for index in front]
            held_out.append(hypervolume(again, DIRECTIONS, CORNER))
        places = [count - 1 for count in counts]
        columns = [
            [seen[place] for place in places],
            held_out,
            *zip(*(self.executions[p] for p in places), strict=True),
        ]
        named = zip(("seen", "held_out", "executions", "reused"), columns, strict=True)
        return {"counts": counts} | {name: [round(float(value), 4) for value in column] for name, column in named}


def thinned(length: int) -> list[int]:
    """Counts up to a length: all at first, then a tenth further each; round ones are among them."""
    counts = {25, 50, 100, 200, 300, 500, 1000, length}
    count = 1
    while count < length:
        counts.add(count)
        count = max(count + 1, int(count * 1.1))
    return sorted(count for count in counts if count <= length)
