"""Ranks the channels of FFNs by their energy on calibration examples, in one pass of the dense model."""

from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import ModelError, PolicyError
from ..families.channels import Group, channel_groups, why_not_narrow
from ..families.layers import HANDLE, DecoderLayer, decoder_layers
from ..quantized.tensors import as_numbers
from .activations import reading_layer, watched_channels, why_not_watched
from .files import ALPHA
from .scores import Scores


class ChannelEnergy:
    """The energy of each channel of one layer, over the tokens that it is shown.

    The energy of channel c in expert e is |w|^2 ((1 - alpha) sum_t (g_t a_t)^2 + alpha max_t (g_t a_t)^2): w is the
    column of the last matrix that reads the channel, a_t the channel for token t, and g_t the weight that the router
    gives the expert, 0 for a token that is not sent to it. This is the energy of a micro-expert in CAMERA
    (arXiv:2508.02322, 2025), whose runs on DeepSeek-MoE have alpha = 0.9. A dense FFN is one expert with g = 1.

    Args:
        groups: The groups of the FFN's channels.

    Attributes:
        groups: The same.
    """

    def __init__(self, groups: list[Group]) -> None:
        self.groups = groups
        self._sums = [zeros(group) for group in groups]
        self._highest = [zeros(group) for group in groups]

    def see(self, number: int, activations: Tensor, factors: Tensor | None, tokens: Tensor | None) -> None:
        """Add the tokens of one forward; see `activations.See`."""
        if not len(activations):
            return
        weighted = activations.float() if factors is None else activations.float() * factors.float()
        squares = weighted.square()
        self._sums[number] += squares.sum(dim=0, dtype=self._sums[number].dtype)
        self._highest[number] = torch.maximum(self._highest[number], squares.amax(dim=0).to(self._sums[number].dtype))

    def scores(self, alpha: float) -> Tensor:
        """The energies, float32 on the CPU, shape (channels,), with those of all groups one after the other."""
        found = []
        for group, total, highest in zip(self.groups, self._sums, self._highest, strict=True):
            columns = as_numbers(reading_layer(group).weight.detach())
            precise = torch.promote_types(columns.dtype, torch.float32)
            squares = torch.linalg.vector_norm(columns, dim=0, dtype=precise).to(total.dtype).square()
            found.append((squares * ((1 - alpha) * total + alpha * highest)).float().cpu())
        return torch.cat(found)


def zeros(group: Group) -> Tensor:
    """A zero for each channel of a group, in a precision in which many small energies add up to their sum."""
    device = group[0].weight.device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.zeros(group[0].channels, device=device, dtype=dtype)


def why_not_ranked(model: PreTrainedModel) -> dict[int, str]:
    """By layer, the reason why its channels cannot be ranked; empty where those of all layers can."""
    with torch.no_grad():
        reasons = {layer.index: why_not(layer) for layer in decoder_layers(model)}
    return {index: reason for index, reason in reasons.items() if reason is not None}


def why_not(layer: DecoderLayer) -> str | None:
    """The reason why the channels of a layer cannot be ranked; None where they can."""
    reason = why_not_narrow(layer.sublayers, reorders=True)
    return why_not_watched(layer.sublayers, channel_groups(layer.sublayers)) if reason is None else reason


@dataclass(frozen=True)
class Energies:
    """What a pass has found.

    Attributes:
        scores: By layer, the energy of each channel.
        examples: How many inputs the model ran on.
        tokens: How many tokens they have together.
    """

    scores: Scores
    examples: int
    tokens: int


def channel_energies(
    model: PreTrainedModel,
    inputs: Iterable[Mapping[str, Any]],
    layers: Collection[int] | None = None,
    alpha: float = ALPHA,
) -> Energies:
    """Rank the channels of a model, in one forward of each input.

    The channels of all experts of a layer are ranked together, the shared expert's too. Of a layer's channels nothing
    is kept but one sum and one maximum each.

    Args:
        model: The model, without a policy.
        inputs: Inputs of the model on its device, without padding, which would count as tokens.
        layers: The layers to rank; None ranks all.
        alpha: The weight of a channel's highest energy against the sum over tokens; see `ChannelEnergy`.

    Raises:
        ModelError: the channels of a layer cannot be ranked, or their energies are not finite.
        PolicyError: the model runs under a policy, or there are no inputs.
    """
    with torch.no_grad():
        every = decoder_layers(model)
        chosen = [layer for layer in every if layers is None or layer.index in layers]
        refuse_layers(model, chosen)
        energies = {layer.index: ChannelEnergy(channel_groups(layer.sublayers)) for layer in chosen}
        examples = tokens = 0
        with ExitStack() as hooks:
            for layer in chosen:
                energy = energies[layer.index]
                hooks.enter_context(watched_channels(layer.sublayers, energy.groups, energy.see))
            for one in inputs:
                model(**one, use_cache=False)
                examples, tokens = examples + 1, tokens + one["input_ids"].numel()
        scores = {index: energy.scores(alpha) for index, energy in energies.items()}
    if not examples:
        raise PolicyError("there are no examples to rank channels on", hint="name tasks that have prompts")
    strange = [index for index, found in scores.items() if not found.isfinite().all()]
    if strange:
        found = f"layer {strange[0]}: found NaN or infinity among {len(scores[strange[0]])} energies"
        hint = "load the model in a dtype of larger range, such as bfloat16 or float32"
        raise ModelError("the energies of channels are not finite", [found], hint)
    return Energies(scores, examples, tokens)


def refuse_layers(model: PreTrainedModel, layers: Collection[DecoderLayer]) -> None:
    """Refuse a model under a policy, and layers whose channels cannot be ranked.

    Raises:
        PolicyError: it runs under a policy.
        ModelError: naming the layers, with their reasons.
    """
    if any(HANDLE in vars(layer.module) for layer in layers):
        raise PolicyError(
            "channels are ranked in the dense model", ["the model runs under a policy"], "remove it first"
        )
    reasons = [(layer, reason) for layer in layers if (reason := why_not(layer)) is not None]
    if reasons:
        lines = [f"layer {layer.index} ({type(layer.module).__name__}): {reason}" for layer, reason in reasons]
        hint = "rank by `weights` or `first`, or leave these layers out"
        raise ModelError(f"channels of {type(model).__name__} cannot be ranked by energy", lines[:5], hint)
