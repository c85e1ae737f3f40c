"""A categorical search space: policies as vectors of codes, one variable each, 0 for the dense model's choice."""

from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from itertools import product
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..trial.arrays import Codes, Floats

# Shares of the prior variance of a choice's effect: common to its variable, to neighbouring variables, to equal choices
# of all variables, and its own.
VARIABLE, NEIGHBOURS, KIND, OWN = 0.4, 0.2, 0.1, 0.3
CORRELATION_LENGTH = 2.0  # layers over which the correlation of neighbours falls by 1/e
SCALE_LENGTH = 0.3  # length scale of the correlation along a scale whose positions are shares from 0 to 1

Scales: TypeAlias = Mapping[Hashable, tuple[Hashable, float]]


class CategoricalSpace:
    """The choices of each variable, and how similar they are before anything is measured.

    A feature is one choice that differs from dense. It has a variable, a code and a kind, the number of its value.

    Args:
        values: For each variable its choices, the dense model's first. Equal values of different variables are expected
            to have similar effects.
        layers: For each variable, the number of its layer, ascending; variables of one layer have a joint cost. None
            where each variable is a layer of its own.
        scales: By value of a choice that is one of several on an ordered scale, such as the ratios of one kind: the
            scale, and the position on it from 0 (dense) to 1. Close positions are expected to have similar effects.

    Attributes:
        layers: (variables,): consecutive numbers of layers.
        sizes: (variables,): how many choices each variable has.
        width: The most choices of any variable.
        variable: (features,): the variable of each feature.
        code: (features,): its code.
        kind: (features,): its kind.
        scale: (features,): a number that all kinds of one scale share, and no other kind.
        similarity: (features, features): 1 for equal kinds, less the further apart two kinds are on one scale, else 0.

    Raises:
        ValueError: the layers are not ascending.
    """

    def __init__(
        self,
        values: Sequence[Sequence[Hashable]],
        layers: Sequence[int] | None = None,
        scales: Scales = MappingProxyType({}),
    ) -> None:
        if layers is not None and np.any(np.diff(layers) < 0):
            raise ValueError(f"layers: found {[*layers]}, expected ascending numbers; order the variables by layer")
        self.layers = np.arange(len(values)) if layers is None else np.unique(layers, return_inverse=True)[1]
        self.sizes = np.array([len(choices) for choices in values])
        self.width = int(self.sizes.max())
        kinds = {value: number for number, value in enumerate(dict.fromkeys(v for c in values for v in c))}
        self.variable = np.repeat(np.arange(len(values)), self.sizes - 1)
        self.code = np.concatenate([np.arange(1, size) for size in self.sizes])
        self.kind = np.array([kinds[value] for choices in values for value in choices[1:]])
        places = [scales.get(value, (value, 0.0)) for value in kinds]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in places))}
        self.scale = np.array([numbers[name] for name, _ in places])[self.kind]
        self.similarity = similarity(self.scale, np.array([position for _, position in places])[self.kind])
        # Number of the feature that a variable would have for code 0.
        self._offset = np.cumsum(self.sizes - 1) - self.sizes

    @property
    def num_initial(self) -> int:
        """Number of policies of the initial design, dense among them: one for each scale, and for each other kind."""
        return 1 + len(np.unique(self.scale))

    @property
    def num_variables(self) -> int:
        """Number of variables."""
        return len(self.sizes)

    @cached_property
    def exists(self) -> NDArray[np.bool_]:
        """(variables, width): True where a variable has a choice of that code."""
        return np.arange(self.width) < self.sizes[:, None]

    @cached_property
    def effect_covariance(self) -> Floats:
        """(features, features): prior covariance of the effects of choices, for effects of unit size.

        Choices of one variable are correlated, choices of neighbouring variables, and equal choices of all variables;
        on a scale, also choices that are nearly equal.
        """
        near = np.exp(-np.abs(np.subtract.outer(self.layers, self.layers)) / CORRELATION_LENGTH)
        by_variable = self.membership @ np.linalg.cholesky(VARIABLE * np.eye(self.num_variables) + NEIGHBOURS * near)
        return by_variable @ by_variable.T + (KIND + OWN * self._same_variable) * self.similarity

    def interaction_correlation(self, share: float) -> Floats:
        """(features, features): prior correlation of the interactions of two choices.

        Args:
            share: The correlation for two choices of one variable; more for nearly equal choices of a scale. It is 0
                for choices of different variables.
        """
        return (share + (1 - share) * self.similarity) * self._same_variable

    @cached_property
    def _same_variable(self) -> Floats:
        """(features, features): 1 for choices of one variable, else 0."""
        return self.membership @ self.membership.T

    @cached_property
    def membership(self) -> Floats:
        """(features, variables): 1 where a choice belongs to a variable."""
        return np.equal.outer(self.variable, np.arange(self.num_variables)).astype(float)

    def features(self, codes: Codes) -> Floats:
        """(policies, features): one-hot encoding, 1 where a policy makes that choice."""
        one_hot = np.zeros((len(codes), len(self.variable)))
        policy, variable = np.nonzero(codes)
        one_hot[policy, self._offset[variable] + codes[policy, variable]] = 1.0
        return one_hot

    def table(self, by_feature: Floats, missing: float = np.inf) -> Floats:
        """(variables, width): values of features by variable and code; 0 for the dense choice.

        Args:
            by_feature: (features,).
            missing: The value where a variable has no such choice.
        """
        table = np.where(self.exists, 0.0, missing)
        table[self.variable, self.code] = by_feature
        return table

    @cached_property
    def combinations(self) -> list[Codes]:
        """For each layer (combinations, its variables): all combinations of its variables' choices, dense first."""
        parts = (self.sizes[self.layers == layer] for layer in range(self.layers[-1] + 1))
        return [np.array([*product(*map(range, sizes))], np.int16) for sizes in parts]

    @cached_property
    def _radix(self) -> NDArray[np.int64]:
        """(variables,): mixed-radix weights; a layer's codes times these add up to the number of its combination."""
        radix = np.ones(self.num_variables, np.int64)
        for variable in reversed(range(self.num_variables - 1)):
            if self.layers[variable] == self.layers[variable + 1]:
                radix[variable] = radix[variable + 1] * self.sizes[variable + 1]
        return radix

    def to_combinations(self, codes: Codes) -> NDArray[np.int64]:
        """(policies, layers): the number of each layer's combination."""
        first_variables = np.searchsorted(self.layers, np.arange(self.layers[-1] + 1))
        return np.asarray(np.add.reduceat(codes * self._radix, first_variables, axis=1))

    def from_combinations(self, numbers: NDArray[np.int16]) -> Codes:
        """(policies, variables): the codes of policies from the numbers of their layers' combinations."""
        parts = [options[numbers[:, layer]] for layer, options in enumerate(self.combinations)]
        return np.hstack(parts).astype(np.int16)

    def by_combination(self, table: Floats) -> Floats:
        """(layers, combinations): sums of a (variables, width) table; infinite where there is no combination."""
        found = np.full((len(self.combinations), max(map(len, self.combinations))), np.inf)
        for layer, options in enumerate(self.combinations):
            variables = np.flatnonzero(self.layers == layer)
            found[layer, : len(options)] = table[variables, options].sum(1)
        return found

    @cached_property
    def joint_features(self) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
        """Pairs of features of two variables of one layer, (pairs,) each: first, second and kind of the pair."""
        same_layer = np.equal.outer(self.layers[self.variable], self.layers[self.variable])
        same_variable = np.equal.outer(self.variable, self.variable)
        first, second = np.nonzero(np.triu(same_layer & ~same_variable, 1))
        kinds = np.unique(np.stack([self.kind[first], self.kind[second]]), axis=1, return_inverse=True)[1]
        return first, second, np.ravel(kinds)

    def random(self, draw: np.random.Generator, rates: Floats) -> Codes:
        """Random policies, one for each rate, which is the probability that a variable differs from dense."""
        shape = (len(rates), self.num_variables)
        other = draw.integers(1, self.sizes, shape)
        return np.where(draw.random(shape) < rates[:, None], other, 0).astype(np.int16)


def similarity(scale: NDArray[np.int64], position: Floats) -> Floats:
    """(features, features): a Gaussian kernel over the positions on one scale, 0 for choices on different scales.

    Args:
        scale: (features,): the number of each choice's scale.
        position: (features,): its position.
    """
    distance = np.subtract.outer(position, position) / SCALE_LENGTH
    found: Floats = np.equal.outer(scale, scale) * np.exp(-0.5 * distance**2)
    return found
