"""Putting what a rule wants into the layers, as far as the space allows it."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeAlias

from ...policies.choice import KEEP, LayerChoice

Domains: TypeAlias = Sequence[Sequence[LayerChoice]]
Choices: TypeAlias = list[LayerChoice]


def default(domain: Sequence[LayerChoice]) -> LayerChoice:
    """What a layer does outside a rule: it is kept, or where that is not allowed does the first that is."""
    return KEEP if KEEP in domain else domain[0]


def kinds(domains: Domains, fits: Callable[[LayerChoice], bool]) -> Choices:
    """The choices other than keep that some layer allows and that fit, each once, in the order of the space."""
    found = dict.fromkeys(choice for domain in domains for choice in domain)
    return [choice for choice in found if not choice.is_keep and fits(choice)]


def ratios(domains: Domains) -> Choices:
    """The choices that leave out image tokens and nothing else, the mildest first."""
    pure = kinds(domains, lambda choice: choice == LayerChoice(token_ratio=choice.token_ratio))
    return sorted(pure, key=share, reverse=True)


def share(choice: LayerChoice) -> float:
    """Of the image tokens, the share that is processed."""
    return 1.0 if choice.token_ratio is None else choice.token_ratio


def put(choice: LayerChoice, layers: Collection[int], domains: Domains) -> Choices:
    """A choice in some layers, where these allow it."""
    return [choice if index in layers and choice in domain else default(domain) for index, domain in enumerate(domains)]


def path(choice: LayerChoice, order: Iterable[int], domains: Domains) -> list[Choices]:
    """A choice in the first layer of an order that allows it, in the first two, and so on to all of them."""
    allowed = [index for index in order if choice in domains[index]]
    return [put(choice, allowed[:count], domains) for count in range(1, len(allowed) + 1)]


def distinct(policies: Iterable[Choices], domains: Domains) -> list[Choices]:
    """Each policy once, in order, without the one that changes nothing."""
    nothing = tuple(default(domain) for domain in domains)
    return [list(policy) for policy in dict.fromkeys(map(tuple, policies)) if policy != nothing]
