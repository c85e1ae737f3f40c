"""Ranks the channels of FFNs and the heads of attentions by energy on calibration examples, in one dense pass."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from ..errors import ModelError, PolicyError
from ..families.channels import channel_groups, why_not_narrow
from ..families.heads import find_heads, why_not_fewer_heads
from ..families.layers import HANDLE, DecoderLayer, decoder_layers
from ..quantized.tensors import as_numbers
from .activations import reading_layer, watched_channels, why_not_watched
from .files import ALPHA, Noun
from .scores import Scores


class Totals:
    """The sum and the maximum over tokens of what parts of a sublayer add, as squared norms.

    Args:
        count: The number of parts.
        device: Where they are computed.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        # A precision in which many small squares add up to their sum.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sum = torch.zeros(count, device=device, dtype=dtype)
        self._highest = torch.zeros_like(self._sum)

    def add(self, squares: Tensor) -> None:
        """Add the tokens of one forward, shape (tokens, parts)."""
        if len(squares):
            self._sum += squares.sum(dim=0, dtype=self._sum.dtype)
            self._highest = torch.maximum(self._highest, squares.amax(dim=0).to(self._sum.dtype))

    def mixed(self, alpha: float) -> Tensor:
        """(1 - alpha) sum + alpha max, shape (parts,)."""
        return (1 - alpha) * self._sum + alpha * self._highest


class ChannelEnergy:
    """The energy of each channel of one layer, over the tokens that it is shown.

    The energy of channel c in expert e is |w|^2 ((1 - alpha) sum_t (g_t a_t)^2 + alpha max_t (g_t a_t)^2): w is the
    column of the last matrix that reads the channel, a_t the channel for token t, and g_t the weight that the router
    gives the expert, 0 for a token that is not sent to it. This is the energy of a micro-expert in CAMERA
    (arXiv:2508.02322, 2025), whose runs on DeepSeek-MoE have alpha = 0.9. A dense FFN is one expert with g = 1.

    Args:
        layer: The layer; its channels can be ranked, see `why_not`.
    """

    def __init__(self, layer: DecoderLayer) -> None:
        self._sublayers, self._groups = layer.sublayers, channel_groups(layer.sublayers)
        self._totals = [Totals(group[0].channels, group[0].weight.device) for group in self._groups]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Add the tokens of every forward in this context."""
        with watched_channels(self._sublayers, self._groups, self._see):
            yield

    def _see(self, number: int, activations: Tensor, factors: Tensor | None, tokens: Tensor | None) -> None:
        weighted = activations.float() if factors is None else activations.float() * factors.float()
        self._totals[number].add(weighted.square())

    def scores(self, alpha: float) -> Tensor:
        """The energies, float32 on the CPU, shape (channels,), with those of all groups one after the other."""
        found = []
        for group, totals in zip(self._groups, self._totals, strict=True):
            columns, mixed = as_numbers(reading_layer(group).weight.detach()), totals.mixed(alpha)
            norms = torch.linalg.vector_norm(columns, dim=0, dtype=at_least_float32(columns))
            found.append((norms.to(mixed.dtype).square() * mixed).float().cpu())
        return torch.cat(found)


class HeadEnergy:
    """The energy of each group of heads of one layer, over the tokens that it is shown.

    The energy of a group is (1 - alpha) sum_t |W z_t|^2 + alpha max_t |W z_t|^2: z_t is what its heads have read for
    token t, and W its columns of the output projection. So W z_t is what the group adds to the attention's output, as
    g_t a_t w is what a channel adds to the FFN's; see `ChannelEnergy`.

    Args:
        layer: The layer; its heads can be ranked, see `why_not`.
    """

    def __init__(self, layer: DecoderLayer) -> None:
        self._heads = find_heads(layer.sublayers.attention)
        self._read = self._heads.layers[-1]
        self._totals = Totals(self._heads.groups, self._read.weight.device)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Add the tokens of every forward in this context."""
        hook = self._read.module.register_forward_pre_hook(self._see)
        try:
            yield
        finally:
            hook.remove()

    def _see(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        columns = as_numbers(self._read.weight.detach()).chunk(self._heads.groups, dim=1)
        read, dtype = args[0].flatten(0, -2).chunk(self._heads.groups, dim=1), at_least_float32(args[0])
        # One group at a time, because each one's output is as large as that of the attention.
        norms = [
            torch.linalg.vector_norm(functional.linear(z.to(dtype), w.to(dtype)), dim=-1)
            for z, w in zip(read, columns, strict=True)
        ]
        self._totals.add(torch.stack(norms, dim=1).square())

    def scores(self, alpha: float) -> Tensor:
        """The energies, float32 on the CPU, shape (groups,)."""
        return self._totals.mixed(alpha).float().cpu()


def at_least_float32(tensor: Tensor) -> torch.dtype:
    """The dtype of a tensor; float32 for a shorter one."""
    return torch.promote_types(tensor.dtype, torch.float32)


def why_not_ranked(model: PreTrainedModel, noun: Noun = "channels") -> dict[int, str]:
    """By layer, the reason why its channels or heads cannot be ranked; empty where those of all layers can."""
    with torch.no_grad():
        reasons = {layer.index: why_not(layer, noun) for layer in decoder_layers(model)}
    return {index: reason for index, reason in reasons.items() if reason is not None}


def why_not(layer: DecoderLayer, noun: Noun) -> str | None:
    """The reason why the channels or the heads of a layer cannot be ranked; None where they can."""
    if noun == "heads":
        return why_not_fewer_heads(layer, 1.0, divides=False, reorders=True)
    reason = why_not_narrow(layer.sublayers, reorders=True)
    return why_not_watched(layer.sublayers, channel_groups(layer.sublayers)) if reason is None else reason


@dataclass(frozen=True)
class Energies:
    """What a pass has found.

    Attributes:
        scores: The energies.
        examples: How many inputs the model ran on.
        tokens: How many tokens they have together.
    """

    scores: Scores
    examples: int
    tokens: int


def find_energies(
    model: PreTrainedModel,
    inputs: Iterable[Mapping[str, Any]],
    channels: Collection[int] = (),
    heads: Collection[int] = (),
    alpha: float = ALPHA,
) -> Energies:
    """Rank channels and heads of a model, in one forward of each input.

    The channels of all experts of a layer are ranked together, the shared expert's too. Nothing is kept but one sum and
    one maximum for each channel, and for each group of heads.

    Args:
        model: The model, without a policy.
        inputs: Inputs of the model on its device, without padding, which would count as tokens.
        channels: The layers whose channels are ranked.
        heads: The layers whose heads are ranked.
        alpha: The weight of the highest energy against the sum over tokens; see `ChannelEnergy`.

    Raises:
        ModelError: the channels or heads of a layer cannot be ranked, or their energies are not finite.
        PolicyError: the model runs under a policy, or there are no inputs.
    """
    with torch.no_grad():
        layers = decoder_layers(model)
        with_channels = [layer for layer in layers if layer.index in channels]
        with_heads = [layer for layer in layers if layer.index in heads]
        refuse_policy([*with_channels, *with_heads])
        refuse_layers(model, with_channels, "channels")
        refuse_layers(model, with_heads, "heads")
        of_channels = {layer.index: ChannelEnergy(layer) for layer in with_channels}
        of_heads = {layer.index: HeadEnergy(layer) for layer in with_heads}
        examples = tokens = 0
        with ExitStack() as hooks:
            for energy in (*of_channels.values(), *of_heads.values()):
                hooks.enter_context(energy.watching())
            for one in inputs:
                model(**one, use_cache=False)
                examples, tokens = examples + 1, tokens + one["input_ids"].numel()
        scores = Scores(
            {index: energy.scores(alpha) for index, energy in of_channels.items()},
            {index: energy.scores(alpha) for index, energy in of_heads.items()},
        )
    if not examples:
        raise PolicyError("there are no examples to rank on", hint="name tasks that have prompts")
    refuse_strange(scores.channels, "channels")
    refuse_strange(scores.heads, "heads")
    return Energies(scores, examples, tokens)


def refuse_policy(layers: Collection[DecoderLayer]) -> None:
    """Refuse a model under a policy.

    Raises:
        PolicyError: it runs under one.
    """
    if any(HANDLE in vars(layer.module) for layer in layers):
        found = "the model runs under a policy"
        raise PolicyError("channels and heads are ranked in the dense model", [found], "remove it first")


def refuse_layers(model: PreTrainedModel, layers: Collection[DecoderLayer], noun: Noun) -> None:
    """Refuse layers whose channels or heads cannot be ranked.

    Raises:
        ModelError: naming the layers, with their reasons.
    """
    reasons = [(layer, reason) for layer in layers if (reason := why_not(layer, noun)) is not None]
    if reasons:
        lines = [f"layer {layer.index} ({type(layer.module).__name__}): {reason}" for layer, reason in reasons]
        hint = "rank by `weights` or `first`, or leave these layers out"
        raise ModelError(f"{noun} of {type(model).__name__} cannot be ranked by energy", lines[:5], hint)


def refuse_strange(scores: Mapping[int, Tensor], noun: Noun) -> None:
    """Refuse energies that are no numbers.

    Raises:
        ModelError: naming a layer with NaN or infinity.
    """
    strange = [index for index, found in scores.items() if not found.isfinite().all()]
    if strange:
        found = f"layer {strange[0]}: found NaN or infinity among {len(scores[strange[0]])} energies"
        hint = "load the model in a dtype of larger range, such as bfloat16 or float32"
        raise ModelError(f"the energies of {noun} are not finite", [found], hint)
