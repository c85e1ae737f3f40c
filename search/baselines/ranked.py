"""Baselines that rank layers by statistics of the dense model and change the lowest-ranked ones."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from ...policies.choice import CHOICES, LayerChoice
from .placing import (
    Choices,
    Domains,
    cumulative_policies,
    default_choice,
    matching_choices,
    token_ratio_choices,
    unique_policies,
)

if TYPE_CHECKING:
    from ...evaluators.statistics import LayerStatistics

Sublayer: TypeAlias = Literal["attention", "ffn"]
SUBLAYERS: tuple[Sublayer, ...] = ("attention", "ffn")


def block_influence(domains: Domains, statistics: Sequence["LayerStatistics"]) -> list[Choices]:
    """Skip the layers that change their input least (ShortGPT's Block Influence).

    Settings: the number of layers, the fewest first.
    """
    order = sorted(range(len(domains)), key=lambda layer: statistics[layer].block_influence)
    skips = matching_choices(domains, lambda choice: choice.skips_layer and choice.token_ratio is None)
    return unique_policies((policy for skip in skips for policy in cumulative_policies(skip, order, domains)), domains)


def sublayer_cosine(domains: Domains, statistics: Sequence["LayerStatistics"]) -> list[Choices]:
    """Skip the sublayers whose output has the highest cosine similarity to their input (LLM-Drop).

    Settings: the number of sublayers, the fewest first, on LLM-Drop's three paths: attentions, FFNs, and both in one
    order.
    """
    cosines: dict[tuple[int, Sublayer], float] = {}
    for layer, statistic in enumerate(statistics):
        cosines[layer, "attention"], cosines[layer, "ffn"] = statistic.attention_cosine, statistic.ffn_cosine
    order = sorted(cosines, key=lambda sublayer: -cosines[sublayer])
    skips = matching_choices(
        domains,
        lambda choice: "skip" in (choice.attention, choice.ffn) and choice.token_ratio is None and not choice.has_width,
    )
    scopes = dict.fromkeys(choice.model_copy(update={"attention": "run", "ffn": "run"}) for choice in skips)
    policies: list[Choices] = []
    for scope in scopes:
        for kinds in (SUBLAYERS[:1], SUBLAYERS[1:], SUBLAYERS):
            policies += deletion_path([(layer, kind) for layer, kind in order if kind in kinds], scope, domains)
    return unique_policies(policies, domains)


def deletion_path(order: Sequence[tuple[int, Sublayer]], scope: LayerChoice, domains: Domains) -> Iterator[Choices]:
    """Skip sublayers one after the other; pass over one whose layer does not allow it beside those already skipped.

    Args:
        order: Layer and sublayer, in the order of deletion.
        scope: A choice with the phase and the tokens for which the sublayers are skipped.
        domains: The choices that each layer allows.

    Yields:
        The policy after each deletion.
    """
    choices = [default_choice(domain) for domain in domains]
    deleted = [scope] * len(domains)
    for layer, sublayer in order:
        without = deleted[layer].model_copy(update={sublayer: "skip"})
        if without in domains[layer]:
            deleted[layer] = choices[layer] = without
            yield [*choices]


def shortv(domains: Domains, statistics: Sequence["LayerStatistics"]) -> list[Choices]:
    """Freeze image tokens in the layers where that changes the answer least (ShortV).

    Frozen tokens give keys and values, and are not changed.

    Settings: the number of layers, the fewest first. ShortV takes 19 of 32.
    """
    divergences = {
        layer: statistic.frozen_divergence
        for layer, statistic in enumerate(statistics)
        if statistic.frozen_divergence is not None
    }
    order = sorted(divergences, key=lambda layer: divergences[layer])
    return unique_policies(cumulative_policies(CHOICES["freeze_image"], order, domains), domains)


def arank(domains: Domains, statistics: Sequence["LayerStatistics"]) -> list[Choices]:
    """Reduce the image tokens of the layers whose attention maps have the lowest rank (ARank of γ-MoD).

    Settings: the ratio, the largest first, and the number of layers. γ-MoD takes the layers of rank below 110. That
    threshold depends on the length of the prompts, so only the order of the ranks is used here.
    """
    ranks = {
        layer: statistic.attention_rank
        for layer, statistic in enumerate(statistics)
        if statistic.attention_rank is not None
    }
    order = sorted(ranks, key=lambda layer: ranks[layer])
    return unique_policies(
        (policy for ratio in token_ratio_choices(domains) for policy in cumulative_policies(ratio, order, domains)),
        domains,
    )
