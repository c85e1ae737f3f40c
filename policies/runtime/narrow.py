"""Cutting the arguments of a layer to the tokens that it processes, with a mask that fits what it has cached."""

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from ..caches.cache import shorter_layer
from ..caches.partial import PartialLayer
from ..caches.static import ShortStaticLayer
from ..errors import ModelError
from ..families.anatomy import PER_TOKEN
from ..families.layers import DecoderLayer
from .selection import AllOrNone, Selection, remembered

if TYPE_CHECKING:
    from .calls import ForwardCall

# The attention implementations that take the masks which are made here.
WITH_MASKS: Final = ("sdpa", "eager")


def narrow(
    layer: DecoderLayer,
    hidden: Tensor,
    arguments: dict[str, Any],
    cache: Cache | None,
    tokens: Selection | AllOrNone,
    call: "ForwardCall",
    slot: int | None = None,
) -> dict[str, Any]:
    """The arguments of a layer for some tokens only, with a mask over these tokens and the layer's cached ones.

    Args:
        layer: The layer.
        hidden: What enters it, shape (batch, tokens, width); it may be cut.
        arguments: What else the model calls it with.
        cache: The cache among the arguments.
        tokens: The tokens that the layer processes.
        call: The running forward.
        slot: The number under which the keys are stored in the cache; None for the layer's own.

    Raises:
        ModelError: the attention implementation takes other masks, or the cache cannot hold rows of different lengths.
    """
    # A recurrence stores a state, not tokens.
    stored = None
    if cache is not None and layer.kind != "linear":
        stored = shorter_layer(cache, layer.slot if slot is None else slot, hidden.device)
    chosen = tokens if isinstance(tokens, Selection) else None
    cut, count, mask = dict(arguments), call.count(hidden), arguments.get("attention_mask")
    if isinstance(stored, ShortStaticLayer):
        check_implementation(layer)
        stored.announce(count, chosen)
        places = stored.places
    else:
        places = None if stored is None or chosen is not None else stored.shared_places
    # Layers that cached the same tokens share one mask.
    shared = None if places is None else next((m for one, p, m in call.masks if one is mask and p is places), None)
    if shared is None and isinstance(stored, ShortStaticLayer):
        shared = stored.mask(mask, count, chosen)
    elif shared is None and not isinstance(stored, ShortStaticLayer):
        shared = mask_for(layer, mask, hidden, count, stored, chosen)
    cut["attention_mask"] = shared
    if shared is not None and places is not None and mask is not None:
        call.masks.append((mask, places, shared))
    if isinstance(stored, PartialLayer):
        index, valid = (None, None) if chosen is None else (chosen.index, chosen.valid)
        stored.announce(count, index, valid)
    return cut if chosen is None else cut_arguments(layer, cut, chosen)


def cut_arguments(layer: DecoderLayer, arguments: dict[str, Any], chosen: Selection) -> dict[str, Any]:
    """The arguments of a layer, of which those with an entry for each token are cut to some tokens."""
    cut = dict(arguments)
    reads_ids = layer.sublayers.takes_position_ids and implementation_of(layer) in WITH_MASKS
    if cut.get("position_embeddings") is not None and not reads_ids:
        # Only flash attention would look at the ids, and take gaps between the tokens for the ends of packed rows.
        cut["position_ids"] = None
    cut |= {name: chosen.cut_once(cut[name], axis) for name, axis in PER_TOKEN.items() if cut.get(name) is not None}
    return cut


def mask_for(
    layer: DecoderLayer,
    mask: Tensor | None,
    hidden: Tensor,
    count: int,
    stored: PartialLayer | None,
    chosen: Selection | None,
) -> Tensor | None:
    """The attention mask from the processed tokens to themselves and the tokens in the layer's cache.

    Args:
        layer: The layer.
        mask: The model's mask for the whole sequence: None (causal) or of shape (batch, 1, queries, keys).
        hidden: What enters the layer, shape (batch, tokens, width); it may be cut.
        count: The tokens of the forward.
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
    causal = mask is None and old is None and new is None and first == 0 and (count == 1 or past == 0)
    if causal and chosen is None:
        return None
    # Checked even where no mask is needed: another implementation should fail at once, not at the first decode step.
    implementation = check_implementation(layer, needs_mask=not causal)
    if causal:
        return None
    if chosen is None or past:
        return build_mask(implementation, mask, hidden, count, stored, chosen)
    # From an empty cache, layers with the same selection and the same mask of the model share one mask.
    shared: Tensor | None = remembered(chosen.masks, mask, chosen)
    if shared is None:
        shared = build_mask(implementation, mask, hidden, count, stored, chosen)
        chosen.masks.append((mask, chosen, shared))
    return shared


def build_mask(
    implementation: str,
    mask: Tensor | None,
    hidden: Tensor,
    count: int,
    stored: PartialLayer | None,
    chosen: Selection | None,
) -> Tensor:
    """Build the mask of `mask_for`, shape (batch, 1, processed, stored + processed)."""
    batch, device = len(hidden), hidden.device
    if mask is not None and (mask.dtype != torch.bool or implementation == "sdpa"):
        cut = only_row_mask(mask, count, stored, chosen)
        if cut is not None:
            return cut
    queries = torch.arange(count, device=device).expand(batch, -1) if chosen is None else chosen.index
    keys, real, past, first = queries, None if chosen is None else chosen.valid, 0, 0
    if stored is not None and stored.seen:
        past, first = stored.seen, stored.get_mask_sizes(0)[1]
        before = stored.columns(batch, device)
        keys = torch.cat([before, queries + past], dim=1)
        real = torch.cat([valid_mask(stored.valid, before), valid_mask(real, queries)], dim=1) & (keys >= first)
    padding = None if chosen is None or chosen.valid is None else ~chosen.valid
    return fit_mask(implementation, mask, hidden.dtype, queries, KeyPlaces(keys, real, past, first), padding)


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


def fit_mask(
    implementation: str,
    mask: Tensor | None,
    dtype: torch.dtype,
    queries: Tensor,
    keys: KeyPlaces,
    padding: Tensor | None = None,
) -> Tensor:
    """The mask of some queries and keys, shape (batch, 1, queries, keys).

    Args:
        implementation: `sdpa` or `eager`.
        mask: The model's mask: None (causal) or of shape (batch, 1, tokens of the forward, all keys).
        dtype: The dtype of the hidden states.
        queries: The places of the queries in the forward, shape (batch, queries).
        keys: The keys.
        padding: Which queries pad a shorter row, shape (batch, queries); None where none does.
    """
    places, real, past, first = keys
    if mask is None:
        allowed = places[:, None, :] <= (queries + past)[:, :, None]
    else:
        rows = mask[:, 0].expand(len(queries), -1, -1).gather(1, queries[..., None].expand(-1, -1, mask.shape[-1]))
        mask = rows.gather(2, (places - first).clamp_min(0)[:, None].expand(-1, queries.shape[1], -1))
        allowed = mask if mask.dtype == torch.bool else torch.ones_like(mask, dtype=torch.bool)
    allowed = allowed if real is None else allowed & real[:, None]
    if padding is not None:
        # Queries that pad a shorter row see anything: their output is discarded, but it has to stay finite.
        allowed = allowed | padding[:, :, None]
    allowed = allowed[:, None]
    if mask is not None and mask.dtype != torch.bool:
        return torch.where(allowed, mask[:, None], torch.finfo(mask.dtype).min)
    return allowed if implementation == "sdpa" else additive_mask(allowed, dtype)


def only_row_mask(mask: Tensor, count: int, stored: PartialLayer | None, chosen: Selection | None) -> Tensor | None:
    """The model's mask cut to the processed and cached tokens of the only row; None where that does not say it all.

    Args:
        mask: The model's mask, shape (1, 1, queries, keys).
        count: The tokens of the forward.
        stored: The layer's cache before this call.
        chosen: The processed tokens; None for all.
    """
    if len(mask) > 1 or (chosen is not None and chosen.only is None):
        return None
    if stored is None or not stored.seen:
        keys = None if chosen is None else chosen.only
    elif chosen is None and not stored.is_sliding and stored.valid is None and stored.keys is not None:
        keys = stored.columns(1, mask.device, ahead=count)[0] if len(stored.keys) == 1 else None
    else:
        keys = None
    if keys is None:
        return None
    rows = mask if chosen is None else mask.index_select(-2, keys)
    return rows.index_select(-1, keys)


def check_implementation(layer: DecoderLayer, needs_mask: bool = True) -> str:
    """The attention implementation of a layer, such as `sdpa` or `eager`.

    Args:
        layer: The layer.
        needs_mask: False where plain causal attention over the shorter rows is right.

    Raises:
        ModelError: it is another one, which takes other masks, and one is needed, or a window of positions.
    """
    name, attention = implementation_of(layer), layer.sublayers.attention
    # Some attentions have a window of their own, or none; others take the model's.
    window = getattr(attention, "sliding_window", getattr(getattr(attention, "config", None), "sliding_window", None))
    if name not in WITH_MASKS and (needs_mask or window):
        needed = f"a sliding window of {window} positions" if window else "a mask (padding, rows of different lengths)"
        raise ModelError(
            f"tokens cannot be left out of an attention under {name}",
            [f"layer {layer.index} then needs {needed}, expected rows of equal lengths that are causal as they are"],
            'call `model.set_attn_implementation("sdpa")`, or run rows of different lengths one at a time',
        )
    return name


def implementation_of(layer: DecoderLayer) -> str:
    """The attention implementation that a layer is set to."""
    return str(getattr(getattr(layer.sublayers.attention, "config", None), "_attn_implementation", "sdpa"))


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a boolean mask into one that is added to the logits."""
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


def valid_mask(valid: Tensor | None, like: Tensor) -> Tensor:
    """A validity mask as a tensor, where None means that all entries are valid."""
    return torch.ones_like(like, dtype=torch.bool) if valid is None else valid
