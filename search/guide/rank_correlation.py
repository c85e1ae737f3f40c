"""Kendall's rank correlation with a bootstrap interval."""

import numpy as np

from ..trial.trial_result import IntervalEstimate

BOOTSTRAP_SAMPLES = 1000
PERCENTILES = (2.5, 97.5)


def kendall(values: np.ndarray, others: np.ndarray, seed: int = 0) -> IntervalEstimate | None:
    """Kendall's tau-b of two variables, with a 95 % interval.

    tau-b is the number of concordant pairs less that of discordant ones, over the geometric mean of the numbers of
    pairs that each variable does not tie. So a tie in one variable alone counts against it (Kendall, The treatment of
    ties in ranking problems, 1945). The interval is a percentile bootstrap over trials; a trial that is drawn twice
    ties with itself in both.

    Args:
        values: One variable of each trial, shape (n,).
        others: The other variable, shape (n,).
        seed: Seed of the bootstrap.

    Returns:
        None where a variable is constant.
    """
    signs = [np.sign(x[:, None] - x[None, :]).astype(np.float32) for x in (values, others)]
    count = len(values)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=BOOTSTRAP_SAMPLES)
    # The first row is the sample itself.
    weights = np.concatenate([np.ones((1, count)), draws]).astype(np.float32)

    def pair_sums(matrix: np.ndarray) -> np.ndarray:
        return np.einsum("di,di->d", weights @ matrix, weights, dtype=np.float64)

    untied = np.sqrt(pair_sums(np.abs(signs[0])) * pair_sums(np.abs(signs[1])))
    if not untied[0]:
        return None
    defined = untied > 0
    value, *resampled = pair_sums(signs[0] * signs[1])[defined] / untied[defined]
    low, high = np.percentile(resampled, PERCENTILES)
    return IntervalEstimate(float(value), float(low), float(high))
