"""The redundancy bandit of EAS (Efficient Attention Skipping, arXiv:2403.15226), which ranks attentions by trials."""

import math
import random
from collections.abc import Callable
from typing import Final

from .placing import Choices, Domains, cumulative_policies, matching_choices, place, unique_policies

# EAS skips 12 of 32 attentions. Its LLaVA variant draws 5 subsets an update and steps by 1, over thousands of updates.
SKIPPED_SHARE: Final = 12 / 32
SUBSETS_PER_UPDATE: Final = 5


def bandit(
    domains: Domains,
    evaluate: Callable[[Choices], float],
    updates: int = 20,
    step: float = 20.0,
    seed: int = 0,
) -> list[Choices]:
    """Policies that skip the attentions which a bandit finds most redundant.

    An attention is an arm with a score s that starts at 0. Each update draws distinct subsets of 3/8 of the arms, and
    sigmoid(s) is the weight of an arm. The reward of a subset is exp(-loss). The score of each of its arms moves by
    `step * (reward - mean reward) * sigmoid(s) * (1 - sigmoid(s))`.

    Args:
        domains: The choices that each layer allows.
        evaluate: Returns the loss of a policy in nats, such as its divergence from dense. It is called `5 * updates`
            times.
        updates: The number of score updates.
        step: The learning rate. EAS uses 1 over thousands of updates while the model is trained; the few updates of a
            frozen model need larger steps.
        seed: Seed of the subsets.

    Returns:
        Policies that skip the most redundant attention, the two most redundant, and so on to 3/8 of them; empty where
        no layer allows to skip its attention alone.
    """
    skips = matching_choices(
        domains,
        lambda choice: (
            (choice.attention, choice.ffn, choice.token_ratio, choice.ffn_ratio) == ("skip", "run", None, None)
        ),
    )
    if not skips:
        return []
    arms = [layer for layer, domain in enumerate(domains) if skips[0] in domain]
    size = max(1, round(SKIPPED_SHARE * len(arms)))
    scores = dict.fromkeys(arms, 0.0)
    rng = random.Random(seed)
    for _ in range(updates):
        probabilities = {arm: 1 / (1 + math.exp(-score)) for arm, score in scores.items()}
        subsets = draw_subsets(probabilities, size, rng)
        rewards = [math.exp(-evaluate(place(skips[0], subset, domains))) for subset in subsets]
        mean = sum(rewards) / len(rewards)
        for subset, reward in zip(subsets, rewards, strict=True):
            for arm in subset:
                scores[arm] += step * (reward - mean) * probabilities[arm] * (1 - probabilities[arm])
    most_redundant = sorted(arms, key=lambda arm: -scores[arm])[:size]
    return unique_policies(cumulative_policies(skips[0], most_redundant, domains), domains)


def draw_subsets(weights: dict[int, float], size: int, rng: random.Random) -> list[list[int]]:
    """Draw distinct subsets of the arms, each by weighted sampling without replacement."""
    subsets: list[list[int]] = []
    while len(subsets) < min(SUBSETS_PER_UPDATE, math.comb(len(weights), size)):
        # Exponential clocks: the arms with the smallest draws of Exp(weight) are a weighted sample without replacement.
        times = {arm: rng.expovariate(weight) for arm, weight in weights.items()}
        subset = sorted(sorted(times, key=lambda arm: times[arm])[:size])
        while subset in subsets:
            # Very unequal weights repeat one subset almost forever, so a duplicate is replaced by a uniform draw.
            subset = sorted(rng.sample(sorted(weights), size))
        subsets.append(subset)
    return subsets
