"""The redundancy bandit of EAS (Efficient Attention Skipping, arXiv:2403.15226), which ranks attentions by trials."""

import math
import random
from collections.abc import Callable
from typing import Final

from ...recovery.redundancy import draw_subsets, most_redundant, probabilities, updated
from .placing import Choices, Domains, cumulative_policies, matching_choices, place, unique_policies

# EAS skips 12 of 32 attentions.
SKIPPED_SHARE: Final = 12 / 32


def bandit(
    domains: Domains,
    evaluate: Callable[[Choices], float],
    updates: int = 20,
    step: float = 20.0,
    seed: int = 0,
) -> list[Choices]:
    """Policies that skip the attentions which a bandit finds most redundant.

    Each update tries subsets of 3/8 of the attentions; see `recovery.redundancy`.

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
        subsets = draw_subsets(probabilities(scores), size, rng)
        rewards = [math.exp(-evaluate(place(skips[0], subset, domains))) for subset in subsets]
        scores = updated(scores, subsets, rewards, step)
    ranked = most_redundant(scores, size)
    return unique_policies(cumulative_policies(skips[0], ranked, domains), domains)
