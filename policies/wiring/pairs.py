"""Pairs of consecutive layers that read the same input: which choices begin one, and which pairs cannot be."""

from collections.abc import Mapping

from ..choice import CHOICES, LayerChoice


def impossible_pairs(layers: Mapping[int, LayerChoice], num_layers: int | None) -> dict[int, str]:
    """Why layers cannot begin the pair that their choice says; empty where all pairs can be.

    Args:
        layers: The choices, by layer.
        num_layers: The number of decoder layers; None where it is not known.
    """
    first = {index for index, choice in layers.items() if choice.canonical().wiring == "pair"}
    reasons = {
        index: f"layer {index - 1} already forms a pair with layer {index}" for index in first if index - 1 in first
    }
    if num_layers is not None and num_layers - 1 in first:
        reasons[num_layers - 1] = (
            f"layer {num_layers - 1} is the last one, so no layer follows that could be paired with it"
        )
    return {index: f"found wiring: pair, but {reasons[index]}" for index in sorted(reasons)}


def without_overlaps(choices: list[LayerChoice]) -> list[LayerChoice]:
    """The choices of all layers, where a layer that an earlier pair contains begins no pair itself."""
    result: list[LayerChoice] = []
    for choice in choices:
        if choice.wiring == "pair" and result and result[-1].wiring == "pair":
            choice = choice.model_copy(update={"wiring": "sequential"}).canonical()
        result.append(choice)
    return result


def without_empty_pairs(layers: Mapping[int, LayerChoice]) -> dict[int, LayerChoice]:
    """The choices, with a pair whose two layers are both skipped written as two skipped layers."""
    skip = CHOICES["skip_layer"]
    empty = skip.model_copy(update={"wiring": "pair"})
    return {
        index: skip if choice == empty and layers.get(index + 1) == skip else choice for index, choice in layers.items()
    }
