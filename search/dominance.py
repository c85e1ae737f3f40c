"""Which points no other is at least as good as: the Pareto front of figures that are minimised."""

import numpy as np
from numpy.typing import NDArray

from .additive import Floats

BLOCK = 32  # points that are compared with all others at once


def non_dominated(points: Floats) -> NDArray[np.int64]:
    """Rows that no other is at least as good as, all figures minimised; of equal ones the first."""
    # By the sum of ranks, which has no rounding, nobody comes before who is at least as good everywhere.
    ranks = [np.unique(figures, return_inverse=True)[1] for figures in points.T]
    rest = np.argsort(np.sum(ranks, axis=0), kind="stable")
    kept = rest[:0]
    while len(rest):
        some, rest = rest[:BLOCK], rest[BLOCK:]
        some = some[~np.triu(as_good(points[some], points[some]), 1).any(0)]
        rest = rest[~as_good(points[some], points[rest]).any(0)]
        kept = np.r_[kept, some]
    return np.sort(kept)


def as_good(ones: Floats, others: Floats) -> NDArray[np.bool_]:
    """(ones, others): where one is at least as good as the other in every figure."""
    pairs = zip(ones.T, others.T, strict=True)
    return np.asarray(np.logical_and.reduce([one[:, None] <= other for one, other in pairs]))
