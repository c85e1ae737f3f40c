"""Intervals of ratios over rounds hold the ratio of a machine that drifts, where one moment's interval does not."""

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import binom

from skipsearch.evaluators.base import Measurement
from skipsearch.evaluators.timing.ratio import ratio_interval
from skipsearch.evaluators.timing.rounds import median_interval, merge_rounds

RATIO, REPEATS, ROUNDS, APART, SEEDS = 0.6, 8, 7, 300, 100
PAIRS = REPEATS + (ROUNDS - 1) * APART


def wandering(draw):
    """Relative change of the ratio by pair: an Ornstein-Uhlenbeck process of 3 % that forgets within 100 pairs."""
    keep = np.exp(-1 / 100)
    steps = draw.normal(0, np.sqrt(1 - keep**2), PAIRS)
    return 0.03 * lfilter([1], [1, -keep], steps, zi=[keep * draw.normal()])[0]


def switching(draw):
    """A neighbour that takes turns: for some 100 pairs it adds 4 %, then for some 100 it takes 4 % away."""
    ends = np.cumsum(draw.exponential(100, PAIRS))
    return 0.04 * (-1.0) ** (np.searchsorted(ends, np.arange(PAIRS)) + draw.integers(2))


def pairs(drift, draw):
    """Times of a policy and of dense, with heavy tails and a drift of the machine that both share."""
    shared = np.exp(np.cumsum(draw.normal(0, 0.002, PAIRS)))
    noise = np.exp(0.02 * draw.standard_t(3, (2, PAIRS)))
    return RATIO * np.exp(drift(draw)) * shared * noise[0], shared * noise[1]


@pytest.mark.parametrize("drift", [wandering, switching])
def test_rounds_hold_the_ratio_of_a_machine_that_drifts(drift):
    held = moment = 0
    for seed in range(SEEDS):
        ours, dense = pairs(drift, np.random.default_rng(seed))
        starts = [number * APART for number in range(ROUNDS)]
        parts = [(ours[start : start + REPEATS], dense[start : start + REPEATS]) for start in starts]
        merged = merge_rounds([
            Measurement(float(np.median(one)), dense=float(np.median(other)),
                        detail={"repeats_ms": one.tolist(), "dense_repeats_ms": other.tolist()})
            for one, other in parts
        ])  # fmt: skip
        found = merged.detail["ratio"]
        held += found["low"] <= RATIO <= found["high"]
        at_once = ratio_interval(ours[: ROUNDS * REPEATS], dense[: ROUNDS * REPEATS])
        moment += at_once.low <= RATIO <= at_once.high
    assert held >= 0.95 * SEEDS
    assert moment < 0.7 * SEEDS  # As many repeats in one moment: what the rounds are for.


def test_the_interval_is_the_narrowest_that_the_sign_test_allows():
    assert median_interval([1.0] * 5) is None
    for count in range(6, 60):
        low, high = median_interval([float(value) for value in range(count)])
        outer = int(low)  # values below the interval, and as many above it
        assert high == count - 1 - outer
        assert 2 * binom.cdf(outer, count, 0.5) <= 0.05 < 2 * binom.cdf(outer + 1, count, 0.5)


def test_an_interval_needs_enough_rounds():
    visit = Measurement(5.0, dense=10.0)
    assert "ratio" not in merge_rounds([visit] * 5).detail
    assert merge_rounds([visit] * 6).detail["ratio"] == {"value": 0.5, "low": 0.5, "high": 0.5}
