"""The parts of decoder layers of which nothing comes out under a policy, and the tensors of all others."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...policies.choice import LayerChoice
from ...policies.families.layers import DecoderLayer, decoder_layers, eval_mode, random_input
from ...policies.policy import Policy
from .weights import prefix_of


class Part(NamedTuple):
    """A module of a layer that does not run.

    Attributes:
        returns: How many values it returns in a tuple; 0 where it returns a tensor alone.
        slot: The number under which it would store in a cache, for every token; None where it stores none.
    """

    returns: int
    slot: int | None


Absent: TypeAlias = Mapping[int, Mapping[str, Part]]


def absent_parts(policy: Policy, model: PreTrainedModel) -> Absent:
    """The modules that do not run, by layer and by their names in it."""
    layers = decoder_layers(model)
    choices = policy.canonical().choices(len(layers))
    names = {layer.index: names_of(layer, choices[layer.index]) for layer in layers}
    modules = {index: {name: getattr(layers[index].module, name) for name in found} for index, found in names.items()}
    returned = count_returned(model, [module for parts in modules.values() for module in parts.values()])
    # Attention to an image stores the image, and its size says whether there is one.
    slots = {layer.sublayers.attention: layer.slot for layer in layers if layer.kind != "cross"}
    return {
        index: {name: Part(returned[part], slots.get(part)) for name, part in parts.items()}
        for index, parts in modules.items()
        if parts
    }


def names_of(layer: DecoderLayer, choice: LayerChoice) -> tuple[str, ...]:
    """The attributes of a layer that do not run: skipped sublayers, and norms that feed no other sublayer."""
    parts = layer.sublayers
    attends, feeds = choice.attention != "skip", choice.ffn != "skip"
    before_attention, before_ffn = parts.norm_names
    used = {before_attention} if attends else set()
    used |= {before_ffn} if feeds else set()
    norms = dict.fromkeys(name for name in parts.norm_names if name is not None and name not in used)
    return (*(() if attends else parts.attention_names), *(() if feeds else parts.ffn_names), *norms)


def count_returned(model: PreTrainedModel, parts: list[nn.Module]) -> dict[nn.Module, int]:
    """How many values each module returns in a tuple, from a run of the decoder; 0 where it returns a tensor alone."""
    counts: dict[nn.Module, int] = {}

    def record(module: nn.Module, args: Any, output: Any) -> None:
        counts[module] = len(output) if isinstance(output, tuple) else 0

    hooks = [part.register_forward_hook(record) for part in parts]
    try:
        with eval_mode(model.get_decoder()), torch.no_grad():
            model.get_decoder()(**random_input(model), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return counts


def present_tensors(model: PreTrainedModel, absent: Absent) -> dict[str, Tensor]:
    """The tensors of a model without those of absent parts, under their names in `state_dict`."""
    gone = absent_prefixes(model, absent)
    return {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(gone)}


def absent_prefixes(model: PreTrainedModel, absent: Absent) -> tuple[str, ...]:
    """What the names of the tensors of absent parts begin with."""
    prefix = prefix_of(model)
    return tuple(f"{prefix}.{index}.{name}." for index, parts in absent.items() for name in parts)
