"""Which points no other is at least as good as: the Pareto front of figures that are minimised."""

import numpy as np
from numpy.typing import NDArray

from .arrays import Floats

BLOCK = 32  # points that are compared with all others at once


def non_dominated(points: Floats) -> NDArray[np.int64]:
    """Rows that no other is at least as good as, all figures minimised; of equal ones the first."""
    # By the sum of ranks, which has no rounding, nobody comes before who is at least as good everywhere.
    ranks = [np.unique(figures, return_inverse=True)[1] for figures in points.T]
    rest = np.argsort(np.sum(ranks, axis=0), kind="stable")
    figures, kept = points.T[:, rest], rest[:0]
    while len(rest):
        some = figures[:, :BLOCK]
        best = ~np.triu(as_good(some, some), 1).any(0)
        kept = np.r_[kept, rest[:BLOCK][best]]
        left = ~as_good(some[:, best], figures[:, BLOCK:]).any(0)
        rest, figures = rest[BLOCK:][left], figures[:, BLOCK:][:, left]
    return np.sort(kept)


def as_good(ones: Floats, others: Floats) -> NDArray[np.bool_]:
    """(ones, others): where one, a column of figures, is at least as good as the other in each of them."""
    pairs = zip(ones, others, strict=True)
    return np.asarray(np.logical_and.reduce([one[:, None] <= other for one, other in pairs]))
