"""The architectures of llama.cpp that a file can name, and the tensors and settings that each reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
# Olmo has norms after its sublayers and none before them.
OLMO_MODULES = MODULES | {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
QK_NORMS = frozenset({"attn_q_norm.weight", "attn_k_norm.weight"})
WEIGHTS = frozenset(f"{name}.weight" for name in MODULES.values()) - QK_NORMS
QKV_BIASES = frozenset({"attn_q.bias", "attn_k.bias", "attn_v.bias"})
PROJECTIONS = WEIGHTS - {"attn_norm.weight", "ffn_norm.weight"}
OLMO_NORMS = QK_NORMS | {"post_attention_norm.weight", "post_ffw_norm.weight"}
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
        windows: Whether it reads which layers have a sliding window.
        ties: Whether the output layer may be the embedding.
        modules: The file's name of each module of a layer.
    """

    name: str
    tensors: frozenset[str]
    interleaved: bool = False
    rope_factors: bool = False
    free_heads: bool = True
    windows: bool = False
    ties: bool = True
    modules: Mapping[str, str] = field(default_factory=lambda: MODULES)

    def file_name(self, name: str) -> str:
        """What a file calls a tensor of a layer, such as `attn_q.weight` for `self_attn.q_proj.weight`."""
        module, _, kind = name.rpartition(".")
        return f"{self.modules.get(module, module)}.{kind}"


LLAMA = Architecture("llama", WEIGHTS | BIASES, interleaved=True, rope_factors=True)
# Reads the numbers of heads and the width of the FFN of each layer by itself.
DECI = Architecture("deci", WEIGHTS | BIASES, interleaved=True, rope_factors=True)
QWEN2 = Architecture("qwen2", WEIGHTS | QKV_BIASES, free_heads=False)
QWEN3 = Architecture("qwen3", WEIGHTS | QK_NORMS)
OLMO2 = Architecture(
    "olmo2", PROJECTIONS | OLMO_NORMS, free_heads=False, windows=True, ties=False, modules=OLMO_MODULES
)
# By transformers' `model_type` of the language model.
ARCHITECTURES = {
    "llama": LLAMA, "mistral": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3, "olmo2": OLMO2, "olmo3": OLMO2,
}  # fmt: skip
# What is part of llama.cpp's code, so that no file can say otherwise of renumbered layers.
FIXED = {
    "smollm3": "gives every 4th layer no rotary positions",
    "llama4_text": "gives every 4th layer no rotary positions",
    "exaone4": "reads sliding windows of models with 64 layers alone",
    "gemma2": "scales the attention by the number of layers, and rounds GELU to float16",
    "gemma3_text": "scales the attention by the number of layers, and rounds GELU to float16",
}


def text_config(model: PreTrainedModel) -> Any:
    """The configuration of the language model."""
    return model.config.get_text_config()


def head_dim(model: PreTrainedModel) -> int:
    """The width of one attention head."""
    text = text_config(model)
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def embedding_rows(model: PreTrainedModel) -> int:
    """The number of rows of the embedding, which may exceed the number of tokens."""
    embedding: Any = model.get_input_embeddings()
    rows: int = embedding.weight.shape[0]
    return rows


def rope_of(model: PreTrainedModel) -> list[dict[str, Any]]:
    """The rotary settings of a model: one, or those of its kinds of layers."""
    settings = text_config(model).rope_parameters
    return [settings] if "rope_theta" in settings else list(settings.values())


def is_rope_scaled(model: PreTrainedModel) -> bool:
    """True where the rotary frequencies are not the plain powers of their base."""
    return any(rope["rope_type"] != "default" for rope in rope_of(model))


def windowed_layers(model: PreTrainedModel) -> list[bool]:
    """Whether each layer has a sliding window."""
    text = text_config(model)
    if text.model_type == "mistral":
        return [text.sliding_window is not None] * text.num_hidden_layers
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    return [kind != "full_attention" for kind in kinds]


def architecture_of(model: PreTrainedModel, blocks: Sequence[Block]) -> Architecture:
    """The model's own architecture where that can say all, else `deci`."""
    is_uneven = any(block.needs_deci for block in blocks)
    return DECI if is_uneven or unreadable(model) else ARCHITECTURES[text_config(model).model_type]


def unreadable(model: PreTrainedModel) -> list[str]:
    """What of a model its own architecture does not read, and `deci` does."""
    own, text = ARCHITECTURES[text_config(model).model_type], text_config(model)
    found = []
    if is_rope_scaled(model) and not own.rope_factors:
        found.append(f"the rotary type {rope_of(model)[0]['rope_type']}")
    if head_dim(model) * text.num_attention_heads != text.hidden_size and not own.free_heads:
        found.append(f"{text.num_attention_heads} heads of the width {head_dim(model)}")
    return found


def model_reasons(model: PreTrainedModel) -> list[str]:
    """The reasons why no file can describe the language model, whatever the policy."""
    text = text_config(model)
    kind = text.model_type
    if kind in FIXED:
        return [f"llama.cpp's code for {kind} {FIXED[kind]}, which no file can change"]
    if kind not in ARCHITECTURES:
        return [f"found a language model of the type {kind}, expected one of {', '.join(ARCHITECTURES)}"]
    reasons = []
    if getattr(model, "hf_quantizer", None) is not None:
        reasons.append("the weights are quantised: load them unquantised, and quantise the file with llama-quantize")
    if str(model.dtype) not in ("torch.float32", "torch.float16", "torch.bfloat16"):
        reasons.append(f"found weights in {model.dtype}, expected float32, float16 or bfloat16")
    if text.hidden_act not in ("silu", "swish"):
        reasons.append(f"found the activation {text.hidden_act}, expected silu")
    if any(windowed_layers(model)) and not ARCHITECTURES[kind].windows:
        reasons.append(f"the attention has a sliding window, which llama.cpp's code for {kind} does not")
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        reasons.append("the output layer has a bias")
    return reasons + rope_reasons(model)


def rope_reasons(model: PreTrainedModel) -> list[str]:
    """The reasons why no file can describe the rotary positions."""
    settings = rope_of(model)
    expected = ("default", "linear", "llama3", "yarn")
    kinds = {rope["rope_type"] for rope in settings}.difference(expected)
    reasons = [f"found the rotary type {kind}, expected one of {', '.join(expected)}" for kind in sorted(kinds)]
    if "mrope_section" in settings[0]:
        reasons.append("image tokens have rotary positions of several dimensions (mrope_section)")
    if any(rope != settings[0] for rope in settings):
        reasons.append("layers with a sliding window have other rotary positions than those without")
    if settings[0].get("partial_rotary_factor", 1.0) != 1.0:
        reasons.append(f"only {settings[0]['partial_rotary_factor']:.0%} of each head have rotary positions")
    return reasons


def unread_tensors(model: PreTrainedModel, blocks: Sequence[Block], architecture: Architecture) -> list[str]:
    """The tensors of the layers to write that an architecture does not read, by name, each once."""
    layers = layer_list(model)
    names = (name for block in blocks for name in layers[block.source].state_dict())
    return [name for name in dict.fromkeys(names) if architecture.file_name(name) not in architecture.tensors]
