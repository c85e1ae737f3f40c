"""Second attention modules over the same parts, for tokens that do not take part in an attention in full.

No family's attention takes queries and keys from different tokens. So a twin of an attention runs the family's own
forward, with something else in the place of its query projection, its cache or its attention function: one twin makes
keys and values without queries, the other lets each token attend to itself and to given tokens. The attention itself
stays as it is.
"""

import copy
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .anatomy import PER_TOKEN
from .model_errors import is_out_of_memory
from .sublayers import Sublayers

# The name of `attend_alone` in transformers' table of attention functions.
ALONE: Final = "skipsearch_alone"
# Projections that make queries and nothing else; latent attention has two of them.
QUERY_PROJECTIONS = ("q_proj", "q_a_proj", "q_b_proj")
# A projection whose first rows make queries, and the others keys and values.
FUSED_PROJECTION, OUTPUT_PROJECTION = "qkv_proj", "o_proj"
# What a module object keeps of its own: a forward in the place of its class's.
FORWARDS = ("forward", "_old_forward", "_hf_hook", "_compiled_call_impl")
SHARED = ("training", "_parameters", "_buffers", "_non_persistent_buffers_set")


class NoQueries(nn.Module):
    """Stands in the place of a query projection, and gives zeros without computing anything."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Zeros, shape (batch, tokens, width)."""
        return x.new_zeros(1).expand(*x.shape[:-1], self.width)


class KeysOfFused(nn.Module):
    """Stands in the place of a fused projection, and computes its keys and values alone; the queries are zeros."""

    def __init__(self, fused: nn.Linear, width: int) -> None:
        super().__init__()
        self.fused, self.width = fused, width

    def forward(self, x: Tensor) -> Tensor:
        """Queries of zeros, then keys and values, shape (batch, tokens, rows of the fused projection)."""
        bias = None if self.fused.bias is None else self.fused.bias[self.width :]
        rest = functional.linear(x, self.fused.weight[self.width :], bias)
        return torch.cat([rest.new_zeros(1).expand(*x.shape[:-1], self.width), rest], dim=-1)


class KeysTaken(Exception):
    """Ends the forward of an attention whose keys were wanted and nothing else."""


class KeyReader:
    """Stands in the place of a cache: takes the keys and values, and ends the attention."""

    def __init__(self) -> None:
        self.found: tuple[Tensor, Tensor] | None = None

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take what the attention would store.

        Raises:
            KeysTaken: always.
        """
        self.found = keys, values
        raise KeysTaken


@dataclass(frozen=True)
class Twins:
    """Which twins an attention can have, found out once on random input.

    Attributes:
        has_keys: True where its keys and values can be made alone.
        query_parts: The names of its parts that make queries; empty where they make keys too.
        attends_alone: True where `attend_alone` computes what its own attention function does.
    """

    has_keys: bool = False
    query_parts: tuple[str, ...] = ()
    attends_alone: bool = False

    @classmethod
    def of(cls, sublayers: Sublayers, x: Tensor, arguments: Mapping[str, Any]) -> "Twins":
        """Find out which twins compute what the attention does, from one call of its layer without a cache.

        Args:
            sublayers: The sublayers of the layer.
            x: What entered it, shape (batch, tokens, width), at least three tokens.
            arguments: All other arguments.
        """
        if sublayers.kind != "attention":
            return cls()
        try:
            normed, attention = sublayers.attention_norm(x), sublayers.attention
            keys = take_keys(sublayers, attention, normed, arguments)
            names = query_parts(attention)
            found = take_keys(sublayers, key_twin(attention, names), normed, arguments)
            names = names if all(map(agree, found, keys)) else ()
            return cls(True, names, cls._attends_alone(sublayers, normed, arguments, keys))
        except Exception as cause:
            if is_out_of_memory(cause):
                raise
            # The forward of an attention of another build can raise anything; such an attention has no twin.
            return cls()

    @staticmethod
    def _attends_alone(
        sublayers: Sublayers, normed: Tensor, arguments: Mapping[str, Any], keys: tuple[Tensor, ...]
    ) -> bool:
        """Checks that the second-to-last token gets the same output alone as in the sequence."""
        place = normed.shape[1] - 2
        whole, pair = of_tokens(arguments, slice(place + 1)), of_tokens(arguments, slice(place, None))
        mask = arguments.get("attention_mask")
        if mask is not None:
            whole["attention_mask"] = mask[..., : place + 1, : place + 1]
            pair["attention_mask"] = mask[..., place:, :place]
        pair[sublayers.cache_name] = AddedKeys(tuple(part[..., :place, :] for part in keys))
        try:
            found = sublayers.run_attention(normed[:, place:], pair, alone_twin(sublayers.attention))
        except Exception as cause:
            if is_out_of_memory(cause):
                raise
            # The attention does not take its function from the table, and cannot do with such a mask.
            return False
        return agree(found[:, 0], sublayers.run_attention(normed[:, : place + 1], whole)[:, place])


def of_tokens(arguments: Mapping[str, Any], places: slice) -> dict[str, Any]:
    """The arguments of a layer for consecutive tokens."""
    cut = dict(arguments)
    for name, axis in PER_TOKEN.items():
        value = arguments.get(name)
        index = (..., places) if axis == -1 else (..., places, slice(None))
        if isinstance(value, Tensor):
            cut[name] = value[index]
        elif value is not None:
            cut[name] = tuple(part[index] for part in value)
    return cut


def agree(found: Tensor, expected: Tensor) -> bool:
    """True where two results are equal, up to rounding."""
    if found.shape != expected.shape:
        return False
    error = (found - expected).float().norm() / expected.float().norm().clamp_min(1e-12)
    return bool(error < (1e-4 if expected.dtype in (torch.float32, torch.float64) else 3e-2))


def take_keys(
    sublayers: Sublayers, attention: nn.Module, normed: Tensor, arguments: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Keys and values of tokens, positions applied, as a cache stores them, shape (batch, heads, tokens, width).

    Args:
        sublayers: The sublayers of the layer.
        attention: Its attention, or a twin.
        normed: The attention's input, shape (batch, tokens, width).
        arguments: What the layer was called with, cut to these tokens.

    Raises:
        LookupError: the attention stores nothing in a cache.
    """
    reader = KeyReader()
    with suppress(KeysTaken):
        sublayers.run_attention(normed, {**arguments, sublayers.cache_name: reader, "attention_mask": None}, attention)
    if reader.found is None:
        raise LookupError(f"{type(attention).__name__} stores nothing in the cache it is given")
    return reader.found


class AddedKeys:
    """Stands in the place of a cache: puts given keys and values before those of the call, and stores nothing."""

    def __init__(self, before: tuple[Tensor, ...]) -> None:
        self.before = before

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """All keys and values, shape (batch, heads, tokens, width)."""
        if not self.before:
            return keys, values
        return torch.cat([self.before[0], keys], dim=-2), torch.cat([self.before[1], values], dim=-2)


def query_parts(attention: nn.Module) -> tuple[str, ...]:
    """The names of the parts of an attention that seem to make queries and need not run for keys and values."""
    found = tuple(name for name in QUERY_PROJECTIONS if hasattr(getattr(attention, name, None), "out_features"))
    fused = type(getattr(attention, FUSED_PROJECTION, None)) is nn.Linear
    if not found and fused and hasattr(getattr(attention, OUTPUT_PROJECTION, None), "in_features"):
        return (FUSED_PROJECTION,)
    return found


def key_twin(attention: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """A twin that makes keys and values, and where `names` has the parts that make queries, no queries."""
    parts: dict[str, nn.Module] = {}
    for name in names:
        part = getattr(attention, name)
        if name != FUSED_PROJECTION:
            parts[name] = NoQueries(part.out_features)
        elif type(part) is nn.Linear:
            # Anything else that was put there since, such as an adapter, runs in full.
            parts[name] = KeysOfFused(part, getattr(attention, OUTPUT_PROJECTION).in_features)
    return twin_of(attention, parts)


def alone_twin(attention: nn.Module) -> nn.Module:
    """A twin whose tokens attend to themselves and to the keys before theirs; see `attend_alone`."""
    return function_twin(attention, ALONE)


def function_twin(attention: nn.Module, name: str) -> nn.Module:
    """A twin with another attention function, by its name in transformers' table."""
    twin = twin_of(attention, {})
    config = copy.copy(attention.config)
    # Both names of the function are set: most configurations read the second from the first, but the configuration of a
    # layer with another number of heads stores a copy of its own.
    vars(config).update(_attn_implementation_internal=name, _attn_implementation=name)
    vars(twin)["config"] = config
    return twin


def twin_of(attention: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    """A second module over the same parameters and parts, except those given; it has no hooks of its own."""
    twin = object.__new__(type(attention))
    nn.Module.__init__(twin)
    own = {*vars(twin), *FORWARDS} - {*SHARED}
    vars(twin).update({name: value for name, value in vars(attention).items() if name not in own})
    vars(twin)["_modules"] = {**attention._modules, **parts}
    return twin


def is_current(twin: nn.Module, attention: nn.Module) -> bool:
    """True where a twin still has the parts of its attention, which may be replaced, for example to quantise them."""
    own = (NoQueries, KeysOfFused)
    fused = (twin._modules.get(FUSED_PROJECTION), attention._modules.get(FUSED_PROJECTION))
    if isinstance(fused[0], KeysOfFused) and fused[0].fused is not fused[1]:
        return False
    parts = attention._modules.items()
    same = all(isinstance(twin._modules[name], own) or twin._modules[name] is part for name, part in parts)
    return same and twin.training == attention.training


def attend_alone(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Let each query attend to its own key and to the keys before those of the queries; an attention function.

    Args:
        module: The attention.
        query: Shape (batch, heads, queries, width).
        key: Shape (batch, key heads, visible + queries, width).
        value: Shape (batch, key heads, visible + queries, width of a value).
        attention_mask: Boolean or additive, shape (batch or 1, heads or 1, queries, visible); None where all are seen.
        scaling: What the logits are multiplied by; None for one over the root of the width.
        dropout: Share of the weights that is dropped in training.
        softcap: Bound of the logits.
        s_aux: A logit that takes part in the softmax and has no value, shape (heads,).

    Returns:
        Shape (batch, queries, heads, width of a value), and no weights.
    """
    batch, heads, count, width = query.shape
    groups, visible = key.shape[1], key.shape[2] - count
    sharing = heads // groups * count
    # Heads that share their keys are rows of one product.
    rows = query.reshape(batch, groups, sharing, width)
    shared = (rows @ key[:, :, :visible].transpose(-1, -2)).reshape(batch, heads, count, visible)
    single = query.reshape(batch, groups, -1, count, 1, width) @ key[:, :, None, visible:, :, None]
    logits = torch.cat([shared, single.reshape(batch, heads, count, 1)], dim=-1)
    logits = logits * (width**-0.5 if scaling is None else scaling)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    logits = logits.float()
    if attention_mask is not None:
        seen = attention_mask[..., :visible]
        if seen.dtype == torch.bool:
            seen = torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, float("-inf"))
        logits = logits + functional.pad(seen.float(), (0, 1))
    if s_aux is not None:
        logits = torch.cat([logits, s_aux.float().reshape(1, -1, 1, 1).expand(batch, -1, count, 1)], dim=-1)
    weights = functional.dropout(logits.softmax(-1).to(value.dtype), dropout, module.training)
    out = weights[..., :visible].reshape(batch, groups, sharing, visible) @ value[:, :, :visible]
    own = weights[..., visible].reshape(batch, groups, -1, count, 1, 1) @ value[:, :, None, visible:, None]
    out = out.reshape(batch, heads, count, -1) + own.reshape(batch, heads, count, -1)
    return out.transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(ALONE, attend_alone)
