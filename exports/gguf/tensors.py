"""The tensors of a file, in llama.cpp's names and order of numbers."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...policies.families.layers import layer_list
from .architecture import Architecture, head_dim, is_rope_scaled, rope_of
from .blocks import NARROW, Block


def file_tensors(
    model: PreTrainedModel, blocks: Sequence[Block], architecture: Architecture
) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a file by name; vectors are in float32, as llama.cpp wants them, matrices in the model's dtype."""
    for name, tensor in named_tensors(model, blocks, architecture):
        yield name, (tensor.float() if tensor.dim() == 1 else tensor).detach().cpu().contiguous()


def named_tensors(
    model: PreTrainedModel, blocks: Sequence[Block], architecture: Architecture
) -> Iterator[tuple[str, Tensor]]:
    """The tensors outside the layers, then those of each layer."""
    ends: list[Any] = [model.get_input_embeddings(), model.get_decoder().norm, model.get_output_embeddings()]
    embedding, norm, output = (module.weight for module in ends)
    yield "token_embd.weight", embedding
    yield "output_norm.weight", norm
    if output is not embedding or not architecture.ties:
        yield "output.weight", output
    if is_rope_scaled(model):
        yield "rope_freqs.weight", rope_factors(model)
    layers = layer_list(model)
    for place, block in enumerate(blocks):
        for name, tensor in layers[block.source].state_dict().items():
            own = architecture.file_name(name)
            written = block_tensor(model, block, architecture, own, tensor)
            if written is not None:
                yield f"blk.{place}.{own}", written


def block_tensor(
    model: PreTrainedModel, block: Block, architecture: Architecture, name: str, tensor: Tensor
) -> Tensor | None:
    """A tensor of one layer as the file has it; None where the file lacks it."""
    if name.startswith("attn_"):
        if block.attention == "absent":
            return None
        if block.attention == "zeros" and name != "attn_norm.weight":
            return torch.zeros_like(tensor)
    if name.startswith("ffn_") and name != "ffn_norm.weight" and block.ffn == "narrow":
        return narrow(name, tensor)
    if architecture.interleaved and name.startswith(("attn_q.", "attn_k.")):
        return interleave(tensor, tensor.shape[0] // head_dim(model))
    return tensor


def narrow(name: str, tensor: Tensor) -> Tensor:
    """A tensor of an FFN with `NARROW` columns of zeros in place of its own."""
    zeros = torch.zeros_like(tensor)
    if name == "ffn_down.weight":
        return zeros[:, :NARROW]
    return zeros if name == "ffn_down.bias" else zeros[:NARROW]


def interleave(rows: Tensor, heads: int) -> Tensor:
    """Put the two halves of each head's rows in turn, so that the numbers rotated together are neighbours.

    Args:
        rows: A projection of queries or keys, or its bias; the first dimension is heads x width.
        heads: The number of heads.
    """
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def rope_factors(model: PreTrainedModel) -> Tensor:
    """What the plain rotary frequencies are divided by, shape (half the width of a head,)."""
    rotary: Any = model.get_decoder().rotary_emb
    width = 2 * rotary.inv_freq.numel()
    steps = torch.arange(0, width, 2, dtype=torch.int64).float() / width
    plain = 1.0 / rope_of(model)[0]["rope_theta"] ** steps
    return plain / rotary.inv_freq.float().cpu()
