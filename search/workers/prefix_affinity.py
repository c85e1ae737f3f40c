"""Sends a policy to the worker that cached the longest common prefix of layers."""

from collections.abc import Sequence
from itertools import takewhile
from typing import TypeAlias

from ...policies.policy import Policy

RECENT = 64  # policies that are compared per worker; of older ones it has hardly any hidden states left

LayerKeys: TypeAlias = list[tuple[str, str, str, str]]


def layer_keys(policy: Policy, num_layers: int) -> LayerKeys:
    """One key per layer that is equal where two policies compute the same in it.

    Returns:
        The choice of each layer, with the ranking of image tokens where the layer drops some, and of channels and
        heads where it runs a share of them, and what the weights are quantised to.
    """
    canonical = policy.canonical()
    selection, width = str(canonical.token_selection), str(canonical.width_selection)
    weights = policy.model.quantization
    choices = canonical.choices(num_layers)
    return [
        (choice.label, "" if choice.token_ratio is None else selection, width if choice.has_width else "", weights)
        for choice in choices
    ]


def common_prefix_length(one: LayerKeys, other: LayerKeys) -> int:
    """How many of the first layers compute the same in two policies."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=True)))


def longest_prefix(policy: LayerKeys, workers: Sequence[Sequence[LayerKeys]]) -> int:
    """The worker that measured a policy with the longest common prefix.

    Args:
        policy: The keys of the policy to measure.
        workers: By idle worker, the keys of the policies that it measured; longest idle first.

    Returns:
        The index of the worker; of equal ones, that of the longest idle.
    """
    lengths = [max((common_prefix_length(policy, other) for other in measured), default=0) for measured in workers]
    return lengths.index(max(lengths))
