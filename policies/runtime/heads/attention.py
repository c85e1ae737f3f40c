"""The attention of a layer with a share of its heads: the kept heads serve all tokens, the others some of them.

The output of the attention is the sum of both, before the norm that may follow it. The other heads run as an attention
of their own over the tokens that all heads serve: these see each other alone there. They store their keys and values in
a further layer of the model's cache, so a cache has what each head serves, and nothing else.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from ...caches.cache import find_cache, shorter_layer
from ...families.anatomy import first
from ...families.layers import DecoderLayer
from ...families.narrow_heads import NarrowHeads
from ..attend import Tokens, cut, put_back
from ..calls import ForwardCall
from ..layer.roles import Roles
from ..narrow import narrow
from ..requests import is_paged, refusal
from ..selection import AllOrNone
from .places import OtherPlace, check_heads, place_of_others


class HeadAttention:
    """What runs in the place of the attention of one layer.

    Args:
        layer: The layer.
        heads: Its heads, in two parts.
        does: What each group of tokens does in it.

    Attributes:
        slots: The number of layers that the model's own cache has.
    """

    slots: int

    def __init__(self, layer: DecoderLayer, heads: NarrowHeads, does: Roles) -> None:
        self._layer, self._heads = layer, heads
        self._divides = bool(does.all_heads)

    def of_forward(
        self, hidden: Tensor, arguments: dict[str, Any], attended: Tokens, all_heads: Tokens, call: ForwardCall | None
    ) -> Callable[..., Any]:
        """What takes the attention's place in one forward.

        Args:
            hidden: What enters the layer, shape (batch, tokens, width); it may be cut.
            arguments: What else the model calls it with.
            attended: The tokens that the kept heads serve.
            all_heads: The tokens of `attended` that the other heads serve too.
            call: The running forward.

        Raises:
            ModelError: a projection was replaced since the policy was applied, the cache was filled without it, or its
                pages are shared by all layers (continuous batching).
        """
        if is_paged(arguments):
            reason = "its pages have room for all heads in every layer"
            raise refusal("continuous batching", reason, "use `generate`, or leave `head_ratio` out")
        self._heads.check_current()
        cache = find_cache(arguments)
        if cache is not None:
            check_heads(cache, self._layer.slot, self._heads.stored)
        if not self._divides or call is None:
            return self._heads.kept
        place = None if cache is None else place_of_others(cache, self._layer.slot, self.slots)
        count = call.count(hidden)
        if all_heads is AllOrNone.NONE:
            if cache is not None and place is not None:
                shorter_layer(cache, place, hidden.device).skip_tokens(count)
            return self._heads.kept
        if cache is not None or all_heads is not AllOrNone.ALL:
            arguments = narrow(self._layer, hidden, arguments, cache, all_heads, call, place)
        if cache is not None and place is not None:
            arguments = {**arguments, self._layer.sublayers.cache_name: OtherPlace(cache, place)}
        own = self._layer.sublayers.attention_arguments(arguments)
        return partial(self._sum, attended=attended, all_heads=all_heads, count=count, own=own)

    def _sum(
        self,
        normed: Tensor,
        *,
        attended: Tokens,
        all_heads: Tokens,
        count: int,
        own: dict[str, Any],
        **arguments: Any,
    ) -> Tensor:
        """The output of all heads, shape (batch, tokens, width).

        Args:
            normed: The normalised input of the tokens that attend, shape (batch, tokens, width).
            attended: These tokens.
            all_heads: The tokens of `attended` that the other heads serve too.
            count: The tokens of the forward.
            own: The arguments of the other heads.
            arguments: The arguments of the kept heads.
        """
        out = first(self._heads.kept(normed, **arguments))
        if all_heads is attended:
            return out + first(self._heads.others(normed, **own))
        others = first(self._heads.others(cut(in_all(normed, attended, count), all_heads), **own))
        whole = in_all(out, attended, count)
        return cut(put_back(whole, cut(whole, all_heads) + others, all_heads), attended)


def in_all(part: Tensor, tokens: Tokens, count: int) -> Tensor:
    """The states of some tokens among those of all tokens of a forward, where the others are zeros.

    Args:
        part: Shape (batch, kept, width).
        tokens: The tokens.
        count: The tokens of the forward.

    Returns:
        Shape (batch, count, width).
    """
    return part if tokens is AllOrNone.ALL else put_back(part.new_zeros(len(part), count, part.shape[-1]), part, tokens)
