"""Who measures what: hidden states serve a policy where one that begins like it was measured."""

from collections.abc import Iterable, Sequence
from itertools import takewhile

from ..policies.policy import Policy

RECENT = 64  # policies of a worker that are looked at: of those before, few states are left


def steps(policy: Policy, num_layers: int) -> list[tuple[str, str]]:
    """What each layer does, and how it ranks image tokens where it leaves some out; equal where it does the same."""
    same = policy.canonical()
    ranked = str(same.token_selection)
    return [(choice.label, "" if choice.token_ratio is None else ranked) for choice in same.choices(num_layers)]


def alike(one: Policy, other: Policy, num_layers: int) -> int:
    """How many of the first layers do the same in two policies."""
    pairs = zip(steps(one, num_layers), steps(other, num_layers), strict=True)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def in_order(policies: Iterable[Policy], num_layers: int) -> list[Policy]:
    """Policies so that those which begin alike follow each other: a walk over the trie of their layers."""
    return sorted(policies, key=lambda policy: steps(policy, num_layers))


def nearest(waiting: Sequence[Policy], workers: Sequence[Sequence[Policy]], num_layers: int) -> tuple[int, int]:
    """Which policy to give to which worker: the pair that shares most layers with what the worker measured.

    Args:
        waiting: The policies that wait, longest first.
        workers: What each idle worker has measured, the latest last; who has been idle longest first.
        num_layers: The model's decoder layers.

    Returns:
        Their places; of equal pairs that of who waits longest.
    """
    pairs = [(place, number) for place in range(len(waiting)) for number in range(len(workers))]

    def shared(pair: tuple[int, int]) -> int:
        policy, measured = waiting[pair[0]], workers[pair[1]][-RECENT:]
        return max((alike(policy, other, num_layers) for other in measured), default=0)

    return max(pairs, key=shared)
