"""The search strategy: generates candidate policies and ranks them; independent of any search library.

One objective is expensive and its choices interact; all others are sums over the choices, so they are predicted well.
Candidates come from the additive front (Puzzle, SPDY), from single moves away from the front (the steps of greedy
searches: BlockPruner, SLEB) and from mutation and crossover of the front (EvoPress). They are ranked by their expected
hypervolume improvement under a surrogate conditioned on all measured policies.
"""

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ..trial.arrays import Codes, Floats
from .acquisition import Acquisition, ModelCache
from .observations import Observations
from .search_space import CategoricalSpace

MAX_PARENTS = 12
LOCAL_SEARCH_STEPS = 2
LOCAL_SEARCH_STARTS = 6
RANKING_WORK = 80_000  # candidates times choices that the surrogate ranks, about
RANDOM_CANDIDATES = 512
MAX_ENUMERATED = 4096  # largest search space that is enumerated once nothing else is left to propose

Code = NDArray[np.int16]
Possible = Callable[[Code], bool]


class Strategy:
    """Proposes policies.

    Args:
        space: The search space.
        reference: The reference point: the loss and each cost, minimised, NaN for entries to be derived from the first
            policies; None to derive all.
        chance_score: In a guided search the score at chance level, minimised.
    """

    def __init__(self, space: CategoricalSpace, reference: Floats | None = None, chance_score: float = np.inf) -> None:
        self._space = space
        self._size = RANKING_WORK // (4 * len(space.variable))
        self._models = ModelCache(space, reference, chance_score)

    def propose(self, observations: Observations, draw: np.random.Generator, possible: Possible) -> Iterator[Code]:
        """Policies to measure next, the best first; ends in dense, repeated without end.

        Args:
            observations: Measured and pending policies.
            draw: The random generator.
            possible: False for policies that are known or forbidden. It is called as late as possible, because it is
                slow.
        """
        yield from filter(possible, self._proposals(observations, draw, possible))
        while True:
            yield np.zeros(self._space.num_variables, np.int16)

    def _proposals(self, observations: Observations, draw: np.random.Generator, possible: Possible) -> Iterator[Code]:
        space = self._space
        yield np.zeros(space.num_variables, np.int16)
        yield from self._initial_design()
        if np.count_nonzero(observations.measured) > 1:
            yield from self._ranked(self._models.acquisition(observations), draw, possible)
        yield from space.random(draw, draw.random(RANDOM_CANDIDATES))
        if np.prod(space.sizes, dtype=float) <= MAX_ENUMERATED:
            every = np.indices(tuple(space.sizes)).reshape(space.num_variables, -1).T.astype(np.int16)
            yield from draw.permutation(every)

    def _initial_design(self) -> Codes:
        """One policy for each kind of choice, or for each scale, with it on every third variable that has it.

        So every kind is measured, and little enough is left out that the losses are useful. The choices of a scale take
        turns, because what one of them loses tells of the others.
        """
        space = self._space
        scales = np.unique(space.scale)
        codes = np.zeros((len(scales), space.num_variables), np.int16)
        for code, scale in zip(codes, scales, strict=True):
            features = np.flatnonzero(space.scale == scale)
            for turn, variable in enumerate(np.unique(space.variable[features])[1::3]):
                choices = features[space.variable[features] == variable]
                code[variable] = space.code[choices[turn % len(choices)]]
        return codes

    def _ranked(self, acquisition: Acquisition, draw: np.random.Generator, possible: Possible) -> Iterator[Code]:
        """Candidates by expected improvement, the best first, after a local search from the best ones."""
        pool = self._pool(acquisition, draw)
        improvement = acquisition.expected_improvement(pool)
        for _ in range(LOCAL_SEARCH_STEPS):
            order = np.argsort(-improvement, kind="stable")
            best = list(islice(filter(possible, pool[order]), LOCAL_SEARCH_STARTS))
            starts = np.array(best, np.int16).reshape(-1, self._space.num_variables)
            moves = self._moves(starts, draw)
            improvement = np.r_[improvement, acquisition.expected_improvement(moves)]
            pool = np.vstack([pool, moves])
        yield from pool[np.argsort(-improvement, kind="stable")]

    def _pool(self, acquisition: Acquisition, draw: np.random.Generator) -> Codes:
        """Distinct candidates from all sources."""
        front = acquisition.front
        parents = front[np.sort(draw.permutation(len(front))[:MAX_PARENTS])]
        sources = self._additive(acquisition, parents, draw), self._moves(parents, draw), self._offspring(parents, draw)
        return distinct(np.concatenate(sources))

    def _additive(self, acquisition: Acquisition, parents: Codes, draw: np.random.Generator) -> Codes:
        """The exact front of the additive part, around dense or a member of the front."""
        dense = np.zeros(self._space.num_variables, np.int16)
        around = parents[draw.integers(len(parents))] if len(parents) and draw.random() < 0.5 else dense
        return acquisition.additive_front(draw, around)

    def _moves(self, parents: Codes, draw: np.random.Generator) -> Codes:
        """Policies one move away from a parent."""
        moves = single_moves(self._space, parents)
        return moves[draw.permutation(len(moves))[: 2 * self._size]]

    def _offspring(self, parents: Codes, draw: np.random.Generator) -> Codes:
        """Mutants and crossovers of the parents."""
        if not len(parents):
            return parents
        count = self._size // 2
        return np.vstack([double_moves(self._space, parents, count, draw), crossovers(parents, count, draw)])


def distinct(codes: Codes) -> Codes:
    """The distinct policies, in lexicographic order; fifty times as fast as `np.unique` along an axis.

    Rows of big-endian numbers that are not negative compare as their bytes do.
    """
    rows = np.ascontiguousarray(codes, ">i2").view(np.dtype((np.void, 2 * codes.shape[1])))[:, 0]
    return codes[np.unique(rows, return_index=True)[1]]


def single_moves(space: CategoricalSpace, parents: Codes) -> Codes:
    """Every policy that differs from a parent in one variable."""
    variable, code = np.nonzero(space.exists)
    children = np.repeat(parents, len(variable), axis=0)
    children[np.arange(len(children)), np.tile(variable, len(parents))] = np.tile(code, len(parents))
    return children


def double_moves(space: CategoricalSpace, parents: Codes, count: int, draw: np.random.Generator) -> Codes:
    """Random mutants of parents: half swap the choices of two variables, half draw both anew.

    A swap keeps the cost about the same. Where a choice does not exist in the other variable, both are drawn anew.
    """
    children = parents[draw.integers(len(parents), size=count)]
    rows = np.arange(count)
    one, other = draw.integers(space.num_variables, size=(2, count))
    drawn = draw.integers(space.sizes[[one, other]])
    fits = (children[rows, one] < space.sizes[other]) & (children[rows, other] < space.sizes[one])
    changed = np.where(fits & (rows % 2 == 0), children[rows, [other, one]], drawn)
    children[rows, one], children[rows, other] = changed
    return children


def crossovers(parents: Codes, count: int, draw: np.random.Generator) -> Codes:
    """Random one-point crossovers: the first variables of one parent with the last of another.

    The child shares its first layers with a measured policy, so their cached hidden states can be used again.
    """
    one, other = parents[draw.integers(len(parents), size=(2, count))]
    cut = draw.integers(1, max(parents.shape[1], 2), size=count)
    return np.where(np.arange(parents.shape[1]) < cut[:, None], one, other)
