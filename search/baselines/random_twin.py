"""The random baseline: what a policy would be worth if it chose image tokens at random."""

from ...policies.policy import Policy
from ...policies.scores.random import RandomScore


def random_twin(policy: Policy) -> Policy | None:
    """The policy with the same choices and ratios whose image tokens are chosen at random.

    None where it ranks no image tokens, or chooses at random itself.
    """
    canonical = policy.canonical()
    selection = canonical.token_selection
    ranks = any(choice.token_ratio for choice in canonical.layers.values())
    if not ranks or selection.score == RandomScore.name:
        return None
    random = selection.model_copy(update={"score": RandomScore.name, "diversity": 0.0})
    return canonical.model_copy(update={"token_selection": random, "measured": {}}).canonical()
