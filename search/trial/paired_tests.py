"""Compares policies on the same examples: paired significance tests and bootstrap intervals."""

from collections.abc import Sequence

import numpy as np

from ...evaluators.base import Measurement
from .scores import example_weights, task_sizes
from .trial_result import IntervalEstimate

SIGNIFICANCE = 0.05  # Policies whose p-value is above this level are tied.
FLIPS = 4000
TOLERANCE = 1e-6
DRAWS = 2000
LEVELS = (2.5, 97.5)


def example_scores(entry: Measurement | None) -> np.ndarray | None:
    """The score of each example, shape (n,); None without scores, or where their mean over tasks is not the value."""
    scores = np.asarray(entry.detail.get("per_example", ()), dtype=float) if entry else np.empty(0)
    if entry is None or len(scores) != entry.n or not len(scores):
        return None
    mean = float((scores * example_weights(task_sizes(entry))).mean())
    return scores if abs(mean - entry.value) < TOLERANCE else None


def bootstrap_weights(sizes: Sequence[int], draws: int, random: np.random.Generator) -> np.ndarray:
    """Weights of the examples when each task is resampled with replacement, shape (draws, n), each row summing to 1."""
    parts = [random.multinomial(size, np.full(size, 1 / size), size=draws) / (size * len(sizes)) for size in sizes]
    return np.concatenate(parts, axis=1)


def p_value(one: Measurement | None, other: Measurement | None, seed: int = 0) -> float | None:
    """Two-sided p-value of the difference between two policies on the same examples.

    Where scores are 0 or 1 and all examples weigh the same, this is McNemar's exact test. Otherwise it is a permutation
    test that flips the signs of the differences at random.

    Args:
        one: A metric with its per-example scores.
        other: The same metric of another policy, on the same examples.
        seed: Of the random signs.

    Returns:
        None where scores are missing or the examples differ.
    """
    ours, theirs = example_scores(one), example_scores(other)
    if one is None or other is None or ours is None or theirs is None or task_sizes(one) != task_sizes(other):
        return None
    differences = ours - theirs
    weights = example_weights(task_sizes(one))
    if np.isin(differences, (-1.0, 0.0, 1.0)).all() and np.ptp(weights) < TOLERANCE * weights[0]:
        return mcnemar(int((differences > 0).sum()), int((differences < 0).sum()))
    weighted = differences * weights
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(FLIPS, len(weighted)))
    as_extreme = np.abs(signs @ weighted) >= abs(weighted.sum()) * (1 - TOLERANCE)
    return (1 + int(as_extreme.sum())) / (1 + FLIPS)


def mcnemar(better: int, worse: int) -> float:
    """McNemar's exact two-sided p-value.

    Args:
        better: Examples that only the first policy answers correctly.
        worse: Examples that only the second policy answers correctly.
    """
    from scipy.stats import binomtest  # It takes longer to import than all of this package.

    discordant = better + worse
    return float(binomtest(better, discordant).pvalue) if discordant else 1.0


def paired_difference(one: Measurement | None, other: Measurement | None) -> IntervalEstimate | None:
    """The first value minus the second, with a paired bootstrap interval where both kept their scores.

    Both resample the same examples, within each task, and the difference is the mean over tasks, as the metric is.
    Where the second has scores on a part of the examples, the comparison is limited to that part.

    Args:
        one: A metric on all examples.
        other: The same metric of another policy, on all or some of the examples.
    """
    if one is None or other is None:
        return None
    pairs = _paired_scores(one, other)
    if pairs is None:
        return IntervalEstimate(one.value - other.value)
    differences, sizes = pairs
    draws = bootstrap_weights(sizes, DRAWS, np.random.default_rng(0)) @ differences
    low, high = np.percentile(draws, LEVELS)
    return IntervalEstimate(float((differences * example_weights(sizes)).mean()), float(low), float(high))


def _paired_scores(one: Measurement, other: Measurement) -> tuple[np.ndarray, list[int]] | None:
    """Differences of scores ordered by task, and the sizes of the tasks; None where examples do not match."""
    ours, sizes, places = example_scores(one), task_sizes(one), other.detail.get("places")
    if ours is None:
        return None
    if places is None:
        theirs = example_scores(other)
        return (ours - theirs, sizes) if theirs is not None and task_sizes(other) == sizes else None
    theirs = np.asarray(other.detail["per_example"], dtype=float)
    if len(theirs) != len(places):
        return None
    task_of = np.searchsorted(np.cumsum(sizes), places, side="right")
    order = np.argsort(task_of, kind="stable")
    counts = [int(count) for count in np.bincount(task_of) if count]
    return ours[np.asarray(places)[order]] - theirs[order], counts
