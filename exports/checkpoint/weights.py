"""The tensors of a model that has fewer layers, or sublayers of which nothing comes out."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...policies.families.layers import DecoderLayer, layer_list


def prefix_of(model: PreTrainedModel) -> str:
    """The name of the list of decoder layers in a model, such as `model.layers`."""
    layers = layer_list(model)
    return next(name for name, module in model.named_modules() if module is layers)


def state_without(
    model: PreTrainedModel, kept: Sequence[int], zeroed: Mapping[int, Collection[str]]
) -> dict[str, Tensor]:
    """The tensors of the kept layers, numbered anew, and all tensors outside the layers.

    Args:
        model: The model.
        kept: The layers to keep, ascending.
        zeroed: By layer, the names of tensors in it to replace with zeros.
    """
    prefix = prefix_of(model) + "."
    place = {str(index): str(number) for number, index in enumerate(kept)}
    state = {}
    for key, tensor in model.state_dict().items():
        if not key.startswith(prefix):
            state[key] = tensor
            continue
        index, name = key.removeprefix(prefix).split(".", 1)
        if index in place:
            state[f"{prefix}{place[index]}.{name}"] = (
                torch.zeros_like(tensor) if name in zeroed.get(int(index), ()) else tensor
            )
    return state


def sublayer_tensors(layer: DecoderLayer, *, attention: bool, ffn: bool) -> set[str]:
    """The names, in a layer, of the tensors of its attention, its FFN, or both: with zeros there, 0 comes out.

    The norms that feed a sublayer keep their weights, because another sublayer may share them.
    """
    names = (layer.sublayers.attention_names if attention else ()) + (layer.sublayers.ffn_names if ffn else ())
    modules = dict(layer.module.named_modules())
    parts = [name for name in names if name in modules]
    state = layer.module.state_dict()
    return {name for part in parts for name in state if name.startswith(f"{part}.") and state[name].is_floating_point()}
