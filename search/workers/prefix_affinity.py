"""Sends a policy to the worker that cached the longest common prefix of layers."""

from collections.abc import Sequence
from itertools import takewhile
from typing import TypeAlias

from ...policies.policy import Policy

RECENT = 64  # policies of a worker that are looked at: of those before, few states are left

Steps: TypeAlias = list[tuple[str, str]]


def steps(policy: Policy, num_layers: int) -> Steps:
    """What each layer does, and how it ranks image tokens where it leaves some out; equal where it does the same."""
    same = policy.canonical()
    ranked = str(same.token_selection)
    return [(choice.label, "" if choice.token_ratio is None else ranked) for choice in same.choices(num_layers)]


def alike(one: Steps, other: Steps) -> int:
    """How many of the first layers do the same in two policies."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=True)))


def nearest(wanted: Steps, workers: Sequence[Sequence[Steps]]) -> int:
    """Which worker is to measure a policy: the one that measured what begins most like it.

    Args:
        wanted: The policy's layers.
        workers: Those of what each idle worker has measured; who has been idle longest first.

    Returns:
        Its place; of equal ones that of the worker that has been idle longest.
    """
    shared = [max((alike(wanted, other) for other in known), default=0) for known in workers]
    return shared.index(max(shared))
