"""Figures that are sums over the variables of a policy: costs, and constraints that do not depend on the loss."""

import numpy as np
from numpy.typing import NDArray

from .additive import Codes, Floats
from .alternatives import Alternatives

RIDGES = (1e-6, 1e-2, 1e-1)


class Sum:
    """A figure that is a sum over the variables, learned from what was measured.

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
        if table is None:
            by_feature, self.error = fit_costs(alternatives, codes[known], figures[known] - self.dense)
            table = alternatives.table(by_feature, 0.0)
        self.table, self._alternatives = table, alternatives

    def __call__(self, codes: Codes) -> Floats:
        """What policies are expected to measure."""
        return self.dense + self._alternatives.total(self.table, codes)


def fit_costs(alternatives: Alternatives, codes: Codes, figures: Floats) -> tuple[Floats, float]:
    """Least squares for a figure that is a sum over variables; choices of equal value are expected to be alike.

    Args:
        alternatives: What may be chosen.
        codes: (n, variables): the policies that were measured.
        figures: (n,): what each of them costs, minus what dense costs.

    Returns:
        (features,): what each choice adds; and how far the sum strays from what was measured.
    """
    features = alternatives.features(codes)
    alike = alternatives.kind[:, None] == alternatives.kind
    unit = float(np.abs(figures).max(initial=0.0)) / alternatives.count
    if not unit:  # Nothing was measured yet that differs from dense.
        return np.zeros(features.shape[1]), 0.0
    precision = np.linalg.inv(alike + 0.1 * np.eye(len(alike))) / unit**2

    def solved(rows: NDArray[np.bool_], ridge: float) -> Floats:
        some, weight = features[rows], (ridge * unit) ** -2
        found = np.linalg.solve(some.T @ some * weight + precision, some.T @ figures[rows] * weight)
        return found.astype(np.float64, copy=False)

    every, half = np.ones(len(codes), bool), np.arange(len(codes)) % 2 == 0
    errors = [np.abs(figures - features @ solved(half, ridge))[~half].sum() for ridge in RIDGES]
    by_feature = solved(every, RIDGES[int(np.argmin(errors))])
    return by_feature, float(np.std(figures - features @ by_feature))
