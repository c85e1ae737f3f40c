"""Which parameters of a model are trained: those of a method that the policy leaves in use."""

from collections.abc import Iterator
from typing import Final

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..policies.choice import LayerChoice
from ..policies.errors import ModelError
from ..policies.families.layers import DecoderLayer, decoder_layers
from ..policies.policy import Policy
from ..policies.runtime.layer.roles import roles
from .settings import Method

# What model families call the modules that map image features to embeddings of the decoder.
CONNECTORS: Final = ("multi_modal_projector", "connector", "merger", "aligner", "embed_vision", "image_projection")


def trained_parameters(model: PreTrainedModel, policy: Policy, method: Method) -> dict[str, nn.Parameter]:
    """The parameters that a method trains as they are, by name; `lora` trains an adapter instead, see `lora_targets`.

    Raises:
        ModelError: there are none.
    """
    connector = list(connector_modules(model))
    if method == "connector" and not connector:
        names = ", ".join(name for name, _ in model.base_model.named_children())
        expected = f"expected one named {', '.join(CONNECTORS)}; found {names}"
        hint = "train with --method lora or full"
        raise ModelError(f"{type(model).__name__} has no connector to train", [expected], hint)
    modules = connector if method == "connector" else [*connector, model.get_decoder(), model.get_output_embeddings()]
    wanted = {id(parameter) for module in modules if module is not None for parameter in module.parameters()}
    idle = set() if method == "connector" else idle_parameters(model, policy)
    return {name: one for name, one in model.named_parameters() if id(one) in wanted - idle}


def connector_modules(model: PreTrainedModel) -> Iterator[nn.Module]:
    """The modules that map image features to embeddings."""
    decoder = {id(module) for module in model.get_decoder().modules()}
    for name, module in model.named_modules():
        if id(module) not in decoder and name.rpartition(".")[2] in CONNECTORS:
            yield module


def idle_parameters(model: PreTrainedModel, policy: Policy) -> set[int]:
    """The ids of parameters of sublayers that no token reaches under the policy."""
    layers = decoder_layers(model)
    parts = [part for layer, choice in running(layers, policy) for part in idle_parts(layer, choice)]
    return {id(parameter) for part in parts for parameter in part.parameters()}


def running(layers: tuple[DecoderLayer, ...], policy: Policy) -> list[tuple[DecoderLayer, LayerChoice]]:
    """The layers with their choices, in canonical form."""
    return list(zip(layers, policy.canonical().choices(len(layers)), strict=True))


def idle_parts(layer: DecoderLayer, choice: LayerChoice) -> list[nn.Module]:
    """The parts of a layer that no token reaches."""
    does, sublayers = roles(choice), layer.sublayers
    attends, feeds = bool(does.stores | does.alone), bool(does.fed)
    before_attention, before_ffn = sublayers.norm_names
    shares_norm = choice.norm == "shared" and choice.wiring == "parallel" and does.parallel >= does.fed
    used: set[str | None] = {*(sublayers.attention_names if attends else ()), *(sublayers.ffn_names if feeds else ())}
    used |= {before_attention} if attends or (feeds and shares_norm) else set()
    used |= {before_ffn} if feeds and not shares_norm else set()
    named = {*sublayers.attention_names, *sublayers.ffn_names, *filter(None, sublayers.norm_names)}
    parts = (getattr(layer.module, name) for name in sorted(named - used))
    return [part for part in parts if isinstance(part, nn.Module)]


def lora_targets(model: PreTrainedModel, policy: Policy) -> list[str]:
    """The names of the linear modules in the decoder's layers that the policy leaves in use.

    Raises:
        ModelError: there are none.
    """
    layers = decoder_layers(model)
    idle = {
        id(module)
        for layer, choice in running(layers, policy)
        for part in idle_parts(layer, choice)
        for module in part.modules()
    }
    inside = {id(module) for layer in layers for module in layer.module.modules()} - idle
    names = [
        name
        for name, module in model.named_modules()
        if id(module) in inside and isinstance(module, nn.Linear | Conv1D)
    ]
    if not names:
        reason = "the policy skips all of its layers, or their weights are no linear modules"
        raise ModelError(f"{type(model).__name__} has no linear layers to adapt", [reason], "train with --method full")
    return names
