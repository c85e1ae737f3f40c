"""Which policy to measure next, given all that were: the search strategy, without any library of search.

One objective is expensive and its choices interact; all others are sums over the choices, and so known beforehand.
Candidates come from the additive front (Puzzle, SPDY), from single moves away from the front (the steps of greedy
searches: BlockPruner, SLEB) and from mutation and crossover of the front (EvoPress). A surrogate that is refitted on
all that was measured ranks them by the hypervolume they are expected to add.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ..trial.arrays import Codes, Floats
from .acquisition import History, Knowledge, Memory
from .search_space import Alternatives

PARTS = ("additive", "moves", "mutation", "pairs", "sparse", "refit")
PARENTS = 12
CLIMBS = 2
CLIMBERS = 6
WORK = 80_000  # candidates times choices that the surrogate ranks, about
RANDOM = 512
ENUMERABLE = 4096

Code = NDArray[np.int16]
Possible = Callable[[Code], bool]


class Strategy:
    """Proposes policies.

    Args:
        alternatives: What may be chosen.
        reference: The loss, and each cost, beyond which nothing counts, minimised; None for what the data suggest.
        cost_tables: For each cost what each choice adds, (variables, width), where it is known beforehand.
        parts: Which parts of the strategy are used, of `PARTS`; and `sensitivity`.
        guessing: What counts when guessing, minimised, where the loss only guides.
    """

    def __init__(
        self, alternatives: Alternatives, reference: Floats | None = None,
        cost_tables: Mapping[int, Floats] | None = None, parts: Collection[str] = PARTS, guessing: float = np.inf,
    ) -> None:  # fmt: skip
        self._space = alternatives
        self.parts = frozenset(parts)
        self._size = WORK // (4 * len(alternatives.variable))
        self._memory = Memory(alternatives, reference, cost_tables or {}, self.parts, guessing)

    def propose(self, history: History, draw: np.random.Generator, possible: Possible) -> Iterator[Code]:
        """What to measure next, the best first; dense for ever when there is nothing else.

        Args:
            history: What was measured, and what is being measured.
            draw: Of what is random.
            possible: False for policies that are known already, or not wanted; it is asked at the last moment.
        """
        yield from filter(possible, self._proposals(history, draw, possible))
        while True:
            yield np.zeros(self._space.count, np.int16)

    def _proposals(self, history: History, draw: np.random.Generator, possible: Possible) -> Iterator[Code]:
        space = self._space
        yield np.zeros(space.count, np.int16)
        yield from self._beginnings()
        if np.count_nonzero(history.measured) > 1:
            known = self._memory.of(history)
            if "sensitivity" in self.parts and len(history.codes) % 2:
                yield from self._single_choices(known, draw)
            yield from self._ranked(known, draw, possible)
        yield from space.random(draw, draw.random(RANDOM))
        if np.prod(space.sizes, dtype=float) <= ENUMERABLE:
            yield from draw.permutation(np.indices(tuple(space.sizes)).reshape(space.count, -1).T.astype(np.int16))

    def _beginnings(self) -> Codes:
        """Each kind of choice on every third variable that offers it: so little is lost, and every kind is seen."""
        space = self._space
        found = np.zeros((space.kind.max() + 1, space.count), np.int16)
        for kind in np.unique(space.kind):
            able = np.flatnonzero(space.kind == kind)[1::3]
            found[kind, space.variable[able]] = space.code[able]
        return found

    def _single_choices(self, known: Knowledge, draw: np.random.Generator) -> Codes:
        """Dense but for one choice, those first that the additive front uses most."""
        space = self._space
        front = known.additive_front(draw, np.zeros(space.count, np.int16))
        used = space.features(front).mean(0)
        codes = np.zeros((len(used), space.count), np.int16)
        codes[np.arange(len(used)), space.variable] = space.code
        return codes[np.argsort(-used, kind="stable")]

    def _ranked(self, known: Knowledge, draw: np.random.Generator, possible: Possible) -> Iterator[Code]:
        """Candidates by the gain that is expected of them, the largest first, after some steps uphill."""
        pool = self._pool(known, draw)
        gain = known.expected_gain(pool)
        for _ in range(CLIMBS if "moves" in self.parts else 0):
            order = np.argsort(-gain, kind="stable")
            best = list(islice(filter(possible, pool[order]), CLIMBERS))
            moves = some(
                single_moves(self._space, np.array(best, np.int16).reshape(-1, self._space.count)), 2 * self._size, draw
            )
            gain = np.r_[gain, known.expected_gain(moves)]
            pool = np.vstack([pool, moves])
        yield from pool[np.argsort(-gain, kind="stable")]

    def _pool(self, known: Knowledge, draw: np.random.Generator) -> Codes:
        space, front = self._space, known.front
        parents = front[np.sort(draw.permutation(len(front))[:PARENTS])]
        pool = [parents[:0]]
        if "additive" in self.parts:
            dense = np.zeros(space.count, np.int16)
            around = parents[draw.integers(len(parents))] if len(parents) and draw.random() < 0.5 else dense
            pool.append(known.additive_front(draw, around))
        if "moves" in self.parts:
            pool.append(some(single_moves(space, parents), 2 * self._size, draw))
        if "mutation" in self.parts and len(parents):
            pool += [double_moves(space, parents, self._size // 2, draw), crossovers(parents, self._size // 2, draw)]
        # One of each.
        return np.unique(np.concatenate(pool), axis=0)


def some(codes: Codes, count: int, draw: np.random.Generator) -> Codes:
    """At most so many of them, drawn at random."""
    return codes[draw.permutation(len(codes))[:count]]


def single_moves(space: Alternatives, parents: Codes) -> Codes:
    """Every policy that differs from a parent in one variable."""
    variable, code = np.nonzero(space.exists)
    children = np.repeat(parents, len(variable), axis=0)
    children[np.arange(len(children)), np.tile(variable, len(parents))] = np.tile(code, len(parents))
    return children


def double_moves(space: Alternatives, parents: Codes, count: int, draw: np.random.Generator) -> Codes:
    """Two variables of a parent drawn anew, or, for one half, swapped: a switch costs about the same."""
    children = parents[draw.integers(len(parents), size=count)]
    rows = np.arange(count)
    one, other = draw.integers(space.count, size=(2, count))
    fresh = draw.integers(space.sizes[[one, other]])
    fits = (children[rows, one] < space.sizes[other]) & (children[rows, other] < space.sizes[one])
    swapped = np.where(fits & (rows % 2 == 0), children[rows, [other, one]], fresh)
    children[rows, one], children[rows, other] = swapped
    return children


def crossovers(parents: Codes, count: int, draw: np.random.Generator) -> Codes:
    """The first variables of one parent with the others of another; what was computed for the first holds on."""
    one, other = parents[draw.integers(len(parents), size=(2, count))]
    cut = draw.integers(1, max(parents.shape[1], 2), size=count)
    return np.where(np.arange(parents.shape[1]) < cut[:, None], one, other)
