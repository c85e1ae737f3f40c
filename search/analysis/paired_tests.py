"""Policies compared on the same examples: what each example scored, and whether two policies can be told apart."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ...evaluators.base import Measurement
from ..trial.trial_result import Estimate

TOLD_APART = 0.05  # two policies are tied where chance alone makes a difference as large with a higher probability
FLIPS = 4000
NEAR = 1e-6
DRAWS = 2000
LEVELS = (2.5, 97.5)


def examples(entry: Measurement | None) -> np.ndarray | None:
    """What each example scored, shape (n,); None where that was not kept, or the figure is not its mean over tasks."""
    scores = np.asarray(entry.detail.get("per_example", ()), dtype=float) if entry else np.empty(0)
    if entry is None or len(scores) != entry.n or not len(scores):
        return None
    return scores if abs(float(scores @ weights(entry)) - entry.value) < NEAR else None


def weights(entry: Measurement) -> np.ndarray:
    """How much each example counts in a figure that is the plain mean over tasks of means over examples."""
    return by_task(task_sizes(entry))


def by_task(sizes: Sequence[int]) -> np.ndarray:
    """How much each example counts in the plain mean over tasks of so many examples."""
    return np.concatenate([np.full(size, 1 / (size * len(sizes))) for size in sizes])


def task_sizes(entry: Measurement) -> list[int]:
    """Examples of each task, in the order in which they stand; one task where none is named."""
    tasks: Mapping[str, Mapping[str, int]] = entry.detail.get("tasks", {})
    sizes = [int(task["n"]) for task in tasks.values()]
    return sizes if sizes and sum(sizes) == entry.n else [entry.n]


def resampled(sizes: Sequence[int], draws: int, random: np.random.Generator) -> np.ndarray:
    """Weights of examples in draws with replacement within each task, shape (draws, n), each row summing to 1."""
    parts = [random.multinomial(size, np.full(size, 1 / size), size=draws) / (size * len(sizes)) for size in sizes]
    return np.concatenate(parts, axis=1)


def chance(one: Measurement | None, other: Measurement | None, seed: int = 0) -> float | None:
    """The probability that two equally good policies differ as much as these on the same examples, two-sided.

    Where an example is right or wrong and all count the same, it is McNemar's exact test; else the signs of the
    differences are flipped at random.

    Args:
        one: A figure with its examples.
        other: The same of another policy, on the same examples.
        seed: Of the flips.

    Returns:
        None where the examples of one are not known, or are not the same.
    """
    ours, theirs = examples(one), examples(other)
    if one is None or other is None or ours is None or theirs is None or task_sizes(one) != task_sizes(other):
        return None
    difference = ours - theirs
    weight = weights(one)
    if np.isin(difference, (-1.0, 0.0, 1.0)).all() and np.ptp(weight) < NEAR * weight[0]:
        return mcnemar(int((difference > 0).sum()), int((difference < 0).sum()))
    weighted = difference * weight
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(FLIPS, len(weighted)))
    as_large = np.abs(signs @ weighted) >= abs(weighted.sum()) * (1 - NEAR)
    return (1 + int(as_large.sum())) / (1 + FLIPS)


def difference(one: Measurement | None, other: Measurement | None) -> Estimate | None:
    """By how much one figure is larger than the other, with the bootstrap's interval where both keep their examples.

    Both are resampled alike, within each task, and it is the mean over tasks, as the figures are; where the other has
    only a part of the examples, on that part.
    """
    if one is None or other is None:
        return None
    ours, theirs, sizes, places = examples(one), examples(other), task_sizes(one), other.detail.get("places")
    if places is not None:
        theirs = np.asarray(other.detail["per_example"], dtype=float)
        task_of = np.searchsorted(np.cumsum(sizes), places, side="right")
        order, sizes = np.argsort(task_of, kind="stable"), [int(count) for count in np.bincount(task_of) if count]
        both = ours is not None and len(theirs) == len(places)
        ours, theirs = (ours[np.asarray(places)[order]], theirs[order]) if ours is not None and both else (None, None)
    elif task_sizes(other) != sizes:
        theirs = None
    if ours is None or theirs is None:
        return Estimate(one.value - other.value)
    drawn = resampled(sizes, DRAWS, np.random.default_rng(0)) @ (ours - theirs)
    low, high = np.percentile(drawn, LEVELS)
    return Estimate(float((ours - theirs) @ by_task(sizes)), float(low), float(high))


def mcnemar(better: int, worse: int) -> float:
    """Exact two-sided p-value of so many examples that only the one and only the other has right."""
    count = better + worse
    tail = sum(math.comb(count, few) for few in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**count)
