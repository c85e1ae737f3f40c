"""The caches of layers that skip all tokens, and the cache layers of a model by their numbers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
    StaticLayer,
)

from ..errors import ModelError
from .partial import PER_ROW, PartialLayer
from .static import ShortStaticLayer, SkippedStaticLayer, SkippedStaticSlidingLayer, unfit

# The attributes in which cache layers of all kinds hold tensors: also quantised keys, recurrent states, indexer keys.
TENSORS = (
    *PER_ROW,
    "places",
    "_quantized_keys",
    "_quantized_values",
    "conv_states",
    "recurrent_states",
    "indexer_keys",
)


class SkippedRecurrentLayer(LinearAttentionLayer):
    """The cache of a recurrent layer that skips every token: it has no state, and so nothing to cut back."""

    is_croppable = True

    def crop(self, tokens_to_remove: int) -> None:
        """Nothing to remove."""


def find_cache(arguments: Mapping[str, Any]) -> Cache | None:
    """The cache among the arguments of a layer or a model; its name differs between families."""
    cache = arguments.get("past_key_values")
    if cache is None:
        cache = next((value for value in arguments.values() if isinstance(value, Cache)), None)
    return cache


def tokens_seen(cache: Cache) -> int:
    """Tokens that a cache has counted; for a static cache this waits for the device."""
    return int(cache.get_seq_length())


def cache_layer(cache: Cache, index: int) -> CacheLayerMixin:
    """The cache of one layer; a lazily grown cache gets it on first use."""
    while len(cache.layers) <= index and cache.layer_class_to_replicate is not None:
        cache.layers.append(cache.layer_class_to_replicate())
    layer: Any = cache.layers[index]
    return layer


def partial_layer(cache: Cache, index: int) -> PartialLayer:
    """The cache of one layer as a `PartialLayer`, which replaces a dynamic one on first use.

    Raises:
        ModelError: the cache is of a kind that cannot hold layers of different lengths, such as a static one.
    """
    layer = cache_layer(cache, index)
    if isinstance(layer, PartialLayer):
        return layer
    if isinstance(layer, ShortStaticLayer):
        raise unfit("some tokens take part in the attention of the layer in another way than others")
    if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
        raise ModelError(
            f"a {type(cache).__name__} cannot be used under this policy",
            [f"layer {index} processes some tokens only and has a {type(layer).__name__}, expected a dynamic one"],
            "leave out `cache_implementation`, or use a policy without token ratios and phases",
        )
    partial = cache.layers[index] = PartialLayer(layer)
    return partial


def shorter_layer(cache: Cache, index: int, device: torch.device) -> PartialLayer | ShortStaticLayer:
    """The cache of one layer that stores some tokens in full, and nothing of the others; see `partial_layer`.

    Raises:
        ModelError: the cache is of a kind that cannot hold layers of different lengths, such as a sliding static one.
    """
    layer = cache_layer(cache, index)
    if type(layer) is StaticLayer and not (layer.is_initialized and int(layer.get_seq_length())):
        layer = cache.layers[index] = ShortStaticLayer(layer, device)
    return layer if isinstance(layer, ShortStaticLayer) else partial_layer(cache, index)


def skip_all_tokens(cache: Cache, index: int, count: int, device: torch.device) -> None:
    """Count tokens in the cache of a layer that never stores any; works with every kind of cache.

    Raises:
        ModelError: the cache was filled without the policy.
    """
    layer: Any = cache_layer(cache, index)
    if not isinstance(layer, PartialLayer | SkippedStaticLayer | ShortStaticLayer):
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            if type(layer) is LinearAttentionLayer:
                layer = cache.layers[index] = SkippedRecurrentLayer(layer.number_of_states)
            # The model asks its last recurrent layer whether the prompt is over.
            layer.has_previous_state.update(dict.fromkeys(layer.has_previous_state, True))
            return
        layer = cache.layers[index] = counting_layer(layer, device)
    layer.skip_tokens(count)


def counting_layer(layer: CacheLayerMixin, device: torch.device) -> PartialLayer | SkippedStaticLayer:
    """A cache layer that only counts tokens, in place of one that stores them.

    Raises:
        ModelError: the layer is static and was filled without the policy.
    """
    if isinstance(layer, StaticLayer):
        if layer.is_initialized and int(layer.get_seq_length()):
            raise ModelError(
                "a static cache that was filled without a policy cannot be used under one",
                hint="start from an empty cache",
            )
        return (SkippedStaticSlidingLayer if layer.is_sliding else SkippedStaticLayer)(layer, device)
    return PartialLayer(layer)


def kv_cache_bytes(cache: Cache) -> int:
    """Bytes of all keys, values and recurrent states in a cache, and of what partial layers store beside them."""
    return sum(tensor_bytes(getattr(layer, name, None)) for layer in cache.layers for name in TENSORS)


def tensor_bytes(value: Any) -> int:
    """Bytes of a tensor, or of all tensors in a tuple, list or mapping."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        value = tuple(value.values())
    return sum(map(tensor_bytes, value)) if isinstance(value, tuple | list) else 0
