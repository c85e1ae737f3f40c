"""Figures that are sums over the variables of a policy: costs, and constraints that do not depend on the loss."""

import numpy as np
from numpy.typing import NDArray

from ..trial.arrays import Codes, Floats
from .search_space import Alternatives

RIDGES = (1e-6, 1e-2, 1e-1)


class Sum:
    """A figure that is a sum over the layers, learned from what was measured.

    What two variables of one layer choose has a part of its own: skipping the FFN saves less where the layer has fewer
    tokens.

    Args:
        alternatives: What may be chosen.
        codes: (n, variables).
        figures: (n,): NaN where it was not measured.
        table: (variables, width): what each choice adds, where it is known beforehand.
    """

    def __init__(self, alternatives: Alternatives, codes: Codes, figures: Floats, table: Floats | None = None) -> None:
        known = np.isfinite(figures)
        dense = np.flatnonzero(known & ~codes.any(1))
        self.dense = float(figures[dense[0]]) if len(dense) else float(figures[known].max(initial=0.0))
        self.error = 0.0
        pairs = np.zeros(len(alternatives.joint[0]))
        if table is None:
            by_feature, self.error = fit_costs(alternatives, codes[known], figures[known] - self.dense)
            by_feature, pairs = np.split(by_feature, [len(alternatives.variable)])
            table = alternatives.table(by_feature, 0.0)
        self._alternatives = alternatives
        # (layers, combinations): what each combination of a layer's choices adds, infinite where there is none.
        self.table = alternatives.by_combination(table)
        for layer, options in enumerate(alternatives.combinations):
            self.table[layer, : len(options)] += self._together(layer, options, pairs)

    def _together(self, layer: int, options: Codes, pairs: Floats) -> Floats:
        """What the combinations of one layer add beyond what their choices add alone."""
        space = self._alternatives
        one, other, _ = space.joint
        here = np.flatnonzero(space.layers[space.variable[one]] == layer)
        first = int(np.argmax(space.layers == layer))
        taken = np.zeros(len(options))
        for pair in here:
            places = [(space.variable[end] - first, space.code[end]) for end in (one[pair], other[pair])]
            taken += pairs[pair] * np.logical_and.reduce([options[:, place] == code for place, code in places])
        return taken

    @property
    def least(self) -> float:
        """The smallest figure that any policy can have."""
        return float(self.dense + self.table.min(1).sum())

    @property
    def axis(self) -> Floats:
        """The table with infinities as 0, in units of what all layers together can change."""
        finite = np.where(np.isfinite(self.table), self.table, 0.0)
        found: Floats = finite / max(np.ptp(finite, axis=1).sum(), 1e-300)
        return found

    def alone(self) -> Floats:
        """(features,): what each choice adds where all other variables do what dense does."""
        space = self._alternatives
        codes = np.zeros((len(space.variable), space.count), np.int16)
        codes[np.arange(len(codes)), space.variable] = space.code
        return self(codes) - self.dense

    def __call__(self, codes: Codes) -> Floats:
        """What policies are expected to measure."""
        combined = self._alternatives.combined(codes)
        found: Floats = self.dense + self.table[np.arange(self.table.shape[0]), combined].sum(1)
        return found


def fit_costs(alternatives: Alternatives, codes: Codes, figures: Floats) -> tuple[Floats, float]:
    """Least squares for a figure that is a sum over layers; choices of equal value are expected to be alike.

    Args:
        alternatives: What may be chosen.
        codes: (n, variables): the policies that were measured.
        figures: (n,): what each of them costs, minus what dense costs.

    Returns:
        (features and pairs of `Alternatives.joint`,): what each choice adds, and what two of one layer add together;
        and how far the sum strays from what was measured.
    """
    one, other, pair_kinds = alternatives.joint
    features = alternatives.features(codes)
    features = np.hstack([features, features[:, one] * features[:, other]])
    kinds = np.r_[alternatives.kind, alternatives.kind.max() + 1 + pair_kinds]
    unit = float(np.abs(figures).max(initial=0.0)) / alternatives.count
    if not unit:  # Nothing was measured yet that differs from dense.
        return np.zeros(features.shape[1]), 0.0
    shared = np.equal.outer(kinds, np.unique(kinds)).astype(float)
    prior = (shared @ shared.T + 0.1 * np.eye(len(kinds))) * unit**2

    def solved(rows: NDArray[np.bool_], ridge: float) -> Floats:
        """The mean of the features given some rows; by way of the rows where they are fewer."""
        taken, noise = features[rows], (ridge * unit) ** 2
        if len(taken) < len(kinds):
            cross = prior @ taken.T
            by_row = np.linalg.solve(taken @ cross + noise * np.eye(len(taken)), figures[rows])
            return (cross @ by_row).astype(np.float64, copy=False)
        by_feature = np.linalg.solve(taken.T @ taken / noise + np.linalg.inv(prior), taken.T @ figures[rows] / noise)
        return by_feature.astype(np.float64, copy=False)

    every, half = np.ones(len(codes), bool), np.arange(len(codes)) % 2 == 0
    errors = [np.abs(figures - features @ solved(half, ridge))[~half].sum() for ridge in RIDGES]
    by_feature = solved(every, RIDGES[int(np.argmin(errors))])
    return by_feature, float(np.std(figures - features @ by_feature))
