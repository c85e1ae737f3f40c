"""Rules that read nothing but a layer's place: the patterns that papers apply to every model alike."""

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from ...policies.choice import KEEP, LayerChoice
from ...policies.schedules import FastV, Interval, ShiftedCosine
from .placing import Choices, Domains, default, distinct, kinds, put, ratios, share

if TYPE_CHECKING:
    from ...evaluators.statistics import LayerStatistics

# ima-lmms has 32 layers: the interval, and the last layer before the first that is skipped.
INTERVALS: Final = ((8, 0), (4, 4), (4, 0), (2, 10), (2, 4), (2, 0))
EVERY: Final = (8, 6, 5, 4, 3, 2)
SHIFTS: Final = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
FIRST: Final = (3, 2)
BEGINNINGS: Final = (Fraction(7, 8), Fraction(3, 4), Fraction(1, 2), Fraction(1, 4), Fraction(0))


def interval(domains: Domains, statistics: Sequence["LayerStatistics"] | None = None) -> list[Choices]:
    """Every I-th layer between a start and the last one; the start is scaled to the depth.

    Knobs: I and the start of ima-lmms, the fewest layers first; one path for each choice without a token ratio.
    """
    depth = len(domains)
    found = []
    for kind in kinds(domains, lambda choice: choice.token_ratio is None):
        for step, start in INTERVALS:
            rule = Interval(interval=step, start=round(start * depth / 32), choice="skip_layer")
            selected = [index for index, choice in enumerate(rule.choices(depth)) if choice != KEEP]
            found.append(put(kind, selected, domains))
    return distinct(found, domains)


def uniform(domains: Domains, statistics: Sequence["LayerStatistics"] | None = None) -> list[Choices]:
    """Every n-th layer, layers counted from 1 (LayerDrop's "every other").

    Knob: n, the fewest layers first; one path for each choice.
    """
    return distinct(
        (
            put(kind, range(step - 1, len(domains), step), domains)
            for kind in kinds(domains, lambda choice: True)
            for step in EVERY
        ),
        domains,
    )


def last(domains: Domains, statistics: Sequence["LayerStatistics"] | None = None) -> list[Choices]:
    """The last part of the layers.

    Knob: where it begins, the fewest layers first; one path for each choice.
    """
    depth = len(domains)
    return distinct(
        (
            put(kind, range(int(beginning * depth), depth), domains)
            for kind in kinds(domains, lambda choice: True)
            for beginning in BEGINNINGS
        ),
        domains,
    )


def shifted_cosine(domains: Domains, statistics: Sequence["LayerStatistics"] | None = None) -> list[Choices]:
    """Image tokens decay along half a cosine; each layer takes the allowed ratio that is nearest.

    Knob: the shift R, the most tokens first; p-MoD has 0.5, and its bounds 0.85 and 0.15 hold for every shift.
    """
    allowed = ratios(domains)
    found = []
    for shift in SHIFTS if allowed else ():
        wanted = ShiftedCosine(ratio=shift, max=0.85, min=0.15).choices(len(domains))
        found.append([nearest(choice, domain, allowed) for choice, domain in zip(wanted, domains, strict=True)])
    return distinct(found, domains)


def nearest(wanted: LayerChoice, domain: Sequence[LayerChoice], allowed: Choices) -> LayerChoice:
    """What a layer allows that processes about so many image tokens, of two that are as near the milder one."""
    usable = [default(domain), *(choice for choice in allowed if choice in domain)]
    return min(usable, key=lambda choice: abs(share(choice) - share(wanted)))


def fastv(domains: Domains, statistics: Sequence["LayerStatistics"] | None = None) -> list[Choices]:
    """Fewer image tokens from layer K on. It is FastV's own with `token_selection: {reselect: once}`.

    Knobs: the ratio, the mildest first, and K, which the paper has at 3 and 2 whatever the depth.
    """
    return distinct(
        (
            [
                choice if choice in domain else default(domain)
                for choice, domain in zip(
                    FastV(layer=first, token_ratio=share(kind)).choices(len(domains)), domains, strict=True
                )
            ]
            for kind in ratios(domains)
            for first in FIRST
        ),
        domains,
    )
