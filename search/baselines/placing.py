"""Policies of a baseline within the choices that a space allows in each layer."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeAlias

from ...policies.choice import KEEP, LayerChoice

# The choices that each layer allows, and one choice a layer.
Domains: TypeAlias = Sequence[Sequence[LayerChoice]]
Choices: TypeAlias = list[LayerChoice]


def default_choice(domain: Sequence[LayerChoice]) -> LayerChoice:
    """The choice of a layer that a baseline leaves alone: keep, or the first allowed one where keep is not allowed."""
    return KEEP if KEEP in domain else domain[0]


def matching_choices(domains: Domains, matches: Callable[[LayerChoice], bool]) -> Choices:
    """The distinct allowed choices other than keep that satisfy a condition, in the order of the space."""
    allowed = dict.fromkeys(choice for domain in domains for choice in domain)
    return [choice for choice in allowed if not choice.is_keep and matches(choice)]


def token_ratio_choices(domains: Domains) -> Choices:
    """The allowed choices that set a token ratio and nothing else, the largest ratio first."""
    ratios = matching_choices(domains, lambda choice: choice == LayerChoice(token_ratio=choice.token_ratio))
    return sorted(ratios, key=kept_tokens, reverse=True)


def kept_tokens(choice: LayerChoice) -> float:
    """The share of the image tokens that a choice processes."""
    return 1.0 if choice.token_ratio is None else choice.token_ratio


def place(choice: LayerChoice, layers: Collection[int], domains: Domains) -> Choices:
    """A policy with one choice in the given layers that allow it."""
    return [
        choice if layer in layers and choice in domain else default_choice(domain)
        for layer, domain in enumerate(domains)
    ]


def cumulative_policies(choice: LayerChoice, order: Iterable[int], domains: Domains) -> list[Choices]:
    """Policies with a choice in the first layer of an order that allows it, in the first two, and so on to all."""
    allowed = [layer for layer in order if choice in domains[layer]]
    return [place(choice, allowed[:count], domains) for count in range(1, len(allowed) + 1)]


def unique_policies(policies: Iterable[Choices], domains: Domains) -> list[Choices]:
    """The distinct policies in their order, without the policy that leaves every layer alone."""
    unchanged = tuple(default_choice(domain) for domain in domains)
    return [list(policy) for policy in dict.fromkeys(map(tuple, policies)) if policy != unchanged]
