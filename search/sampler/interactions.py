"""Which pairs of variables interact: sparse Bayesian learning.

Where all pairs are expected to interact alike, each is expected to do so a little, and those that do more are believed
only after many measurements. So each has a variance of its own besides, learned from the evidence (Tipping 2001, JMLR
1: 211-244).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..trial.arrays import Floats
from .gp_prior import single

# Variances that are learned to the end are too sure of themselves, as there are more pairs than measurements.
ROUNDS = 5


@dataclass(frozen=True)
class Pairs:
    """Pairs of variables; what each does is in proportion to the sizes of the choices that are made for both.

    Attributes:
        sizes: (choices, variables): of every choice, 0 for variables that are not its own.
        one: (pairs,): a variable.
        other: (pairs,): another one.
        variances: (pairs,): of the factor of proportion.
    """

    sizes: Floats
    one: NDArray[np.intp]
    other: NDArray[np.intp]
    variances: Floats

    @classmethod
    def every(cls, sizes: Floats, variance: float) -> "Pairs":
        """All pairs, of equal variance."""
        one, other = np.triu_indices(sizes.shape[1], 1)
        return cls(sizes, one, other, np.full(len(one), variance))

    def features(self, choices: Floats) -> Floats:
        """(policies, pairs): the products of sizes, from the choices that policies make."""
        sizes = choices @ self.sizes
        return sizes.take(self.one, 1) * sizes.take(self.other, 1)

    def between(self, factors: Floats) -> Floats:
        """(variables, variables): what pairs do with these factors, for sizes of 1."""
        found = np.zeros((self.sizes.shape[1],) * 2)
        found[self.one, self.other] = factors
        return found + found.T

    def rounded(self) -> "Pairs":
        """The same in single precision."""
        return replace(self, sizes=single(self.sizes))

    def strongest(self, count: int) -> "Pairs":
        """Those of the largest variances."""
        kept = np.sort(np.argsort(-self.variances, kind="stable")[:count])
        return Pairs(self.sizes, self.one[kept], self.other[kept], self.variances[kept])

    def learned(self, choices: Floats, rest: Floats, covariance: Floats, count: int) -> "Pairs":
        """Those that explain most, with the variances that policies speak for.

        Args:
            choices: (n, choices): of each policy.
            rest: (n,): how far each differs from what was expected.
            covariance: (n, n): of that, without these pairs.
            count: So many are kept at most.
        """
        pairs = self
        for _ in range(ROUNDS):
            features = pairs.features(choices)
            white = np.linalg.inv(np.linalg.cholesky(covariance + (features * pairs.variances) @ features.T))
            effects = white @ features
            # Where the variance is right, the square of what a pair has to do with the misfit is what it is expected to
            # be (the update of MacKay 1992, Neural Computation 4: 415-447).
            expected = np.maximum((effects**2).sum(0), np.finfo(float).tiny)
            variances = pairs.variances * (effects.T @ (white @ rest)) ** 2 / expected
            pairs = Pairs(pairs.sizes, pairs.one, pairs.other, variances).strongest(2 * count)
        return pairs.strongest(count)
