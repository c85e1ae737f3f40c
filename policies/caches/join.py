"""Joins the caches of several requests to one batch, as continuous batching does.

The rows of the batch are aligned at their last token, as in a batch that is padded on the left. So a decode step of the
batch needs a mask over the padding, and position ids that count from each row's own first token.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from ..errors import ModelError
from .partial import PartialLayer

JOINABLE = (DynamicLayer, DynamicSlidingWindowLayer, PartialLayer)


def refuse_unjoinable(cache: Cache) -> None:
    """Refuse a cache whose rows cannot be taken apart and put together.

    Raises:
        ModelError: naming the first layer that is of another kind than a dynamic one.
    """
    for index, layer in enumerate(cache.layers):
        if type(layer) not in JOINABLE:
            raise ModelError(
                "the caches of several requests cannot be joined to a batch",
                [f"layer {index} has a {type(layer).__name__}, expected keys and values that grow with the sequence"],
                "measure one request at a time",
            )


def joined(one: Cache, other: Cache, rows: tuple[int, int]) -> Cache:
    """One batch of the rows of two caches, first those of the first; neither can be used any more.

    Args:
        one: A cache of joinable layers.
        other: The same.
        rows: How many rows each of them has.
    """
    batch = copy.copy(one)
    batch.layers = [join_layers(*pair, rows) for pair in zip(one.layers, other.layers, strict=True)]
    return batch


def join_layers(one: Any, other: Any, rows: tuple[int, int]) -> Any:
    """One cache layer of the rows of two; for `rows` see `joined`."""
    if PartialLayer in (type(one), type(other)):
        # A choice for the decode phase alone changes a layer's cache at the first decode step.
        return join_partial(as_partial(one), as_partial(other), rows)
    if one.keys is None or other.keys is None:
        return one  # Neither has stored anything, such as a layer that attends with the keys of another one.
    batch = one
    stored = max(one.keys.shape[-2], other.keys.shape[-2])
    batch.keys, batch.values = (
        torch.cat([padded(getattr(layer, name), stored, -2) for layer in (one, other)]) for name in ("keys", "values")
    )
    if isinstance(batch, DynamicSlidingWindowLayer):
        batch.cumulative_length = max(one.cumulative_length, other.cumulative_length)
    return batch


def as_partial(layer: Any) -> PartialLayer:
    """A cache layer that may store fewer tokens than the sequence has."""
    return layer if isinstance(layer, PartialLayer) else PartialLayer(layer)


def join_partial(one: PartialLayer, other: PartialLayer, rows: tuple[int, int]) -> PartialLayer:
    """One layer of the rows of two, each of which stores some tokens of its sequence.

    The places of the shorter sequence grow by the padding before it. Padding among the stored columns is invalid.
    For `rows` see `joined`.
    """
    for layer, like, count in ((one, other, rows[0]), (other, one, rows[1])):
        if layer.keys is None and like.keys is not None and like.values is not None:
            # One has stored nothing yet, such as a prompt in a layer that attends in the decode phase alone.
            layer.lazy_initialization(like.keys, like.values)
            layer.keys, layer.values = (part[:1, :, :0].repeat(count, 1, 1, 1) for part in (like.keys, like.values))
    batch, seen = one, max(one.seen, other.seen)
    batch._dropped_before = max(layer._dropped_before + seen - layer.seen for layer in (one, other))
    filled = [
        (layer, layer.keys, layer.values)
        for layer in (one, other)
        if layer.keys is not None and layer.values is not None
    ]
    if filled:
        stored = max(keys.shape[-2] for _, keys, _ in filled)
        places, valid, keys, values = (
            torch.cat(parts) for parts in zip(*(aligned(*parts, seen, stored) for parts in filled), strict=True)
        )
        batch.keys, batch.values, batch._scattered = keys, values, places
        batch.valid = None if bool(valid.all()) else valid
    batch.seen = batch._tail_start = seen
    batch.shared_places = None
    if one.prompt is not None and other.prompt is not None:
        batch.prompt = torch.cat([one.prompt, other.prompt])
    return batch


def aligned(
    layer: PartialLayer, keys: Tensor, values: Tensor, seen: int, stored: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A layer's columns in a longer sequence, padded on the left.

    Args:
        layer: A layer that stores keys and values.
        keys: These keys.
        values: These values.
        seen: Tokens of the longer sequence.
        stored: Columns of the batch.

    Returns:
        Their places, which of them are valid, both of shape (batch, stored), keys, and values.
    """
    places = layer.columns(keys.shape[0], keys.device) + seen - layer.seen
    valid = torch.ones_like(places, dtype=torch.bool) if layer.valid is None else layer.valid
    return (
        padded(places, stored, -1),
        padded(valid, stored, -1),
        padded(keys, stored, -2),
        padded(values, stored, -2),
    )


def padded(tensor: Tensor, length: int, axis: int) -> Tensor:
    """A tensor with zeros before it along the last axis (-1) or the one before it (-2), up to a length."""
    return pad(tensor, (*(0, 0) * (-axis - 1), length - tensor.shape[axis], 0))


def select_rows(cache: Cache, rows: Tensor, length: int) -> None:
    """Keep some rows of a batch, and drop the padding that stands before all of them.

    Args:
        cache: A joined cache; is changed.
        rows: Their numbers, shape (kept,).
        length: Tokens of the longest of them.
    """
    cache.batch_select_indices(rows)
    for layer in cache.layers:
        unpad(layer, length)


def unpad(layer: Any, length: int) -> None:
    """Let a cache layer forget the tokens before its last `length` ones, which are padding in every row."""
    if isinstance(layer, PartialLayer):
        unpad_partial(layer, length)
        return
    if layer.keys is None:
        return
    layer.keys, layer.values = layer.keys[..., -length:, :], layer.values[..., -length:, :]
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = length


def unpad_partial(layer: PartialLayer, length: int) -> None:
    """The same for a layer that stores some tokens: its leading columns go that no row has."""
    gone = layer.seen - length
    layer._dropped_before = max(layer._dropped_before - gone, 0)
    if layer.keys is not None and layer.values is not None:
        places = layer.columns(layer.keys.shape[0], layer.keys.device) - gone
        # Padding that a layer stored has places too, which no row has any more.
        valid = places >= 0 if layer.valid is None else layer.valid & (places >= 0)
        empty = int((~valid).all(dim=0).long().cumprod(dim=0).sum())
        layer.valid = None if bool(valid[:, empty:].all()) else valid[:, empty:]
        layer._scattered = places[:, empty:].clamp_min(0)
        layer.keys, layer.values = layer.keys[..., empty:, :], layer.values[..., empty:, :]
    layer.seen = layer._tail_start = length
    layer.shared_places = None
