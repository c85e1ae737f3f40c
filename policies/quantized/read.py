"""The bytes of the weights that a model reads under a policy."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import nn

from .tensors import stored_bytes

if TYPE_CHECKING:
    from ..runtime.layer.wrap import WrappedLayer


def read_bytes(model: nn.Module, wrapped: Sequence["WrappedLayer"]) -> int:
    """The bytes of all weights of a model but those that no token needs, each as it is stored; tied ones count once.

    An attention that makes keys alone counts whole, and so does a share of channels or heads that some tokens exceed.

    Args:
        model: The model.
        wrapped: Its layers that differ from keep.
    """
    names = {module: f"{name}." for name, module in model.named_modules()}
    unread = tuple(names[one.layer.module] + part + "." for one in wrapped for part in unread_parts(one))
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    read = {id(tensor): tensor for name, tensor in tensors if not name.startswith(unread)}
    return sum(map(stored_bytes, read.values())) - sum(map(unread_shares, wrapped))


def unread_parts(wrapped: "WrappedLayer") -> Iterator[str]:
    """The attributes of a layer that run for no token: a whole sublayer, with its norms."""
    does, sublayers = wrapped.roles, wrapped.layer.sublayers
    attends, feeds = bool(does.stores | does.alone), bool(does.fed)
    before_attention, before_ffn = sublayers.norm_names
    feeds_from_first = feeds and (before_ffn == before_attention or wrapped.choice.norm == "shared")
    if not attends:
        yield from sublayers.attention_names
        if before_attention is not None and not feeds_from_first:
            yield before_attention
    if not feeds:
        yield from sublayers.ffn_names
        if before_ffn is not None and not (attends and before_ffn == before_attention):
            yield before_ffn


def unread_shares(wrapped: "WrappedLayer") -> int:
    """The bytes of the channels and heads that a layer runs for no token, where it has a share of them."""
    does, total = wrapped.roles, 0
    if wrapped.narrow is not None and does.fed and does.fed <= does.narrow:
        total += wrapped.narrow.left_out_bytes
    if wrapped.heads is not None and does.asks and not does.all_heads:
        total += wrapped.heads.left_out_bytes
    return total
