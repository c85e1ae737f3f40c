"""Model of metrics that are sums over the layers: costs, and constraints that do not depend on the loss."""

import numpy as np
from numpy.typing import NDArray

from ..trial.arrays import Codes, Floats
from .search_space import CategoricalSpace

RIDGES = (1e-6, 1e-2, 1e-1)  # noise standard deviations to choose from, as shares of a variable's typical effect


class AdditiveCost:
    """A metric as a sum over the layers, fitted to measured policies.

    Two choices of one layer have a joint effect besides their own: skipping the FFN saves less where the layer
    processes fewer tokens.

    Args:
        space: The search space.
        codes: (n, variables): the policies.
        values: (n,): the metric; NaN where it was not measured.

    Attributes:
        dense: The metric of the dense model.
        error: Standard deviation of the residuals.
        table: (layers, combinations): what each combination of a layer's choices adds; infinite where there is none.
    """

    def __init__(self, space: CategoricalSpace, codes: Codes, values: Floats) -> None:
        measured = np.isfinite(values)
        dense = np.flatnonzero(measured & ~codes.any(1))
        self.dense = float(values[dense[0]]) if len(dense) else float(values[measured].max(initial=0.0))
        effects, self.error = fit_costs(space, codes[measured], values[measured] - self.dense)
        effects, joint_effects = np.split(effects, [len(space.variable)])
        self._space = space
        self.table = space.by_combination(space.table(effects, 0.0))
        for layer, options in enumerate(space.combinations):
            self.table[layer, : len(options)] += self._joint_effects(layer, options, joint_effects)

    def _joint_effects(self, layer: int, options: Codes, joint_effects: Floats) -> Floats:
        """(combinations,): what each combination of one layer adds beyond the effects of its choices."""
        space = self._space
        first, second, _ = space.joint_features
        pairs = np.flatnonzero(space.layers[space.variable[first]] == layer)
        offset = int(np.argmax(space.layers == layer))
        total = np.zeros(len(options))
        for pair in pairs:
            columns = [(space.variable[end] - offset, space.code[end]) for end in (first[pair], second[pair])]
            total += joint_effects[pair] * np.logical_and.reduce([options[:, at] == code for at, code in columns])
        return total

    @property
    def minimum(self) -> float:
        """The smallest value of any policy."""
        return float(self.dense + self.table.min(1).sum())

    @property
    def normalised(self) -> Floats:
        """The table over the range of the metric, 0 in place of infinities."""
        finite = np.where(np.isfinite(self.table), self.table, 0.0)
        found: Floats = finite / max(np.ptp(finite, axis=1).sum(), 1e-300)
        return found

    def main_effects(self) -> Floats:
        """(features,): what each choice adds to the dense model."""
        space = self._space
        codes = np.zeros((len(space.variable), space.num_variables), np.int16)
        codes[np.arange(len(codes)), space.variable] = space.code
        return self(codes) - self.dense

    def __call__(self, codes: Codes) -> Floats:
        """(policies,): predicted values."""
        numbers = self._space.to_combinations(codes)
        found: Floats = self.dense + self.table[np.arange(self.table.shape[0]), numbers].sum(1)
        return found


def fit_costs(space: CategoricalSpace, codes: Codes, values: Floats) -> tuple[Floats, float]:
    """Bayesian linear regression of a metric on features and joint features; effects of equal choices are similar.

    Args:
        space: The search space.
        codes: (n, variables): the measured policies.
        values: (n,): their metric minus that of dense.

    Returns:
        (features and pairs of `CategoricalSpace.joint_features`,): the effect of each choice and the joint effect of
        each pair; and the standard deviation of the residuals.
    """
    first, second, pair_kinds = space.joint_features
    features = space.features(codes)
    features = np.hstack([features, features[:, first] * features[:, second]])
    kinds = np.r_[space.kind, space.kind.max() + 1 + pair_kinds]
    unit = float(np.abs(values).max(initial=0.0)) / space.num_variables
    if not unit:  # Every measured policy costs what dense costs.
        return np.zeros(features.shape[1]), 0.0
    shared = np.equal.outer(kinds, np.unique(kinds)).astype(float)
    prior = (shared @ shared.T + 0.1 * np.eye(len(kinds))) * unit**2

    def posterior_mean(rows: NDArray[np.bool_], ridge: float) -> Floats:
        """The posterior mean of the effects from some of the policies; solves the smaller of two equal systems."""
        design, noise = features[rows], (ridge * unit) ** 2
        if len(design) < len(kinds):
            cross = prior @ design.T
            dual = np.linalg.solve(design @ cross + noise * np.eye(len(design)), values[rows])
            return (cross @ dual).astype(np.float64, copy=False)
        precision = design.T @ design / noise + np.linalg.inv(prior)
        return np.linalg.solve(precision, design.T @ values[rows] / noise).astype(np.float64, copy=False)

    # Half of the policies choose the ridge by the error of the other half.
    every, half = np.ones(len(codes), bool), np.arange(len(codes)) % 2 == 0
    errors = [np.abs(values - features @ posterior_mean(half, ridge))[~half].sum() for ridge in RIDGES]
    effects = posterior_mean(every, RIDGES[int(np.argmin(errors))])
    return effects, float(np.std(values - features @ effects))
