"""The widths that `apply.py` times, and layers that are written with so many channels or heads."""

import copy
from typing import Any

import transformers as t
from torch import nn

WIDTHS: dict[str, dict[str, Any]] = {
    "ffn_ratio 0.5": {"ffn_ratio": 0.5},
    "ffn_ratio 0.25": {"ffn_ratio": 0.25},
    "head_ratio 0.5": {"head_ratio": 0.5},
}
# The order of the checkpoint: to turn to the dense model and back then moves no weight, which would warm its cache.
FIRST = {"ranking": "first"}


def narrow_by_hand(model: t.PreTrainedModel, width: dict[str, float]) -> t.PreTrainedModel:
    """The model as if its FFNs or attentions had been built with a share; all other weights are the same tensors."""
    other: t.PreTrainedModel = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    for layer in other.get_decoder().layers:
        if "ffn_ratio" in width:
            narrow_linear(layer.mlp, ("gate_proj", "up_proj"), "down_proj", width["ffn_ratio"])
        if "head_ratio" in width:
            narrow_linear(layer.self_attn, ("q_proj", "k_proj", "v_proj"), "o_proj", width["head_ratio"])
    return other


def narrow_linear(parent: nn.Module, made: tuple[str, ...], read: str, ratio: float) -> None:
    """Replace linear layers by the first share of their rows, and of one its columns."""
    for name in (*made, read):
        whole = parent.get_submodule(name).weight
        part = whole[:, : int(ratio * whole.shape[1])] if name == read else whole[: int(ratio * whole.shape[0])]
        narrow = nn.Linear(*part.shape[::-1], bias=False, device="meta")
        narrow.weight = nn.Parameter(part.detach().clone())
        setattr(parent, name, narrow)
