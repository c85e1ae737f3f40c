"""Where the heads of a layer store their keys and values in a cache: kept ones as ever, the others after the layers.

Every layer of a cache is cut back, repeated and reordered with it, so the further ones need no care of their own.
"""

import copy
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from ...caches.cache import cache_layer
from ...errors import ModelError

# The attribute of a cache that says in which of its layers the other heads of a layer store, by the layer's own number.
PLACES = "_skipsearch_heads"


class OtherPlace:
    """Stands in the place of a cache, and stores what a layer gives it in another place.

    Args:
        cache: The cache.
        place: The number of the place.
    """

    def __init__(self, cache: Cache, place: int) -> None:
        self._cache, self._place = cache, place

    def update(self, keys: Tensor, values: Tensor, slot: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store keys and values.

        Returns:
            All that are stored there, shape (batch, heads, tokens, width).
        """
        return self._cache.update(keys, values, self._place, *args, **kwargs)


def place_of_others(cache: Cache, slot: int, slots: int) -> int:
    """The number of the cache's layer in which the other heads of a layer store; made on first use.

    Args:
        cache: The cache.
        slot: The number of the layer's own.
        slots: The number of layers that the model's own cache has.

    Raises:
        ModelError: the cache was filled without the policy.
    """
    places: dict[int, int] = getattr(cache, PLACES, {})
    if slot not in places:
        own: Any = cache_layer(cache, slot)
        if int(own.get_seq_length()):
            raise filled_otherwise(slot, "no keys of the other heads")
        if cache.layer_class_to_replicate is not None:
            cache_layer(cache, slots - 1)
        cache.layers.append(copy.deepcopy(own))
        setattr(cache, PLACES, {**places, slot: len(cache.layers) - 1})
    return int(getattr(cache, PLACES)[slot])


def check_heads(cache: Cache, slot: int, expected: int) -> None:
    """Refuse a cache that holds keys of other heads than those that are to be stored.

    Args:
        cache: The cache.
        slot: The number of the layer in it.
        expected: The number of heads.

    Raises:
        ModelError: with both numbers.
    """
    keys = getattr(cache_layer(cache, slot), "keys", None)
    if isinstance(keys, Tensor) and keys.dim() == 4 and keys.shape[1] != expected:
        raise filled_otherwise(slot, f"keys of {keys.shape[1]} heads")


def filled_otherwise(slot: int, found: str) -> ModelError:
    """The error for a cache that was filled or allocated without the policy."""
    return ModelError(
        "a cache that was made without this policy cannot be used under a `head_ratio`",
        [f"layer {slot} has {found}, expected what the policy stores"],
        "start from an empty cache, and leave out `prefill_chunk_size` with a static one",
    )
