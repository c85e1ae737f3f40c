"""Policies as vectors of small numbers: for each variable the code of its choice, 0 for what dense does."""

from collections.abc import Hashable, Sequence
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ..trial.arrays import Codes, Floats

# How much of what a choice does is its variable's, its variable's and the neighbours', its kind's, and its own.
VARIABLE, NEAR, KIND, OWN = 0.4, 0.2, 0.1, 0.3
REACH = 2.0  # how many variables away neighbours are


class Alternatives:
    """What may be chosen for each variable of a search.

    Args:
        values: For each variable its choices, what dense does first. Equal values of different variables are taken
            to be alike.
        layers: For each variable, the number of its layer, ascending; variables of one layer share its cost. None where
            each is a layer by itself.
    """

    def __init__(self, values: Sequence[Sequence[Hashable]], layers: Sequence[int] | None = None) -> None:
        self.layers = np.arange(len(values)) if layers is None else np.unique(layers, return_inverse=True)[1]
        self.sizes = np.array([len(choices) for choices in values])
        self.width = int(self.sizes.max())
        kinds = {value: number for number, value in enumerate(dict.fromkeys(v for c in values for v in c))}
        # One feature for each choice that differs from dense.
        self.variable = np.repeat(np.arange(len(values)), self.sizes - 1)
        self.code = np.concatenate([np.arange(1, size) for size in self.sizes])
        self.kind = np.array([kinds[value] for choices in values for value in choices[1:]])
        self._first = np.cumsum(self.sizes - 1) - self.sizes

    @property
    def count(self) -> int:
        """How many variables there are."""
        return len(self.sizes)

    @cached_property
    def exists(self) -> NDArray[np.bool_]:
        """(variables, width): where there is a choice."""
        return np.arange(self.width) < self.sizes[:, None]

    @cached_property
    def relation(self) -> Floats:
        """(features, features): how much what one choice does says about what another does.

        Choices of one variable are related, neighbouring variables are, and equal choices of all variables.
        """
        return self.shared @ self.shared.T + OWN * np.eye(len(self.variable))

    @cached_property
    def shared(self) -> Floats:
        """(features, factors): reasons why several choices do as they do, independent of each other."""
        near = np.exp(-np.abs(np.subtract.outer(self.layers, self.layers)) / REACH)
        kinds = np.equal.outer(self.kind, np.unique(self.kind)).astype(float)
        by_variable = self.membership @ np.linalg.cholesky(VARIABLE * np.eye(self.count) + NEAR * near)
        return np.hstack([by_variable, np.sqrt(KIND) * kinds])

    def likeness(self, share: float) -> Floats:
        """(features, features): how much two choices have the same interactions: those of one variable by a share."""
        same = np.equal.outer(self.variable, self.variable)
        return share * same + (1 - share) * np.eye(len(same))

    @cached_property
    def membership(self) -> Floats:
        """(features, variables): 1 where a choice belongs to a variable."""
        return np.equal.outer(self.variable, np.arange(self.count)).astype(float)

    def features(self, codes: Codes) -> Floats:
        """(policies, features): 1 where a policy makes that choice."""
        one_hot = np.zeros((len(codes), len(self.variable)))
        row, variable = np.nonzero(codes)
        one_hot[row, self._first[variable] + codes[row, variable]] = 1.0
        return one_hot

    def table(self, by_feature: Floats, missing: float = np.inf) -> Floats:
        """(variables, width): figures of features by variable and code, 0 for what dense does."""
        table = np.where(self.exists, 0.0, missing)
        table[self.variable, self.code] = by_feature
        return table

    @cached_property
    def combinations(self) -> list[Codes]:
        """By layer (combinations, its variables): everything that its variables may choose together, dense first."""
        parts = (self.sizes[self.layers == layer] for layer in range(self.layers[-1] + 1))
        return [np.array([*product(*map(range, sizes))], np.int16) for sizes in parts]

    @cached_property
    def _radix(self) -> NDArray[np.int64]:
        """(variables, layers): the codes of a policy times this are the numbers of its combinations."""
        radix = np.zeros((self.count, self.layers[-1] + 1), np.int64)
        for variable in reversed(range(self.count)):
            layer = self.layers[variable]
            after = (self.layers == layer) & (np.arange(self.count) > variable)
            radix[variable, layer] = np.prod(self.sizes[after])
        return radix

    def combined(self, codes: Codes) -> NDArray[np.int64]:
        """(policies, layers): the number of each layer's combination."""
        return codes @ self._radix

    def separate(self, combined: NDArray[np.int16]) -> Codes:
        """The codes of policies from the numbers of their layers' combinations."""
        parts = [options[combined[:, layer]] for layer, options in enumerate(self.combinations)]
        return np.hstack(parts).astype(np.int16)

    def by_combination(self, table: Floats) -> Floats:
        """(layers, combinations): sums of a (variables, width) table; infinite where there is no combination."""
        found = np.full((len(self.combinations), max(map(len, self.combinations))), np.inf)
        for layer, options in enumerate(self.combinations):
            variables = np.flatnonzero(self.layers == layer)
            found[layer, : len(options)] = table[variables, options].sum(1)
        return found

    @cached_property
    def joint(self) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
        """Pairs of features that two variables of one layer may have together: the two, and the kind of the pair."""
        same = np.equal.outer(self.layers[self.variable], self.layers[self.variable])
        one, other = np.nonzero(np.triu(same & ~np.equal.outer(self.variable, self.variable), 1))
        kinds = np.unique(np.stack([self.kind[one], self.kind[other]]), axis=1, return_inverse=True)[1]
        return one, other, np.ravel(kinds)

    def random(self, draw: np.random.Generator, rates: Floats) -> Codes:
        """Policies of which each variable differs from dense at a rate of its own: one policy a rate."""
        shape = (len(rates), self.count)
        other = draw.integers(1, self.sizes, shape)
        return np.where(draw.random(shape) < rates[:, None], other, 0).astype(np.int16)
