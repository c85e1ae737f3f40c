"""The architectures of llama.cpp that a file can name, and the tensors and settings that each reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ...policies.families.layers import layer_list
from .blocks import Block

# The file's name of each module of a layer.
MODULES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
QK_NORMS = frozenset({"attn_q_norm.weight", "attn_k_norm.weight"})
WEIGHTS = frozenset(f"{name}.weight" for name in MODULES.values()) - QK_NORMS
QKV_BIASES = frozenset({"attn_q.bias", "attn_k.bias", "attn_v.bias"})
BIASES = QKV_BIASES | {"attn_output.bias", "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"}


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp reads a file.

    Attributes:
        name: The file's `general.architecture`.
        tensors: The tensors of a layer that it reads.
        interleaved: True where it rotates neighbouring pairs of numbers of a head; transformers rotates the first half
            with the second.
        rope_factors: Whether it reads factors of the rotary frequencies.
        free_heads: Whether the heads may be wider or narrower than the model's width divided by their number.
    """

    name: str
    tensors: frozenset[str]
    interleaved: bool
    rope_factors: bool
    free_heads: bool


LLAMA = Architecture("llama", WEIGHTS | BIASES, interleaved=True, rope_factors=True, free_heads=True)
# Reads the numbers of heads and the width of the FFN of each layer by itself.
DECI = Architecture("deci", WEIGHTS | BIASES, interleaved=True, rope_factors=True, free_heads=True)
QWEN2 = Architecture("qwen2", WEIGHTS | QKV_BIASES, interleaved=False, rope_factors=False, free_heads=False)
QWEN3 = Architecture("qwen3", WEIGHTS | QK_NORMS, interleaved=False, rope_factors=False, free_heads=True)
# By transformers' `model_type` of the language model.
ARCHITECTURES = {"llama": LLAMA, "mistral": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3}
# Their layers differ by a period that is part of llama.cpp's code, so renumbered layers would compute something else.
PERIODS = {"smollm3": "no rotary positions in every 4th layer", "llama4_text": "no rotary positions in every 4th layer"}


def text_config(model: PreTrainedModel) -> Any:
    """The configuration of the language model."""
    return model.config.get_text_config()


def head_dim(model: PreTrainedModel) -> int:
    """The width of one attention head."""
    text = text_config(model)
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def architecture_of(model: PreTrainedModel, blocks: Sequence[Block]) -> Architecture:
    """The model's own architecture where that can say all, else `deci`."""
    own, text = ARCHITECTURES[text_config(model).model_type], text_config(model)
    is_wide = head_dim(model) * text.num_attention_heads != text.hidden_size
    missing = (is_rope_scaled(model) and not own.rope_factors) or (is_wide and not own.free_heads)
    return DECI if missing or any(block.needs_deci for block in blocks) else own


def is_rope_scaled(model: PreTrainedModel) -> bool:
    """True where the rotary frequencies are not the plain powers of their base."""
    return text_config(model).rope_parameters["rope_type"] != "default"


def model_reasons(model: PreTrainedModel) -> list[str]:
    """The reasons why no file can describe the language model, whatever the policy."""
    text = text_config(model)
    kind = text.model_type
    if kind in PERIODS:
        return [f"llama.cpp's code for {kind} has {PERIODS[kind]}, which a file cannot change"]
    if kind not in ARCHITECTURES:
        return [f"found a language model of the type {kind}, expected one of {', '.join(ARCHITECTURES)}"]
    reasons = []
    if getattr(model, "hf_quantizer", None) is not None:
        reasons.append("the weights are quantised: load them unquantised, and quantise the file with llama-quantize")
    if str(model.dtype) not in ("torch.float32", "torch.float16", "torch.bfloat16"):
        reasons.append(f"found weights in {model.dtype}, expected float32, float16 or bfloat16")
    if text.hidden_act not in ("silu", "swish"):
        reasons.append(f"found the activation {text.hidden_act}, expected silu")
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention"}
    if kinds or (kind == "mistral" and text.sliding_window is not None):
        reasons.append(f"the attention has a sliding window, which llama.cpp's code for {kind} does not")
    rope = text.rope_parameters
    if rope["rope_type"] not in ("default", "linear", "llama3", "yarn"):
        reasons.append(f"found rotary frequencies of the type {rope['rope_type']}, which change with the length")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        reasons.append(f"only {rope['partial_rotary_factor']:.0%} of each head have rotary positions")
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        reasons.append("the output layer has a bias")
    return reasons


def unread_tensors(model: PreTrainedModel, blocks: Sequence[Block], architecture: Architecture) -> list[str]:
    """The tensors of the layers to write that an architecture does not read, by name, each once."""
    layers = layer_list(model)
    names = (name for block in blocks for name in layers[block.source].state_dict())
    return [name for name in dict.fromkeys(names) if file_name(name) not in architecture.tensors]


def file_name(name: str) -> str:
    """What a file calls a tensor of a layer, such as `attn_q.weight` for `self_attn.q_proj.weight`."""
    module, _, kind = name.rpartition(".")
    return f"{MODULES.get(module, module)}.{kind}"
