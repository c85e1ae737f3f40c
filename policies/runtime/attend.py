"""The attention of a layer whose tokens take part in it in different ways.

Tokens that are seen only give keys and values, and no query. Tokens that attend alone give a query, and a key and a
value for themselves. Nothing else is computed for them: the attention runs for the tokens that ask, over the keys of
all tokens that are seen.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin

from ..caches.cache import cache_layer, find_cache, partial_layer, skip_all_tokens
from ..caches.partial import PartialLayer
from ..families.layers import DecoderLayer
from ..families.twins import AddedKeys, alone_twin, is_current, key_twin, take_keys
from .layer.roles import Roles
from .narrow import KeyPlaces, check_implementation, cut_arguments, fit_mask, valid_mask
from .selection import AllOrNone, Selection, remembered

Tokens: TypeAlias = Selection | AllOrNone
# From the normalised input, the layer's arguments, the tokens that ask and those that are seen, the attention's output.
Attend: TypeAlias = Callable[[Tensor, dict[str, Any], Tokens, Tokens], Tensor]


class Eviction(NamedTuple):
    """The tokens of a forward that leave the layer's cache after the prompt.

    Attributes:
        gone: Which tokens, shape (batch, tokens).
        counts: How many of each row; on the host.
        answers: The answer tokens of the forward, which do not see them, shape (batch, tokens); None without any.
    """

    gone: Tensor
    counts: list[int]
    answers: Tensor | None


class Split(NamedTuple):
    """Which tokens of a forward take part in an attention in another way than in the dense layer.

    Attributes:
        asking: The tokens that attend and are seen.
        seen_only: The tokens that give keys and values alone.
        alone: The tokens that attend, and are seen by themselves only.
        stored: The tokens that are seen, asking or not; the layer stores their keys and values.
        eviction: The tokens that leave the cache after the prompt; None where all stay.
    """

    asking: Tokens
    seen_only: Tokens
    alone: Tokens
    stored: Tokens
    eviction: Eviction | None = None


class SplitAttention:
    """The attention of one layer for tokens that take part in different ways.

    Args:
        layer: The layer.
        does: What each group of tokens does in it.
    """

    def __init__(self, layer: DecoderLayer, does: Roles) -> None:
        self._layer = layer
        self._stores = bool(does.stores)
        # Made here, because a compiled forward can make no module.
        self._twins = {name: self._make_twin(name) for name in ("seen_only", "alone") if getattr(does, name)}

    def add(self, hidden: Tensor, arguments: dict[str, Any], split: Split, attend: Attend) -> Tensor:
        """Add what the attention gives each token, x' = x + A(N1 x), shape (batch, tokens, width).

        Args:
            hidden: What enters the layer, shape (batch, tokens, width).
            arguments: What else the model calls it with.
            split: How its tokens take part.
            attend: The attention for the tokens that ask.
        """
        parts, middle = self._layer.sublayers, hidden
        keys = LayerKeys(self._layer, hidden, arguments, split, self._stores)
        if split.seen_only is not AllOrNone.NONE:
            normed = parts.attention_norm(cut(hidden, split.seen_only))
            own = cut_for(self._layer, arguments, split.seen_only)
            keys.give(take_keys(parts, self._twin("seen_only"), normed, own))
        if split.asking is not AllOrNone.NONE:
            part = cut(hidden, split.asking)
            own = keys.arguments(arguments, split.asking, keys)
            update = attend(parts.attention_norm(part), own, split.asking, split.stored)
            middle = put_back(middle, part + update, split.asking)
        else:
            keys.store_given()
        if split.alone is not AllOrNone.NONE:
            part = cut(hidden, split.alone)
            own = keys.arguments(arguments, split.alone, AddedKeys(keys.all))
            update = parts.run_attention(parts.attention_norm(part), own, self._twin("alone"))
            middle = put_back(middle, part + update, split.alone)
        keys.evict()
        return middle

    def _twin(self, name: str) -> nn.Module:
        """The twin of the attention for some tokens, made anew where a part of the attention was replaced."""
        if not is_current(self._twins[name], self._layer.sublayers.attention):
            self._twins[name] = self._make_twin(name)
        return self._twins[name]

    def _make_twin(self, name: str) -> nn.Module:
        attention = self._layer.sublayers.attention
        return key_twin(attention, self._layer.twins.query_parts) if name == "seen_only" else alone_twin(attention)


class LayerKeys:
    """The keys that a layer's tokens see in one forward; stands in the place of the cache, and stores what is to stay.

    Args:
        layer: The layer.
        hidden: What enters it, shape (batch, tokens, width).
        arguments: What else the model calls it with.
        split: How its tokens take part.
        stores: False where the layer never stores a key.

    Attributes:
        cache: The model's cache; None where the layer stores nothing, and without one.
        all: Keys and values of cached tokens and of this forward's, once these are stored; empty where there are none.
    """

    def __init__(
        self, layer: DecoderLayer, hidden: Tensor, arguments: dict[str, Any], split: Split, stores: bool
    ) -> None:
        self._layer, self._hidden, self._split = layer, hidden, split
        self._model_mask: Tensor | None = arguments.get("attention_mask")
        self.cache = find_cache(arguments)
        self._given: tuple[Tensor, Tensor] | None = None
        self.all: tuple[Tensor, ...] = ()
        if self.cache is not None and not stores:
            skip_all_tokens(self.cache, layer.slot, hidden.shape[1], hidden.device)
            self.cache = None
        self._partial = self._find_partial()
        self._keys = self._find_places()
        if self._partial is not None and split.stored is AllOrNone.NONE:
            self._skip(self._partial)

    def _find_partial(self) -> PartialLayer | None:
        """The layer's cache where it is to hold some tokens only; None where it holds all, and without a cache."""
        cache, slot = self.cache, self._layer.slot
        whole = self._split.stored is AllOrNone.ALL and self._split.eviction is None
        if cache is None or (whole and not isinstance(cache_layer(cache, slot), PartialLayer)):
            return None
        return partial_layer(cache, slot)

    def _find_places(self) -> KeyPlaces:
        (batch, count), device = self._hidden.shape[:2], self._hidden.device
        stored, partial = self._split.stored, self._partial
        if self.cache is not None and partial is None:
            dense: CacheLayerMixin = cache_layer(self.cache, self._layer.slot)
            length, offset = dense.get_mask_sizes(count)
            places = torch.arange(offset, offset + length, device=device).expand(batch, -1)
            return KeyPlaces(places, None, int(dense.get_seq_length()), offset)
        new, real = torch.arange(count, device=device).expand(batch, -1), None
        if isinstance(stored, Selection):
            new, real = stored.index, stored.valid
        elif stored is AllOrNone.NONE:
            new = new[:, :0]
        if partial is None or not partial.seen:
            return KeyPlaces(new, real, 0, 0)
        first, before = partial.get_mask_sizes(0)[1], partial.columns(batch, device)
        places = torch.cat([before, new + partial.seen], dim=1)
        real = torch.cat([valid_mask(partial.valid, before), valid_mask(real, new)], dim=1) & (places >= first)
        return KeyPlaces(places, real, partial.seen, first)

    def _skip(self, partial: PartialLayer) -> None:
        """See what the cache holds, and count the forward's tokens, of which nothing is stored."""
        if partial.keys is not None and partial.values is not None:
            self.all = partial.keys, partial.values
        partial.skip_tokens(self._hidden.shape[1])

    def arguments(self, arguments: dict[str, Any], tokens: Tokens, cache: Any) -> dict[str, Any]:
        """The arguments of the layer for some tokens that attend, with their mask and what stands for the cache."""
        own = cut_for(self._layer, arguments, tokens)
        return {**own, self._layer.sublayers.cache_name: cache, "attention_mask": self._mask(tokens)}

    def _mask(self, queries: Tokens) -> Tensor | None:
        """The mask from some tokens to the keys; None where plain causal attention is right."""
        stored, eviction = self._split.stored, self._split.eviction
        fresh = self._keys.past == 0 and (eviction is None or eviction.answers is None)
        plain = queries is AllOrNone.ALL or self._model_mask is None
        if fresh and plain and queries is stored and self._keys.real is None:
            return self._model_mask
        implementation = check_implementation(self._layer)
        shared = queries.masks if isinstance(queries, Selection) and fresh else []
        mask: Tensor | None = remembered(shared, self._model_mask, stored)
        if mask is None:
            mask = self._build_mask(implementation, queries)
            shared.append((self._model_mask, stored, mask))
        return mask

    def _build_mask(self, implementation: str, queries: Tokens) -> Tensor:
        (batch, count), eviction = self._hidden.shape[:2], self._split.eviction
        everything = torch.arange(count, device=self._hidden.device).expand(batch, -1)
        places = queries.index if isinstance(queries, Selection) else everything
        mask = fit_mask(implementation, self._model_mask, self._hidden.dtype, places, self._keys)
        if eviction is None or eviction.answers is None:
            return mask
        gone, asking = cut_flags(eviction.gone, self._split.stored), cut_flags(eviction.answers, queries)
        before = gone.new_zeros(batch, mask.shape[-1] - gone.shape[1])
        hidden = (asking[:, :, None] & torch.cat([before, gone], dim=1)[:, None])[:, None]
        return mask.masked_fill(hidden, False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min)

    def give(self, keys: tuple[Tensor, Tensor]) -> None:
        """Give the keys and values of the tokens that are seen only; `update` brings those of the tokens that ask."""
        count, tokens = self._hidden.shape[1], self._split.seen_only
        wholes = (part.new_zeros(*part.shape[:2], count, part.shape[-1]) for part in keys)
        first, second = (put_columns(whole, part, tokens) for whole, part in zip(wholes, keys, strict=True))
        self._given = first, second

    def store_given(self) -> None:
        """Store the keys and values that were given, where no token asks."""
        if self._given is not None:
            keys, values = (cut_columns(part, self._split.stored) for part in self._given)
            self._store(keys, values, self._layer.slot)

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the keys and values of the tokens that ask, between those that were given.

        Returns:
            Keys and values of all tokens that are seen, shape (batch, heads, tokens, width).
        """
        if self._given is not None:
            pairs = zip(self._given, (keys, values), strict=True)
            wholes = (put_columns(whole, part, self._split.asking) for whole, part in pairs)
            keys, values = (cut_columns(whole, self._split.stored) for whole in wholes)
        return self._store(keys, values, *args, **kwargs)

    def _store(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self._partial is not None:
            stored = self._split.stored
            index, valid = (stored.index, stored.valid) if isinstance(stored, Selection) else (None, None)
            self._partial.announce(self._hidden.shape[1], index, valid)
        if self.cache is not None:
            keys, values = self.cache.update(keys, values, *args, **kwargs)
        self.all = keys, values
        return keys, values

    def evict(self) -> None:
        """Remove from the cache what leaves it after the prompt."""
        if self._partial is not None and self._split.eviction is not None:
            self._partial.evict(self._split.eviction.gone, self._split.eviction.counts)


def cut(x: Tensor, tokens: Tokens) -> Tensor:
    """Some tokens of hidden states, shape (batch, kept, width)."""
    return tokens.cut(x, -2) if isinstance(tokens, Selection) else x


def cut_flags(flags: Tensor, tokens: Tokens) -> Tensor:
    """The flags of some tokens, shape (batch, kept)."""
    return tokens.cut(flags, -1) if isinstance(tokens, Selection) else flags


def cut_for(layer: DecoderLayer, arguments: dict[str, Any], tokens: Tokens) -> dict[str, Any]:
    """The arguments of a layer for some tokens."""
    return cut_arguments(layer, arguments, tokens) if isinstance(tokens, Selection) else arguments


def put_back(whole: Tensor, part: Tensor, tokens: Tokens) -> Tensor:
    """Hidden states with some of their tokens replaced."""
    return tokens.put_back(whole, part) if isinstance(tokens, Selection) else part


def cut_columns(keys: Tensor, tokens: Tokens) -> Tensor:
    """The keys of some tokens, shape (batch, heads, kept, width)."""
    return tokens.cut(keys.transpose(1, 2), -3).transpose(1, 2) if isinstance(tokens, Selection) else keys


def put_columns(whole: Tensor, part: Tensor, tokens: Tokens) -> Tensor:
    """Keys of shape (batch, heads, tokens, width), those of some tokens replaced; may write into `whole`."""
    if not isinstance(tokens, Selection):
        return part
    if tokens.only is not None:
        return whole.index_copy_(2, tokens.only, part)
    by_token = tokens.put_back(whole.transpose(1, 2).flatten(2), part.transpose(1, 2).flatten(2))
    return by_token.unflatten(2, (whole.shape[1], -1)).transpose(1, 2)
