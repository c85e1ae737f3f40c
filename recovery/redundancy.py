"""The redundancy bandit of EAS (Efficient Attention Skipping, arXiv:2403.15226): its subsets and its scores.

An attention is an arm with a score s that starts at 0. An update draws distinct subsets of the arms, of which each arm
has the weight sigmoid(s), and finds the loss without each of them. The reward of a subset is exp(-loss), and the score
of each of its arms moves by step * (reward - mean reward) * sigmoid(s) * (1 - sigmoid(s)).
"""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Final

# As the LLaVA variant of EAS draws.
SUBSETS_PER_UPDATE: Final = 5


def probabilities(scores: Mapping[int, float]) -> dict[int, float]:
    """The weight of each arm."""
    return {arm: 1 / (1 + math.exp(-score)) for arm, score in scores.items()}


def draw_subset(weights: Mapping[int, float], size: int, rng: random.Random) -> list[int]:
    """Draw a subset of the arms, ascending, by weighted sampling without replacement."""
    # Exponential clocks: the arms with the smallest draws of Exp(weight) are a weighted sample without replacement.
    times = {arm: rng.expovariate(weight) for arm, weight in weights.items()}
    return sorted(sorted(times, key=lambda arm: times[arm])[:size])


def draw_subsets(weights: Mapping[int, float], size: int, rng: random.Random) -> list[list[int]]:
    """Draw the distinct subsets of an update; fewer where there are not so many."""
    subsets: list[list[int]] = []
    while len(subsets) < min(SUBSETS_PER_UPDATE, math.comb(len(weights), size)):
        subset = draw_subset(weights, size, rng)
        while subset in subsets:
            # Very unequal weights repeat one subset almost forever, so a duplicate is replaced by a uniform draw.
            subset = sorted(rng.sample(sorted(weights), size))
        subsets.append(subset)
    return subsets


def updated(
    scores: Mapping[int, float], subsets: Sequence[Sequence[int]], rewards: Sequence[float], step: float
) -> dict[int, float]:
    """The scores after an update.

    Args:
        scores: The score of each arm.
        subsets: What was tried.
        rewards: The reward of each subset.
        step: The learning rate.
    """
    weights, mean, found = probabilities(scores), sum(rewards) / len(rewards), dict(scores)
    for subset, reward in zip(subsets, rewards, strict=True):
        for arm in subset:
            found[arm] += step * (reward - mean) * weights[arm] * (1 - weights[arm])
    return found


def most_redundant(scores: Mapping[int, float], size: int) -> list[int]:
    """So many arms with the highest scores, the highest first; of equal ones the lower number."""
    return sorted(scores, key=lambda arm: -scores[arm])[:size]
