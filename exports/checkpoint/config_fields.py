"""What configurations say about single layers, rewritten for a model that has only some of them."""

import copy
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

# One entry a layer.
PER_LAYER = (
    "layer_types", "mlp_layer_types", "no_rope_layers", "layer_rope_theta", "num_attention_heads_per_layer",
    "block_configs",
)  # fmt: skip
# The numbers of some layers.
NUMBERS = (
    "cross_attention_layers", "rope_scaling_layers", "attn_layer_indices", "mlp_only_layers", "full_attn_idxs",
    "moe_layers", "local_layer_ids",
)  # fmt: skip
# How many of the first layers are of one kind.
FIRST = ("first_k_dense_replace", "max_window_layers", "num_dense_layers")
# Every k-th layer is of one kind, and no list can say so instead: refused where k is not 1.
EVERY = ("attn_layer_period", "expert_layer_period", "moe_layer_interval", "layer_group_size")


def config_without(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedConfig:
    """A copy of a model's configuration that describes the kept layers alone, numbered anew."""
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    total = text.num_hidden_layers
    write_sparse_step(text, total)
    for name in PER_LAYER:
        if (entries := vars(text).get(name)) and len(entries) == total:
            setattr(text, name, [entries[index] for index in kept])
    for name in NUMBERS:
        if getattr(text, name, None):
            setattr(text, name, [kept.index(index) for index in getattr(text, name) if index in kept])
    for name in FIRST:
        if getattr(text, name, None):
            setattr(text, name, sum(index < getattr(text, name) for index in kept))
    if getattr(text, "scale_depth", None):
        # MiniCPM divides the scale of its residuals by the root of the number of layers.
        text.scale_depth *= (len(kept) / total) ** 0.5
    text.num_hidden_layers = len(kept)
    return config


def write_sparse_step(text: Any, total: int) -> None:
    """List the layers without experts, where a configuration says that every k-th layer has experts (Qwen-MoE)."""
    step = getattr(text, "decoder_sparse_step", None) or 1
    if step > 1:
        dense = [index for index in range(total) if (index + 1) % step or index in (text.mlp_only_layers or [])]
        text.mlp_only_layers, text.decoder_sparse_step = dense, 1


def depends_on_place(model: PreTrainedModel, removed: Sequence[int]) -> list[str]:
    """The reasons why a model's layers cannot be renumbered: what they compute depends on their numbers."""
    text = model.config.get_text_config()
    reasons = [
        f"no skip_layer: every {getattr(text, name)}th layer is special ({name} of the configuration)"
        for name in EVERY
        if (getattr(text, name, None) or 1) > 1
    ]
    if getattr(text, "scale_attn_by_inverse_layer_idx", False):
        reasons.append(
            "no skip_layer: the attention is divided by the layer's number (scale_attn_by_inverse_layer_idx)"
        )
    deepstack = len(getattr(getattr(model.config, "vision_config", None), "deepstack_visual_indexes", None) or ())
    first = [index for index in removed if index < deepstack]
    if first:
        listed = ", ".join(map(str, first))
        where = f"image features are added after layers 0 to {deepstack - 1}"
        reasons.append(f"no skip_layer in layer {listed}: {where}")
    return reasons
