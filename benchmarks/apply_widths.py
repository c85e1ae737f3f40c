"""The widths that `apply.py` times, and layers that are written with so many channels."""

import copy
from typing import Any

import transformers as t
from torch import nn

WIDTHS: dict[str, dict[str, Any]] = {"ffn_ratio 0.5": {"ffn_ratio": 0.5}, "ffn_ratio 0.25": {"ffn_ratio": 0.25}}
# The order of the checkpoint: to turn to the dense model and back then moves no weight, which would warm its cache.
FIRST = {"ranking": "first"}


def narrow_by_hand(model: t.PreTrainedModel, ratio: float) -> t.PreTrainedModel:
    """The model as if its FFNs had been built with a share of the channels; all other weights are the same tensors."""
    other: t.PreTrainedModel = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    for layer in other.get_decoder().layers:
        kept = int(ratio * layer.mlp.down_proj.in_features)
        for name in ("gate_proj", "up_proj", "down_proj"):
            whole = getattr(layer.mlp, name).weight
            part = whole[:, :kept] if name == "down_proj" else whole[:kept]
            narrow = nn.Linear(*part.shape[::-1], bias=False, device="meta")
            narrow.weight = nn.Parameter(part.detach().clone())
            setattr(layer.mlp, name, narrow)
    return other
