"""The two sublayers of a decoder layer, from each family's own formulas; nothing here uses skipsearch.

`a` is what the attention adds to the residual stream, `f` what the FFN adds given its normalised input; `n1` and `n2`
are the norms that feed them. A layer is x' = x + a(x); y = x' + f(n2(x')), or y = x + a(x) + f(n2(x)) where `parallel`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

SIDE_BY_SIDE = ("Cohere2", "Phi", "GPTJ")
# What families call their FFN, where it is not `mlp`.
FFN = {
    "Lfm2": "feed_forward",
    "Bamba": "feed_forward",
    "GraniteMoe": "block_sparse_moe",
    "GraniteMoeHybrid": "shared_mlp",
}


def family(layer: Any) -> str:
    """The family's name, from the name of the layer's class."""
    name = type(layer).__name__
    for ending in ("DecoderLayer", "SelfAttention", "TextDecoder", "Block", "Layer"):
        name = name.removesuffix(ending)
    return name.removesuffix("Text")


def post_norm(layer: Any) -> bool:
    """True where norms follow the sublayers and none come before."""
    return family(layer) == "Olmo2" or (family(layer) == "Molmo2" and layer.norm_after)


def parallel(layer: Any) -> bool:
    """True where the dense layer feeds both sublayers its own input."""
    name = family(layer)
    if name == "Falcon":
        return layer.config.new_decoder_architecture or layer.config.parallel_attn
    if name in ("GPTNeoX", "StableLm"):
        return layer.use_parallel_residual
    return name in SIDE_BY_SIDE


def n1(layer: Any, x: Tensor) -> Tensor:
    """The attention's norm."""
    name = family(layer)
    if post_norm(layer):
        return x
    if name == "OPT":
        return layer.self_attn_layer_norm(x)
    if name in ("GPT2", "GPTJ"):
        return layer.ln_1(x)
    if name == "Falcon" and layer.config.new_decoder_architecture:
        return layer.ln_attn(x)
    if name == "Lfm2":
        return layer.operator_norm(x)
    return layer.input_layernorm(x)


def n2(layer: Any, x: Tensor) -> Tensor:
    """The FFN's norm."""
    name = family(layer)
    if post_norm(layer):
        return x
    if name == "OPT":
        return layer.final_layer_norm(x)
    if name == "GPT2":
        return layer.ln_2(x)
    if name == "Falcon" and layer.config.new_decoder_architecture:
        return layer.ln_mlp(x)
    if parallel(layer) and name != "GPTNeoX":
        return n1(layer, x)
    if name in ("Gemma2", "Gemma3"):
        return layer.pre_feedforward_layernorm(x)
    if name == "Lfm2":
        return layer.ffn_norm(x)
    if name == "Bamba":
        return layer.pre_ff_layernorm(x)
    return layer.post_attention_layernorm(x)


def a(layer: Any, x: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """What the attention adds, and its weights (batch, heads, queries, keys); None where it has none."""
    name, normed = family(layer), n1(layer, x)
    mixer = recurrence(layer)
    if mixer is not None:
        # Its order is its mask; what is left to say is which tokens are padding.
        mask = arguments["attention_mask"]
        out = mixer(normed, attention_mask=mask if mask is not None and mask.dim() == 2 else None)
        return out * scale(layer), None
    if name == "MllamaCrossAttention":
        image = {"cross_attention_states": arguments["cross_attention_states"]}
        with eager(layer.cross_attn):
            out, weights = layer.cross_attn(normed, attention_mask=arguments["cross_attention_mask"], **image)
        return layer.cross_attn_attn_gate.tanh() * out, weights
    attention = next(
        getattr(layer, at) for at in ("self_attn", "attention", "self_attention", "attn") if has(layer, at)
    )
    with eager(attention):
        out, weights = attention(normed, **arguments)
    if name in ("Gemma2", "Gemma3", "Olmo2"):
        out = layer.post_attention_layernorm(out)
    elif name in ("Glm4", "Glm4v"):
        out = layer.post_self_attn_layernorm(out)
    elif post_norm(layer):
        out = layer.input_layernorm(out)
    return out * scale(layer), weights


def f(layer: Any, normed: Tensor, arguments: dict[str, Any] | None = None) -> Tensor:
    """What the FFN adds; the arguments matter to a layer that attends to an image, where they say which see none."""
    name = family(layer)
    if name == "OPT":
        return layer.fc2(layer.activation_fn(layer.fc1(normed)))
    out = getattr(layer, FFN.get(name, "mlp"))(normed)
    if name == "GptOss":
        out, _ = out
    if name in ("Gemma2", "Gemma3", "Olmo2"):
        out = layer.post_feedforward_layernorm(out)
    elif name in ("Glm4", "Glm4v"):
        out = layer.post_mlp_layernorm(out)
    elif post_norm(layer):
        out = layer.post_attention_layernorm(out)
    elif name == "MllamaCrossAttention":
        seeing = (arguments or {}).get("full_text_row_masked_out_mask")
        out = layer.cross_attn_mlp_gate.tanh() * (out if seeing is None else out * seeing[:, 0])
    return out * scale(layer)


def scale(layer: Any) -> float:
    """What the output of each sublayer is multiplied by."""
    if family(layer).startswith("Granite"):
        return layer.residual_multiplier
    return layer.residual_scale if family(layer) == "MiniCPM3" else 1.0


def has(layer: Any, name: str) -> bool:
    """True where the layer has this part."""
    return getattr(layer, name, None) is not None


def recurrence(layer: Any) -> Any:
    """What mixes tokens without keys and values; None in a layer with attention."""
    return next((getattr(layer, name) for name in ("linear_attn", "conv", "mamba") if has(layer, name)), None)


@contextmanager
def eager(attention: Any) -> Iterator[None]:
    """Let an attention give its weights."""
    before = attention.config._attn_implementation
    attention.config._attn_implementation = "eager"
    try:
        yield
    finally:
        attention.config._attn_implementation = before
