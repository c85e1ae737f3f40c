"""The probability that a divergence leaves room for an accuracy is what it says, also where the spread is uneven."""

import numpy as np
import pytest

from skipsearch.search.proxy import LEAST, NEAR, Proxy, decreasing


def drawn(count, seed):
    """Accuracy falls with divergence, and is the less certain the lower it is."""
    draw = np.random.default_rng(seed)
    divergences = draw.exponential(0.5, count)
    spread = 0.01 + 0.1 * (1 - np.exp(-divergences))
    return divergences, np.exp(-divergences) + spread * draw.standard_t(3, count)


def test_the_regression_is_the_best_decreasing_one():
    assert decreasing(np.array([3.0, 1.0, 2.0, 0.0])).tolist() == [3.0, 1.5, 1.5, 0.0]
    assert decreasing(np.array([1.0, 2.0, 3.0])).tolist() == [2.0] * 3
    assert decreasing(np.array([3.0, 2.0, 1.0])).tolist() == [3.0, 2.0, 1.0]


@pytest.mark.parametrize("chance", [0.05, 0.2, 0.5])
def test_candidates_judged_unlikely_reach_the_accuracy_no_oftener_than_told(chance):
    wrong = judged = 0
    for seed in range(12):
        x, y = drawn(260, seed)
        proxy = Proxy(x[:200], y[:200])
        rivals = np.quantile(y[:200], [0.25, 0.5, 0.75, 0.9])
        for divergence, accuracy in zip(x[200:], y[200:], strict=True):
            unlikely = [rival for rival in rivals if proxy.beats(divergence, rival) <= chance]
            judged += len(unlikely)
            wrong += sum(accuracy >= rival for rival in unlikely)
    assert judged > 500
    assert wrong / judged <= chance


def test_it_tells_the_hopeless_from_the_promising():
    x, y = drawn(200, 0)
    proxy = Proxy(x, y)
    assert proxy.beats(2.0, 0.9) == 1 / (1 + NEAR)
    assert proxy.beats(0.02, 0.9) > 0.8
    assert proxy.beats(0.5, 0.5) > proxy.beats(0.5, 0.6) > proxy.beats(0.5, 0.8)


def test_it_says_nothing_after_few_trials_and_never_that_something_cannot_be():
    x, y = drawn(200, 1)
    assert Proxy(x[: LEAST - 1], y[: LEAST - 1]).beats(0.1, 0.5) is None
    assert Proxy(x[:LEAST], y[:LEAST]).beats(9.0, 0.99) == 1 / (1 + LEAST)


def test_beyond_what_was_seen_the_nearest_counts():
    x, y = drawn(100, 2)
    proxy = Proxy(x, y)
    assert proxy.beats(x.max() + 5, 0.3) == proxy.beats(x.max(), 0.3)
