"""Cutting the arguments of a layer to the tokens that it processes, with a mask that fits what it has cached."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from ..errors import ModelError
from ..families.anatomy import PER_TOKEN
from ..families.layers import DecoderLayer
from .cache import partial_layer
from .partial import PartialLayer
from .selection import AllOrNone, Selection


def narrow(
    layer: DecoderLayer, hidden: Tensor, arguments: dict[str, Any], cache: Cache | None, tokens: Selection | AllOrNone
) -> dict[str, Any]:
    """The arguments of a layer for some tokens only, with a mask over these tokens and the layer's cached ones.

    Args:
        layer: The layer.
        hidden: What enters it, shape (batch, tokens, width).
        arguments: What else the model calls it with.
        cache: The cache among the arguments.
        tokens: The tokens that the layer processes.

    Raises:
        ModelError: the attention implementation takes other masks, or the cache cannot hold rows of different lengths.
    """
    # A recurrence stores a state, not tokens.
    stored = None if cache is None or layer.kind == "linear" else partial_layer(cache, layer.slot)
    chosen = tokens if isinstance(tokens, Selection) else None
    cut = dict(arguments)
    cut["attention_mask"] = mask_for(layer, arguments.get("attention_mask"), hidden, stored, chosen)
    if stored is not None:
        index, valid = (None, None) if chosen is None else (chosen.index, chosen.valid)
        stored.announce(hidden.shape[1], index, valid)
    return cut if chosen is None else cut_arguments(cut, chosen)


def cut_arguments(arguments: dict[str, Any], chosen: Selection) -> dict[str, Any]:
    """The arguments of a layer, of which those with an entry for each token are cut to some tokens."""
    cut = dict(arguments)
    for name, axis in PER_TOKEN.items():
        value = arguments.get(name)
        if isinstance(value, Tensor):
            cut[name] = chosen.cut_once(value, axis)
        elif value is not None:
            cut[name] = tuple(chosen.cut_once(part, axis) for part in value)
    return cut


def mask_for(
    layer: DecoderLayer, mask: Tensor | None, hidden: Tensor, stored: PartialLayer | None, chosen: Selection | None
) -> Tensor | None:
    """The attention mask from the processed tokens to themselves and the tokens in the layer's cache.

    Args:
        layer: The layer.
        mask: The model's mask for the whole sequence: None (causal) or of shape (batch, 1, queries, keys).
        hidden: What enters the layer, shape (batch, tokens, width).
        stored: The layer's cache before this call.
        chosen: The processed tokens; None for all.

    Returns:
        A mask, or None where plain causal attention is right.
    """
    if layer.kind == "linear":
        # A recurrence takes a padding mask only.
        return mask if chosen is None else chosen.valid
    past, first = (0, 0) if stored is None else (stored.seen, stored.get_mask_sizes(0)[1])
    old, new = None if stored is None else stored.valid, None if chosen is None else chosen.valid
    causal = mask is None and old is None and new is None and first == 0 and (hidden.shape[1] == 1 or past == 0)
    if causal and chosen is None:
        return None
    # Checked even where no mask is needed: another implementation should fail at once, not at the first decode step.
    implementation = check_implementation(layer)
    if causal:
        return None
    if chosen is None or past:
        return build_mask(implementation, mask, hidden, stored, chosen)
    # From an empty cache, layers with the same selection and the same mask of the model share one mask.
    key = (id(mask), id(chosen))
    if key not in chosen.masks:
        chosen.masks[key] = (mask, build_mask(implementation, mask, hidden, stored, chosen))
    return chosen.masks[key][1]


def build_mask(
    implementation: str, mask: Tensor | None, hidden: Tensor, stored: PartialLayer | None, chosen: Selection | None
) -> Tensor:
    """Build the mask of `mask_for`, shape (batch, 1, processed, stored + processed)."""
    (batch, count), device = hidden.shape[:2], hidden.device
    queries = torch.arange(count, device=device).expand(batch, -1) if chosen is None else chosen.index
    keys, real, past, first = queries, None if chosen is None else chosen.valid, 0, 0
    if stored is not None and stored.seen:
        past, first = stored.seen, stored.get_mask_sizes(0)[1]
        before = stored.columns(batch, device)
        keys = torch.cat([before, queries + past], dim=1)
        real = torch.cat([valid_mask(stored.valid, before), valid_mask(real, queries)], dim=1) & (keys >= first)
    return fit_mask(implementation, mask, hidden.dtype, queries, KeyPlaces(keys, real, past, first))


class KeyPlaces(NamedTuple):
    """Where the keys of an attention stand in the sequence.

    Attributes:
        places: The place of each key, shape (batch, keys).
        real: Which keys belong to their row, shape (batch, keys); None where all do.
        past: The place of the forward's first token.
        first: The place of the first key that the model's mask has a column for.
    """

    places: Tensor
    real: Tensor | None
    past: int
    first: int


def fit_mask(implementation: str, mask: Tensor | None, dtype: torch.dtype, queries: Tensor, keys: KeyPlaces) -> Tensor:
    """The mask of some queries and keys, shape (batch, 1, queries, keys).

    Args:
        implementation: `sdpa` or `eager`.
        mask: The model's mask: None (causal) or of shape (batch, 1, tokens of the forward, all keys).
        dtype: The dtype of the hidden states.
        queries: The places of the queries in the forward, shape (batch, queries).
        keys: The keys.
    """
    places, real, past, first = keys
    if mask is None:
        allowed = places[:, None, :] <= (queries + past)[:, :, None]
    else:
        rows = mask[:, 0].expand(len(queries), -1, -1).gather(1, queries[..., None].expand(-1, -1, mask.shape[-1]))
        mask = rows.gather(2, (places - first).clamp_min(0)[:, None].expand(-1, queries.shape[1], -1))
        allowed = mask if mask.dtype == torch.bool else torch.ones_like(mask, dtype=torch.bool)
    # Queries that pad a shorter row may see anything: their output is discarded.
    allowed = (allowed if real is None else allowed & real[:, None])[:, None]
    if mask is not None and mask.dtype != torch.bool:
        return torch.where(allowed, mask[:, None], torch.finfo(mask.dtype).min)
    return allowed if implementation == "sdpa" else additive_mask(allowed, dtype)


def check_implementation(layer: DecoderLayer) -> str:
    """The attention implementation of a layer: `sdpa` or `eager`.

    Raises:
        ModelError: it is another one, which takes other masks.
    """
    name = getattr(getattr(layer.sublayers.attention, "config", None), "_attn_implementation", "sdpa")
    if name not in ("sdpa", "eager"):
        raise ModelError(
            f"tokens cannot be left out of an attention under {name}",
            [f"layer {layer.index} leaves tokens out, which is proven under sdpa and eager only"],
            'call `model.set_attn_implementation("sdpa")`',
        )
    return str(name)


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a boolean mask into one that is added to the logits."""
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


def valid_mask(valid: Tensor | None, like: Tensor) -> Tensor:
    """A validity mask as a tensor, where None means that all entries are valid."""
    return torch.ones_like(like, dtype=torch.bool) if valid is None else valid
