"""Rules that rank the layers by what the dense model's own ones do, and leave out the first of the order."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from ...policies.choice import LayerChoice
from .placing import Choices, Domains, default, distinct, kinds, path, ratios

if TYPE_CHECKING:
    from ...evaluators.statistics import LayerStatistics

Sublayer: TypeAlias = Literal["attention", "ffn"]


def block_influence(domains: Domains, statistics: Sequence["LayerStatistics"]) -> list[Choices]:
    """Skip the layers that change their input the least.

    Knob: how many, the fewest first.
    """
    order = sorted(range(len(domains)), key=lambda index: statistics[index].block_influence)
    skips = kinds(domains, lambda choice: choice.skips_layer and choice.token_ratio is None)
    return distinct((policy for kind in skips for policy in path(kind, order, domains)), domains)


def sublayer_cosine(domains: Domains, statistics: Sequence["LayerStatistics"]) -> list[Choices]:
    """Skip the sublayers whose output is most like their input: attentions, FFNs, or both in one order.

    Knob: how many, the fewest first; three paths, as LLM-Drop has them.
    """
    cosines: dict[tuple[int, Sublayer], float] = {}
    for index, layer in enumerate(statistics):
        cosines[index, "attention"], cosines[index, "ffn"] = layer.attention_cosine, layer.ffn_cosine
    order = sorted(cosines, key=lambda place: -cosines[place])
    skips = kinds(domains, lambda choice: "skip" in (choice.attention, choice.ffn) and choice.token_ratio is None)
    scopes = dict.fromkeys(choice.model_copy(update={"attention": "run", "ffn": "run"}) for choice in skips)
    both: tuple[Sublayer, ...] = ("attention", "ffn")
    found: list[Choices] = []
    for scope in scopes:
        for wanted in (both[:1], both[1:], both):
            found += dropped([place for place in order if place[1] in wanted], scope, domains)
    return distinct(found, domains)


def dropped(order: Sequence[tuple[int, Sublayer]], scope: LayerChoice, domains: Domains) -> Iterator[Choices]:
    """Sublayers left out one after the other; one that its layer cannot leave out beside the others is passed over.

    Args:
        order: Layer and sublayer.
        scope: A choice with the phase and the tokens for which they are left out.
        domains: What every layer allows.
    """
    choices = [default(domain) for domain in domains]
    out = [scope] * len(domains)
    for index, sublayer in order:
        without = out[index].model_copy(update={sublayer: "skip"})
        if without in domains[index]:
            out[index] = choices[index] = without
            yield [*choices]


def arank(domains: Domains, statistics: Sequence["LayerStatistics"]) -> list[Choices]:
    """Fewer image tokens in the layers whose attention has the lowest rank.

    Knobs: the ratio, the mildest first, and how many layers. γ-MoD takes those of rank below 110, a number that
    depends on the length of the prompts; the order does not.
    """
    ranks = {index: layer.attention_rank for index, layer in enumerate(statistics) if layer.attention_rank is not None}
    order = sorted(ranks, key=lambda index: ranks[index])
    return distinct((policy for kind in ratios(domains) for policy in path(kind, order, domains)), domains)
