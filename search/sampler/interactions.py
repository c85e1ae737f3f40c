"""Learns which pairs of variables interact, by sparse Bayesian learning.

The quadratic kernel gives every pair of variables the same small prior variance, so it needs many measurements to
recognise a strong interaction. Here each pair has a variance of its own besides, learned from the evidence (Tipping
2001, JMLR 1: 211-244).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..trial.arrays import Floats
from .gp_prior import single

# Few iterations, because with more pairs than measurements converged variances are overconfident.
ITERATIONS = 5


@dataclass(frozen=True)
class Pairs:
    """Pairs of variables; the feature of a pair is the product of the scales of the two choices made for it.

    Attributes:
        scales: (choices, variables): the scale of every choice in the column of its variable, 0 elsewhere.
        first: (pairs,): the first variable.
        second: (pairs,): the second variable.
        variances: (pairs,): prior variance of each pair's coefficient.
    """

    scales: Floats
    first: NDArray[np.intp]
    second: NDArray[np.intp]
    variances: Floats

    @classmethod
    def all_pairs(cls, scales: Floats, variance: float) -> "Pairs":
        """All pairs of variables, with equal variance."""
        first, second = np.triu_indices(scales.shape[1], 1)
        return cls(scales, first, second, np.full(len(first), variance))

    def features(self, choices: Floats) -> Floats:
        """(policies, pairs): features of the pairs.

        Args:
            choices: (policies, choices): one-hot.
        """
        scales = choices @ self.scales
        return scales.take(self.first, 1) * scales.take(self.second, 1)

    def as_matrix(self, coefficients: Floats) -> Floats:
        """(variables, variables): symmetric matrix of the pairs' coefficients."""
        matrix = np.zeros((self.scales.shape[1],) * 2)
        matrix[self.first, self.second] = coefficients
        return matrix + matrix.T

    def in_single_precision(self) -> "Pairs":
        """The same pairs in single precision."""
        return replace(self, scales=single(self.scales))

    def strongest(self, count: int) -> "Pairs":
        """The pairs with the largest variances, at most `count`."""
        kept = np.sort(np.argsort(-self.variances, kind="stable")[:count])
        return Pairs(self.scales, self.first[kept], self.second[kept], self.variances[kept])

    def fit(self, choices: Floats, residuals: Floats, covariance: Floats, count: int) -> "Pairs":
        """The pairs that explain most, with variances of high evidence.

        Args:
            choices: (n, choices): of each measured policy.
            residuals: (n,): warped losses minus their prior mean.
            covariance: (n, n): their covariance without pairs, noise included.
            count: How many pairs are kept at most.
        """
        pairs = self
        for _ in range(ITERATIONS):
            features = pairs.features(choices)
            whitening = np.linalg.inv(np.linalg.cholesky(covariance + (features * pairs.variances) @ features.T))
            whitened = whitening @ features
            # At the optimum the squared projection of the residuals on a pair equals its expectation (the update of
            # MacKay 1992, Neural Computation 4: 415-447).
            expected = np.maximum((whitened**2).sum(0), np.finfo(float).tiny)
            variances = pairs.variances * (whitened.T @ (whitening @ residuals)) ** 2 / expected
            pairs = Pairs(pairs.scales, pairs.first, pairs.second, variances).strongest(2 * count)
        return pairs.strongest(count)
