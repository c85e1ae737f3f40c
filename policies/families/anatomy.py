"""The parts of decoder layers: a table of how families name and combine them."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from torch import Tensor, nn

Kind = Literal["attention", "linear", "cross"]

# The names that layers, attentions and linear mixers give to their cache argument.
CACHE_ARGUMENTS = ("cache", "past_key_values", "past_key_value", "layer_past", "cache_params")

# Arguments of a layer that have an entry for each token, and the axis that runs over tokens.
PER_TOKEN = {"position_embeddings": -2, "position_ids": -1}


@dataclass(frozen=True)
class Anatomy:
    """The attribute names of a decoder layer's parts, and how the layer combines them.

    Attributes:
        attention: The token mixer: an attention, or a recurrence or convolution in its place.
        ffn: The modules of the feed-forward sublayer, in the order they run.
        before_attention: The norm that feeds the attention; None where the attention reads the residual stream itself.
        before_ffn: The norm that feeds the FFN; None where the FFN reads the residual stream itself.
        after_attention: A norm on the attention's output, which belongs to the sublayer.
        after_ffn: A norm on the FFN's output, which belongs to the sublayer.
        scales: Factors of the two sublayers' outputs: numbers, or gate parameters, of which the tanh is taken.
        parallel: True where both sublayers read the layer's input.
        kind: `attention` (stores keys and values), `linear` (a recurrence or convolution), or `cross` (attention to an
            image).
        renamed: Arguments of the attention with another name in the layer: pairs of (attention's name, layer's name).
        rows: The argument that multiplies the FFN's output, row by row.
    """

    attention: str
    ffn: tuple[str, ...]
    before_attention: str | None = None
    before_ffn: str | None = None
    after_attention: str | None = None
    after_ffn: str | None = None
    scales: tuple[str, str] | None = None
    parallel: bool = False
    kind: Kind = "attention"
    renamed: tuple[tuple[str, str], ...] = ()
    rows: str | None = None

    def fits(self, layer: nn.Module) -> bool:
        """True where a layer has exactly these parts, no further weights, and a mixer of this kind."""
        norms = (self.before_attention, self.before_ffn, self.after_attention, self.after_ffn)
        names = {name for name in (self.attention, *self.ffn, *norms, *(self.scales or ())) if name is not None}
        weights = {name.split(".")[0] for name, _ in chain(layer.named_parameters(), layer.named_buffers())}
        if not weights <= names or any(getattr(layer, name, None) is None for name in names):
            return False
        argument = cache_argument(getattr(layer, self.attention))
        return argument is not None and (self.kind == "linear" or argument != "cache_params")


# Several may fit a layer. They are tried in order; the first that reproduces the layer's own output is taken.
ANATOMIES = (
    # Gemma 2 and 3: norms before and after each sublayer.
    Anatomy(
        "self_attn",
        ("mlp",),
        "input_layernorm",
        "pre_feedforward_layernorm",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
    ),
    # GLM-4 and GLM-4V: the same, under other names.
    Anatomy(
        "self_attn",
        ("mlp",),
        "input_layernorm",
        "post_attention_layernorm",
        "post_self_attn_layernorm",
        "post_mlp_layernorm",
    ),
    # Granite: the outputs of the sublayers are scaled.
    Anatomy(
        "self_attn",
        ("mlp",),
        "input_layernorm",
        "post_attention_layernorm",
        scales=("residual_multiplier", "residual_multiplier"),
    ),
    # Granite's mixture of experts.
    Anatomy(
        "self_attn",
        ("block_sparse_moe",),
        "input_layernorm",
        "post_attention_layernorm",
        scales=("residual_multiplier", "residual_multiplier"),
    ),
    # Granite 4 without experts: attention, or Mamba.
    Anatomy(
        "self_attn",
        ("shared_mlp",),
        "input_layernorm",
        "post_attention_layernorm",
        scales=("residual_multiplier", "residual_multiplier"),
    ),
    Anatomy(
        "mamba",
        ("shared_mlp",),
        "input_layernorm",
        "post_attention_layernorm",
        scales=("residual_multiplier", "residual_multiplier"),
        kind="linear",
    ),
    # MiniCPM 3.
    Anatomy(
        "self_attn",
        ("mlp",),
        "input_layernorm",
        "post_attention_layernorm",
        scales=("residual_scale", "residual_scale"),
    ),
    # Llama, Mistral, Qwen and most other families: a norm before each sublayer.
    Anatomy("self_attn", ("mlp",), "input_layernorm", "post_attention_layernorm"),
    # Gated DeltaNet in Qwen3-Next and Qwen3.5.
    Anatomy("linear_attn", ("mlp",), "input_layernorm", "post_attention_layernorm", kind="linear"),
    # OLMo 2 and 3, EXAONE 4: a norm after each sublayer only.
    Anatomy(
        "self_attn",
        ("mlp",),
        after_attention="post_attention_layernorm",
        after_ffn="post_feedforward_layernorm",
    ),
    # Molmo 2 with `norm_after`.
    Anatomy(
        "self_attn",
        ("mlp",),
        after_attention="input_layernorm",
        after_ffn="post_attention_layernorm",
    ),
    # Cohere, Phi, StableLM with `use_parallel_residual`: one norm feeds both sublayers.
    Anatomy("self_attn", ("mlp",), "input_layernorm", "input_layernorm", parallel=True),
    # LFM 2: attention, or a short convolution.
    Anatomy("self_attn", ("feed_forward",), "operator_norm", "ffn_norm"),
    Anatomy("conv", ("feed_forward",), "operator_norm", "ffn_norm", kind="linear"),
    # Bamba and Jamba: attention, or Mamba.
    Anatomy("self_attn", ("feed_forward",), "input_layernorm", "pre_ff_layernorm"),
    Anatomy("mamba", ("feed_forward",), "input_layernorm", "pre_ff_layernorm", kind="linear"),
    # Llama 4.
    Anatomy("self_attn", ("feed_forward",), "input_layernorm", "post_attention_layernorm"),
    # Mllama: cross-attention to the image, a gate on each sublayer; rows that see no image have no FFN.
    Anatomy(
        "cross_attn",
        ("mlp",),
        "input_layernorm",
        "post_attention_layernorm",
        scales=("cross_attn_attn_gate", "cross_attn_mlp_gate"),
        kind="cross",
        renamed=(("attention_mask", "cross_attention_mask"),),
        rows="full_text_row_masked_out_mask",
    ),
    # OPT: the two matrices of the FFN are attributes of the layer itself.
    Anatomy("self_attn", ("fc1", "activation_fn", "fc2"), "self_attn_layer_norm", "final_layer_norm"),
    # GPT-NeoX and Pythia, with `use_parallel_residual` and without.
    Anatomy("attention", ("mlp",), "input_layernorm", "post_attention_layernorm", parallel=True),
    Anatomy("attention", ("mlp",), "input_layernorm", "post_attention_layernorm"),
    # GPT-2; GPT-J and CodeGen.
    Anatomy("attn", ("mlp",), "ln_1", "ln_2"),
    Anatomy("attn", ("mlp",), "ln_1", "ln_1", parallel=True),
    # Falcon: the new decoder architecture, and the old one, sequential or parallel.
    Anatomy("self_attention", ("mlp",), "ln_attn", "ln_mlp", parallel=True),
    Anatomy("self_attention", ("mlp",), "input_layernorm", "post_attention_layernorm"),
    Anatomy("self_attention", ("mlp",), "input_layernorm", "input_layernorm", parallel=True),
)


def parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    """The parameters of a module's forward by name, `self` first."""
    return inspect.signature(type(module).forward).parameters


def cache_argument(module: nn.Module) -> str | None:
    """The name of a module's cache argument; None where it takes no cache."""
    return next((name for name in CACHE_ARGUMENTS if name in parameters(module)), None)


def first(output: Any) -> Tensor:
    """The hidden states among a module's outputs, which may also hold attention weights or router logits."""
    return output[0] if isinstance(output, tuple) else output
