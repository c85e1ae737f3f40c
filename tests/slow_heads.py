"""Which heads an attention keeps under a width, and what it gives then; nothing here uses skipsearch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from layer_formulas import a
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

# What families call the projection of what the heads have read.
OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj")


@dataclass(frozen=True)
class Shape:
    """The heads of an attention, from its configuration.

    Attributes:
        heads: Query heads.
        groups: Groups of them that are kept or left out together.
        keys: Heads of keys; 1 where all groups share them.
        width: The numbers of a value.
    """

    heads: int
    groups: int
    keys: int
    width: int


def attention_of(layer: nn.Module) -> Any:
    """The attention of a layer."""
    names = ("self_attn", "attention", "self_attention", "attn")
    return next(getattr(layer, name) for name in names if getattr(layer, name, None) is not None)


def shape_of(attention: Any) -> Shape:
    """See `Shape`."""
    config = attention.config
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    if config.model_type == "falcon":
        keys = config.num_kv_heads if config.new_decoder_architecture else 1 if config.multi_query else heads
    width = getattr(config, "v_head_dim", None) or getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(heads, heads if keys == 1 else keys, keys, width)


def output_of(attention: nn.Module) -> Any:
    """The projection of what the heads have read."""
    return next(getattr(attention, name) for name in OUTPUTS if hasattr(attention, name))


def matrix(part: Any) -> Tensor:
    """The matrix of a linear layer, shape (outputs, inputs)."""
    return part.weight.detach().T if isinstance(part, Conv1D) else part.weight.detach()


def values_of(attention: Any, shape: Shape) -> list[Tensor] | None:
    """For each group, the rows that make its values; None where all groups have the same."""
    if shape.keys == 1:
        return None
    if hasattr(attention, "kv_b_proj"):
        return [rows[-shape.width :] for rows in matrix(attention.kv_b_proj).chunk(shape.groups)]
    if hasattr(attention, "query_key_value"):
        return [rows[-shape.width :] for rows in matrix(attention.query_key_value).chunk(shape.groups)]
    if hasattr(attention, "v_proj"):
        return [*matrix(attention.v_proj).chunk(shape.groups)]
    fused = matrix(attention.c_attn if hasattr(attention, "c_attn") else attention.qkv_proj)
    return [*fused[-shape.groups * shape.width :].chunk(shape.groups)]


def kept_groups(layer: nn.Module, ratio: float, ranking: str) -> list[int]:
    """The groups of heads that run."""
    attention = attention_of(layer)
    shape = shape_of(attention)
    count = int(Fraction(str(ratio)) * shape.groups)
    columns, values = matrix(output_of(attention)).chunk(shape.groups, dim=1), values_of(attention, shape)
    norms = [float(columns[group].double().norm()) for group in range(shape.groups)]
    if values is not None:
        norms = [norm * float(rows.double().norm()) for norm, rows in zip(norms, values, strict=True)]
    order = range(shape.groups) if ranking == "first" else sorted(range(shape.groups), key=lambda group: -norms[group])
    return sorted(order[:count])


def columns_of(groups: list[int], shape: Shape) -> list[int]:
    """The columns of the output projection that belong to some groups."""
    each = shape.heads // shape.groups * shape.width
    return [group * each + column for group in groups for column in range(each)]


def heads_of(groups: list[int], shape: Shape) -> list[int]:
    """The query heads of some groups."""
    each = shape.heads // shape.groups
    return [group * each + head for group in groups for head in range(each)]


def energies(layer: nn.Module, run: Callable[[], object], alpha: float) -> Tensor:
    """By group of heads, (1 - alpha) sum + alpha max over tokens of |A(x) - A(x) without the group|^2."""
    attention, calls = attention_of(layer), []
    shape, columns = shape_of(attention), matrix(output_of(attention))
    hook = attention.register_forward_pre_hook(lambda _, *call: calls.append(call), with_kwargs=True)
    run()
    hook.remove()

    def outputs() -> Tensor:
        found = [attention(*args, **named)[0] for args, named in calls]
        return torch.cat([one.flatten(0, -2) for one in found])

    whole, result = outputs(), []
    for group in range(shape.groups):
        own = columns_of([group], shape)
        before = columns[:, own].clone()
        columns[:, own] = 0.0
        added = (whole - outputs()).square().sum(dim=-1)
        columns[:, own] = before
        result.append((1 - alpha) * added.sum() + alpha * added.max())
    return torch.stack(result)


def stored_heads(groups: list[int], attention: Any, shape: Shape) -> list[int]:
    """Of the heads of keys that a cache of the whole attention has, those of some groups."""
    if getattr(attention.config, "new_decoder_architecture", False):
        return heads_of(groups, shape)
    return [0] if shape.keys == 1 or hasattr(attention, "kv_b_proj") else groups


def read_by_heads(layer: nn.Module, x: Tensor, arguments: dict[str, Any]) -> Tensor:
    """What all heads of an attention have read, before the output projection, shape (tokens, columns)."""
    found: list[Tensor] = []
    hook = output_of(attention_of(layer)).register_forward_pre_hook(lambda _, args: found.append(args[0]))
    try:
        a(layer, x, arguments)
    finally:
        hook.remove()
    return found[-1].reshape(-1, found[-1].shape[-1])


@contextmanager
def given_columns(layer: nn.Module, columns: list[int], given: Tensor) -> Iterator[None]:
    """Let some columns have read this instead, shape (tokens, columns)."""

    def replace(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        whole = args[0].clone()
        whole[..., columns] = given.to(whole).reshape(*whole.shape[:-1], len(columns))
        return (whole, *args[1:])

    hook = output_of(attention_of(layer)).register_forward_pre_hook(replace)
    try:
        yield
    finally:
        hook.remove()
