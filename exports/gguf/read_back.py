"""Reads a GGUF file back into transformers: a script that runs where llama.cpp does not.

It knows the format and llama.cpp's rules, and nothing of the model that was written. A layer without attention, or with
a narrower FFN, gets weights of 0 for what it lacks.
"""

import argparse
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    Olmo2Config,
    Olmo3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from skipsearch.exports.checkpoint.run import outputs_of

MODULES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class File:
    """The settings and tensors of a file."""

    def __init__(self, path: str) -> None:
        reader = GGUFReader(path)
        self.fields = {name: field.contents() for name, field in reader.fields.items()}
        self.architecture = self.fields["general.architecture"]
        self.tensors = {
            tensor.name: torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type)))
            for tensor in reader.tensors
        }

    def setting(self, name: str) -> Any:
        """A setting of the architecture."""
        return self.fields[f"{self.architecture}.{name}"]

    def per_layer(self, name: str) -> list[int]:
        """A setting that each layer has."""
        found = self.setting(name)
        return found if isinstance(found, list) else [found] * self.setting("block_count")


def model_of(file: File) -> PreTrainedModel:
    """An empty model of the file's sizes."""
    biased = {name.split(".")[2] for name in file.tensors if name.startswith("blk.") and name.endswith(".bias")}
    sizes = {
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "hidden_size": file.setting("embedding_length"),
        "intermediate_size": max(file.per_layer("feed_forward_length")),
        "num_hidden_layers": file.setting("block_count"),
        "num_attention_heads": max(file.per_layer("attention.head_count")),
        "num_key_value_heads": max(file.per_layer("attention.head_count_kv")),
        "head_dim": file.setting("attention.key_length"),
        "rms_norm_eps": file.setting("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": file.setting("context_length"),
        "rope_parameters": {"rope_type": "default", "rope_theta": file.setting("rope.freq_base")},
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": any(name.startswith("attn") for name in biased),
    }
    return AutoModelForCausalLM.from_config(config_of(file, sizes, biased)).eval()


def config_of(file: File, sizes: dict[str, Any], biased: set[str]) -> PreTrainedConfig:
    """The configuration of a file's sizes; Llama has all that `deci` and `qwen2` have."""
    if file.architecture == "qwen3":
        return Qwen3Config(**sizes)
    if "olmo2.attention.sliding_window" in file.fields:
        windowed = file.setting("attention.sliding_window_pattern")
        kinds = ["sliding_attention" if window else "full_attention" for window in windowed]
        return Olmo3Config(**sizes, sliding_window=file.setting("attention.sliding_window"), layer_types=kinds)
    if file.architecture == "olmo2":
        return Olmo2Config(**sizes)
    return LlamaConfig(**sizes, mlp_bias=any(name.startswith("ffn") for name in biased))


def fill(model: PreTrainedModel, file: File) -> None:
    """Fill a model with the tensors of a file, each of which must have a place."""
    target: dict[str, Tensor] = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    width = file.setting("attention.key_length")
    for name, tensor in file.tensors.items():
        if name == "rope_freqs.weight":
            continue
        stem, kind = name.rsplit(".", 1)
        if stem.startswith("blk."):
            _, layer, part = stem.split(".")
            stem = f"model.layers.{layer}.{MODULES[part]}"
            if part in ("attn_q", "attn_k") and file.architecture in ("llama", "deci"):
                tensor = tensor.reshape(-1, width // 2, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
        else:
            stem = OUTER[stem]
        place = target[f"{stem}.{kind}"]
        place[tuple(slice(size) for size in tensor.shape)] = tensor
    if "output.weight" not in file.tensors:
        target["lm_head.weight"] = target["model.embed_tokens.weight"]
    model.load_state_dict(target)


def load(path: str, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """The model of a file, in a dtype and with an attention implementation."""
    file = File(path)
    model: Any = model_of(file)
    fill(model, file)
    if attention:
        model.set_attn_implementation(attention)
    model.to(dtype)
    if "rope_freqs.weight" in file.tensors:
        rotary = model.get_decoder().rotary_emb
        rotary.inv_freq /= file.tensors["rope_freqs.weight"]
        rotary.attention_scaling = file.setting("rope.scaling.attn_factor")
    return model


def main() -> None:
    """Read a file back, run the prompts of another and save the outputs to a third."""
    parser = argparse.ArgumentParser()
    for name in ("file", "prompts", "outputs", "dtype", "attention"):
        parser.add_argument(name)
    given = parser.parse_args()
    model = load(given.file, getattr(torch, given.dtype), given.attention)
    torch.save(outputs_of(model, torch.load(given.prompts)), given.outputs)


if __name__ == "__main__":
    main()
