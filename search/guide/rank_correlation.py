"""Kendall's rank correlation of two figures, with its error."""

import numpy as np

from ..trial.trial_result import Estimate

DRAWS = 1000
LEVELS = (2.5, 97.5)


def kendall(one: np.ndarray, other: np.ndarray, seed: int = 0) -> Estimate | None:
    """Kendall's tau-b of two figures, with a 95 % interval.

    Of all pairs that neither figure ties, the share that both order alike less the share that they do not; ties of one
    figure alone count against it (Kendall, The treatment of ties in ranking problems, 1945). The interval is a
    percentile bootstrap over trials; a trial that is drawn twice ties with itself in both.

    Args:
        one: The figure of each trial, shape (n,).
        other: The other figure, shape (n,).
        seed: Of the bootstrap.

    Returns:
        None where a figure is the same for all.
    """
    signs = [np.sign(figure[:, None] - figure[None, :]).astype(np.float32) for figure in (one, other)]
    count = len(one)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    weights = np.concatenate([np.ones((1, count)), draws]).astype(np.float32)

    def pairs(matrix: np.ndarray) -> np.ndarray:
        return np.einsum("di,di->d", weights @ matrix, weights, dtype=np.float64)

    ordered = np.sqrt(pairs(np.abs(signs[0])) * pairs(np.abs(signs[1])))
    if not ordered[0]:
        return None
    known = ordered > 0
    value, *again = pairs(signs[0] * signs[1])[known] / ordered[known]
    low, high = np.percentile(again, LEVELS)
    return Estimate(float(value), float(low), float(high))
