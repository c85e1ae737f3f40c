"""Small models and policies for tests of GGUF files.

Set SKIPSEARCH_LLAMA_PYTHON to the interpreter of an environment with llama-cpp-python to run the files in llama.cpp.
"""

import os
from pathlib import Path

import pytest
import torch
import transformers as t

from skipsearch import Policy
from skipsearch.exports.target import Options

LLAMA = os.environ.get("SKIPSEARCH_LLAMA_PYTHON")
ATTENTION, FFN, LAYER = {"attention": "skip"}, {"ffn": "skip"}, {"attention": "skip", "ffn": "skip"}
WIDTH, INNER, HEADS, SHARED, LAYERS, WORDS = 64, 96, 4, 2, 6, 128
SIZES = {
    "vocab_size": WORDS, "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": SHARED, "max_position_embeddings": 128,
    "initializer_range": 0.15, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
CONFIGS = {
    "llama": t.LlamaConfig,
    "mistral": t.MistralConfig,
    "qwen2": t.Qwen2Config,
    "qwen3": t.Qwen3Config,
    "olmo2": t.Olmo2Config,
    "olmo3": t.Olmo3Config,
    "gemma3": t.Gemma3TextConfig,
    "smollm3": t.SmolLM3Config,
    "phi3": t.Phi3Config,
}


def build(kind="llama", dtype=torch.float32, **more):
    torch.manual_seed(0)
    model = t.AutoModelForCausalLM.from_config(CONFIGS[kind](**{**SIZES, **more})).eval()
    for name, weight in model.named_parameters():
        # Fresh norms and biases are all alike.
        if "norm" in name or name.endswith("bias"):
            weight.data += 0.3 * torch.randn_like(weight)
    return model.to(dtype)


def policy(**layers):
    """A policy from arguments such as `l3=FFN`."""
    return Policy(layers={int(name[1:]): choice for name, choice in layers.items()})


def field(reader, name):
    return reader.fields[name].contents()


real = [pytest.mark.soak, pytest.mark.skipif(LLAMA is None, reason="SKIPSEARCH_LLAMA_PYTHON names no interpreter")]
in_llama = Options(python=Path(LLAMA) if LLAMA else None)
