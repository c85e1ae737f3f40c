"""Simple rules to begin a search with: one choice on the last part of the layers.

The published patterns are of this kind: skip the later layers (ShortGPT, arXiv:2403.03853), drop image tokens from
layer K on (FastV, arXiv:2403.06764). They give every sampler a first front to improve.
"""

from fractions import Fraction

from ..policies.choice import KEEP, LayerChoice

# Where the rule begins, as a share of the depth: mild ones first, so that the first trials are useful.
BEGINNINGS = (Fraction(3, 4), Fraction(1, 2), Fraction(7, 8), Fraction(1, 4), Fraction(0))


def starting_points(domains: list[list[LayerChoice]], limit: int | None = None) -> list[list[LayerChoice]]:
    """One list of choices a rule, without repetition.

    Args:
        domains: What may happen in each layer; outside the rule it is kept.
        limit: At most so many; all where none is given.
    """
    kinds = list(dict.fromkeys(choice for domain in domains for choice in domain if not choice.is_keep))
    found: list[list[LayerChoice]] = []
    for beginning in BEGINNINGS:
        first = int(beginning * len(domains))
        for kind in kinds:
            choices = [kind if index >= first and kind in domain else KEEP for index, domain in enumerate(domains)]
            if set(choices) != {KEEP} and choices not in found:
                found.append(choices)
    return found[:limit]
