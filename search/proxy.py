"""What a policy's divergence says of its accuracy, learned from the trials that measured both.

Nothing is assumed of how the two hang together but that accuracy does not rise with divergence. How wrong such a guess
is, is seen from trials that it was not learned from, of about the same divergence.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST = 20  # trials below which nothing is said
NEAR = 40  # trials of the nearest divergence whose errors count
FOLDS = 10


class Proxy:
    """The probability that an accuracy is reached, from a divergence.

    It is that of CV+ (Barber, Candès, Ramdas and Tibshirani, Predictive inference with the jackknife+, 2021): errors of
    a decreasing regression on trials that it left out, added to what it says of the candidate; 1 is added to both
    counts, as the candidate may be the worst of all. It holds on average over candidates that are like the trials it
    was learned from, and at worst is half of what it should be. Candidates that were given up for their divergence are
    missing among those trials, so who gives up by it should measure some of them all the same.

    Args:
        divergences: Of trials that measured both.
        accuracies: Of the same trials.
        seed: Of the folds.
    """

    def __init__(self, divergences: Sequence[float], accuracies: Sequence[float], seed: int = 0) -> None:
        order = np.argsort(divergences, kind="stable")
        self._x: Floats = np.asarray(divergences, float)[order]
        self._y: Floats = np.asarray(accuracies, float)[order]
        self._fold = np.random.default_rng(seed).permutation(len(order)) % FOLDS
        self._fits = [decreasing(self._y[self._fold != fold]) for fold in range(FOLDS)] if len(order) >= LEAST else []

    def beats(self, divergence: float, accuracy: float) -> float | None:
        """The probability that a policy of this divergence has at least this accuracy; None after too few trials."""
        if not self._fits:
            return None
        middle = int(np.searchsorted(self._x, divergence))
        first = max(0, min(middle - NEAR // 2, len(self._x) - NEAR))
        near = np.arange(first, min(first + NEAR, len(self._x)))
        here = [self._said(fold, np.array([divergence]))[0] for fold in range(FOLDS)]
        known = np.concatenate([self._said(self._fold[place], self._x[place : place + 1]) for place in near])
        possible = np.array(here)[self._fold[near]] + self._y[near] - known
        return float((1 + np.count_nonzero(possible >= accuracy)) / (1 + len(near)))

    def _said(self, fold: int, divergences: Floats) -> Floats:
        """What the regression without a fold says."""
        return np.interp(divergences, self._x[self._fold != fold], self._fits[fold])


def decreasing(figures: Floats) -> Floats:
    """The figures that never rise and are nearest to these by least squares: pool adjacent violators."""
    means: list[float] = []
    counts: list[int] = []
    for figure in figures:
        means.append(float(figure))
        counts.append(1)
        while len(means) > 1 and means[-2] < means[-1]:
            mean, count = means.pop(), counts.pop()
            means[-1] = (means[-1] * counts[-1] + mean * count) / (counts[-1] + count)
            counts[-1] += count
    return np.repeat(means, counts)
