"""Writing a file with the package `gguf`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .architecture import Architecture, embedding_rows, head_dim, is_rope_scaled, rope_of, text_config, windowed_layers
from .blocks import NARROW, Block
from .tensors import file_tensors
from .vocabulary import Vocabulary


def write_file(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    architecture: Architecture,
    vocabulary: Vocabulary | None,
    title: str,
    path: Path,
) -> None:
    """Write a model's layers, settings and vocabulary to a file."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture.name)
    writer.add_name(title)
    add_settings(writer, model, blocks, architecture)
    add_vocabulary(writer, vocabulary)
    for name, tensor in file_tensors(model, blocks, architecture):
        add_tensor(writer, name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_settings(writer: Any, model: PreTrainedModel, blocks: Sequence[Block], architecture: Architecture) -> None:
    """Add the sizes of the model; `deci` reads the heads and the FFN's width of each layer."""
    from gguf import LlamaFileType

    text, width = text_config(model), head_dim(model)
    heads = [0 if block.attention == "absent" else text.num_attention_heads for block in blocks]
    shared = [0 if block.attention == "absent" else text.num_key_value_heads for block in blocks]
    columns = [min(NARROW, text.intermediate_size) if block.ffn == "narrow" else text.intermediate_size
               for block in blocks]  # fmt: skip
    each = architecture.name == "deci"
    writer.add_block_count(len(blocks))
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_head_count(heads if each else heads[0])
    writer.add_head_count_kv(shared if each else shared[0])
    writer.add_feed_forward_length(columns if each else columns[0])
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_vocab_size(embedding_rows(model))
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(rope_of(model)[0]["rope_theta"])
    windowed = windowed_layers(model)
    if any(windowed):
        writer.add_sliding_window(text.sliding_window)
        writer.add_sliding_window_pattern([windowed[block.source] for block in blocks])
    if is_rope_scaled(model):
        writer.add_rope_scaling_attn_factors(model.get_decoder().rotary_emb.attention_scaling)
    types = {torch.float32: "ALL_F32", torch.float16: "MOSTLY_F16", torch.bfloat16: "MOSTLY_BF16"}
    writer.add_file_type(LlamaFileType[types[model.dtype]])


def add_vocabulary(writer: Any, vocabulary: Vocabulary | None) -> None:
    """Add a tokenizer; None makes a file that takes and gives numbers of tokens alone."""
    if vocabulary is None:
        writer.add_tokenizer_model("no_vocab")
        return
    rules = vocabulary.rules
    writer.add_tokenizer_model(rules.model)
    writer.add_tokenizer_pre(rules.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if rules.model == "llama":
        writer.add_token_scores([rules.scores.get(token, 0.0) for token in vocabulary.tokens])
    else:
        writer.add_token_merges(rules.merges)
    for name, number in vocabulary.special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(vocabulary.adds_eos)
    writer.add_add_space_prefix(rules.adds_space)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def add_tensor(writer: Any, name: str, tensor: Tensor) -> None:
    """Add a tensor in its own dtype; numpy has no bfloat16, so those are handed over as bytes."""
    from gguf import GGMLQuantizationType

    if tensor.dtype == torch.bfloat16:
        writer.add_tensor(name, tensor.view(torch.uint8).numpy(), raw_dtype=GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(name, tensor.numpy())
