"""Baselines that depend on the position of a layer alone, so that they need no forward pass."""

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from ...policies.choice import KEEP, LayerChoice
from ...policies.schedules import FastV, Interval, ShiftedCosine
from .placing import (
    Choices,
    Domains,
    default_choice,
    kept_tokens,
    matching_choices,
    place,
    token_ratio_choices,
    unique_policies,
)

if TYPE_CHECKING:
    from ...evaluators.statistics import LayerStatistics

# Settings of ima-lmms for its 32 layers: the interval, and the last layer before the first one that may be skipped.
INTERVALS: Final = ((8, 0), (4, 4), (4, 0), (2, 10), (2, 4), (2, 0))
INTERVAL_DEPTH: Final = 32
EVERY_NTH: Final = (8, 6, 5, 4, 3, 2)
SHIFTS: Final = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
FASTV_LAYERS: Final = (3, 2)
LAST_PART_STARTS: Final = (Fraction(7, 8), Fraction(3, 4), Fraction(1, 2), Fraction(1, 4), Fraction(0))


def interval(domains: Domains, statistics: Sequence["LayerStatistics"] | None = None) -> list[Choices]:
    """Change every I-th layer between a start and the last layer (ima-lmms); the start scales with the depth.

    Settings: the pairs of I and start of the paper, the fewest layers first, for each choice without a token ratio.
    """
    depth = len(domains)
    policies = []
    for choice in matching_choices(domains, lambda choice: choice.token_ratio is None):
        for step, start in INTERVALS:
            schedule = Interval(interval=step, start=round(start * depth / INTERVAL_DEPTH), choice="skip_layer")
            selected = [layer for layer, scheduled in enumerate(schedule.choices(depth)) if scheduled != KEEP]
            policies.append(place(choice, selected, domains))
    return unique_policies(policies, domains)


def uniform(domains: Domains, statistics: Sequence["LayerStatistics"] | None = None) -> list[Choices]:
    """Change every n-th layer, with layers counted from 1 (LayerDrop's "every other").

    Settings: n, the fewest layers first, for each choice.
    """
    return unique_policies(
        (
            place(choice, range(step - 1, len(domains), step), domains)
            for choice in matching_choices(domains, lambda choice: True)
            for step in EVERY_NTH
        ),
        domains,
    )


def last(domains: Domains, statistics: Sequence["LayerStatistics"] | None = None) -> list[Choices]:
    """Change all layers from some depth on (top-layer dropping).

    Settings: where the changed part starts, the fewest layers first, for each choice.
    """
    depth = len(domains)
    return unique_policies(
        (
            place(choice, range(int(start * depth), depth), domains)
            for choice in matching_choices(domains, lambda choice: True)
            for start in LAST_PART_STARTS
        ),
        domains,
    )


def shifted_cosine(domains: Domains, statistics: Sequence["LayerStatistics"] | None = None) -> list[Choices]:
    """Reduce the image tokens along a shifted cosine (p-MoD); each layer takes the nearest ratio that it allows.

    Settings: the shift R, the most tokens first. p-MoD uses 0.5; its bounds of 0.85 and 0.15 apply to every shift.
    """
    allowed = token_ratio_choices(domains)
    policies = []
    for shift in SHIFTS if allowed else ():
        scheduled = ShiftedCosine(ratio=shift, max=0.85, min=0.15).choices(len(domains))
        policies.append(
            [nearest_ratio(choice, domain, allowed) for choice, domain in zip(scheduled, domains, strict=True)]
        )
    return unique_policies(policies, domains)


def nearest_ratio(wanted: LayerChoice, domain: Sequence[LayerChoice], ratios: Choices) -> LayerChoice:
    """The allowed choice whose share of image tokens is nearest to that of another; of a tie, the larger share."""
    usable = [default_choice(domain), *(choice for choice in ratios if choice in domain)]
    return min(usable, key=lambda choice: abs(kept_tokens(choice) - kept_tokens(wanted)))


def fastv(domains: Domains, statistics: Sequence["LayerStatistics"] | None = None) -> list[Choices]:
    """Keep a share of the image tokens from layer K on (FastV, with `token_selection: {reselect: once}`).

    Settings: the ratio, the largest first, and K of 3 and 2, which the paper uses at every depth.
    """
    return unique_policies(
        (
            [
                choice if choice in domain else default_choice(domain)
                for choice, domain in zip(
                    FastV(layer=first, token_ratio=kept_tokens(ratio)).choices(len(domains)), domains, strict=True
                )
            ]
            for ratio in token_ratio_choices(domains)
            for first in FASTV_LAYERS
        ),
        domains,
    )
