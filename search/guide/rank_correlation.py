"""Kendall's rank correlation with a bootstrap interval."""

import math

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
    from scipy.stats import kendalltau  # A tenth of what a worker imports, and few need it.

    tau = float(kendalltau(values, others).statistic)
    if math.isnan(tau):
        return None
    low, high = np.percentile(_bootstrap(values, others, np.random.default_rng(seed)), PERCENTILES)
    return IntervalEstimate(tau, float(low), float(high))


def _bootstrap(values: np.ndarray, others: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """tau-b of every bootstrap sample in which neither variable is constant.

    A sample is a row of weights, so that sums over weighted pairs give all samples at once, which scipy cannot.
    """
    signs = [np.sign(x[:, None] - x[None, :]).astype(np.float32) for x in (values, others)]
    count = len(values)
    draws = random.multinomial(count, np.full(count, 1 / count), size=BOOTSTRAP_SAMPLES)
    weights = draws.astype(np.float32)

    def pair_sums(matrix: np.ndarray) -> np.ndarray:
        return np.einsum("di,di->d", weights @ matrix, weights, dtype=np.float64)

    untied = np.sqrt(pair_sums(np.abs(signs[0])) * pair_sums(np.abs(signs[1])))
    defined = untied > 0
    found: np.ndarray = pair_sums(signs[0] * signs[1])[defined] / untied[defined]
    return found
