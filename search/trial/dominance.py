"""Non-dominated points, all objectives minimised."""

import numpy as np
from numpy.typing import NDArray

from .arrays import Floats

BLOCK = 32  # points compared with all remaining points at once: bounds the memory of the comparison


def non_dominated(points: Floats) -> NDArray[np.int64]:
    """Non-dominated rows of a matrix, all columns minimised; of equal rows the first.

    Args:
        points: (n, objectives).

    Returns:
        Row numbers, ascending.
    """
    # Sorted by the sum of its ranks, a point comes after every point that weakly dominates it. Ranks, unlike values,
    # add up without rounding.
    ranks = [np.unique(column, return_inverse=True)[1] for column in points.T]
    remaining = np.argsort(np.sum(ranks, axis=0), kind="stable")
    columns, front = points.T[:, remaining], remaining[:0]
    while len(remaining):
        block = columns[:, :BLOCK]
        best = ~np.triu(weakly_dominates(block, block), 1).any(0)
        front = np.r_[front, remaining[:BLOCK][best]]
        kept = ~weakly_dominates(block[:, best], columns[:, BLOCK:]).any(0)
        remaining, columns = remaining[BLOCK:][kept], columns[:, BLOCK:][:, kept]
    return np.sort(front)


def weakly_dominates(points: Floats, others: Floats) -> NDArray[np.bool_]:
    """(points, others): True where a point is at least as good as another in every objective.

    Args:
        points: (objectives, points).
        others: (objectives, others).
    """
    pairs = zip(points, others, strict=True)
    return np.asarray(np.logical_and.reduce([point[:, None] <= other for point, other in pairs]))
