"""The redundancy bandit of EAS (arXiv:2403.15226): which attentions a model misses least, found by trying subsets."""

import math
import random
from collections.abc import Callable
from typing import Final

from .placing import Choices, Domains, distinct, kinds, path, put

# EAS skips 12 of 32 attentions. Its LLaVA variant draws 5 subsets an update and steps by 1, over thousands of updates.
SKIPPED: Final = 12 / 32
CANDIDATES: Final = 5


def bandit(
    domains: Domains,
    evaluate: Callable[[Choices], float],
    updates: int = 20,
    step: float = 20.0,
    seed: int = 0,
) -> list[Choices]:
    """Learn how redundant each attention is, and skip the most redundant ones.

    An attention is an arm with a score s that begins at 0 and is drawn with probability sigmoid(s). Every update draws
    distinct subsets of 3/8 of the arms, rewards each with exp(-loss), and moves the scores of its arms by
    `step * (reward - mean reward) * sigmoid(s) * (1 - sigmoid(s))`.

    Args:
        domains: What every layer allows.
        evaluate: The loss of a policy in nats, such as its divergence. It is called `5 * updates` times.
        updates: How often the scores are moved.
        step: How far. EAS steps by 1, thousands of times and while the model is trained; a few updates of a model that
            stays as it is need longer ones.
        seed: Of the subsets.

    Returns:
        The most redundant attention skipped, the two most redundant, and so on to 3/8 of them; nothing where no layer
        may skip its attention alone.
    """
    skips = kinds(domains, lambda choice: (choice.attention, choice.ffn, choice.token_ratio) == ("skip", "run", None))
    if not skips:
        return []
    arms = [index for index, domain in enumerate(domains) if skips[0] in domain]
    count = max(1, round(SKIPPED * len(arms)))
    scores = dict.fromkeys(arms, 0.0)
    draw = random.Random(seed)
    for _ in range(updates):
        chances = {arm: 1 / (1 + math.exp(-score)) for arm, score in scores.items()}
        subsets = drawn(chances, count, draw)
        rewards = [math.exp(-evaluate(put(skips[0], subset, domains))) for subset in subsets]
        mean = sum(rewards) / len(rewards)
        for subset, reward in zip(subsets, rewards, strict=True):
            for arm in subset:
                scores[arm] += step * (reward - mean) * chances[arm] * (1 - chances[arm])
    order = sorted(arms, key=lambda arm: -scores[arm])
    return distinct(path(skips[0], order[:count], domains), domains)


def drawn(chances: dict[int, float], count: int, draw: random.Random) -> list[list[int]]:
    """Distinct subsets of the arms, each drawn without replacement in proportion to the chances."""
    found: list[list[int]] = []
    while len(found) < min(CANDIDATES, math.comb(len(chances), count)):
        # The arms whose exponential clocks, each at the rate of its chance, ring first.
        clocks = {arm: draw.expovariate(chance) for arm, chance in chances.items()}
        subset = sorted(sorted(clocks, key=lambda arm: clocks[arm])[:count])
        while subset in found:
            # Chances far apart give one subset again and again.
            subset = sorted(draw.sample(sorted(chances), count))
        found.append(subset)
    return found
