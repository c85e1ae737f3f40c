"""The attention of a layer in which image tokens see their neighbours in the picture and the text before them.

The layer's own attention makes queries, keys and values, and stores them. Its attention function is another one: image
tokens attend to gathered neighbours and to the text before them, all other tokens to all that the dense layer lets them
see. For an image token, logits are computed for the neighbours of the tokens of its block, see `neighbours`.
"""

import threading
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..families.layers import DecoderLayer
from ..families.twins import function_twin, is_current
from ..runtime.narrow import KeyPlaces, check_implementation, fit_mask
from ..runtime.watch import AttentionCall, last_recorded
from .neighbours import Neighbours

# The name of `attend_to_neighbours` in transformers' table of attention functions.
NEIGHBOURS: Final = "skipsearch_neighbours"
GATHERED: Final = 1 << 22  # numbers of gathered keys that are held at a time


@dataclass
class Running:
    """What the attention function needs beside its arguments.

    Attributes:
        neighbours: What each token sees.
        mask: The model's mask for all tokens; None where it is causal.
        implementation: `sdpa` or `eager`.
        calls: The inputs of the attention function, once it ran.
    """

    neighbours: Neighbours
    mask: Tensor | None
    implementation: str
    calls: list[AttentionCall] = field(default_factory=list)


_thread = threading.local()


class WindowedAttention:
    """The attention of one layer whose image tokens see through a window.

    Args:
        layer: The layer.
        attention: Its attention, or one over a share of its heads.
    """

    def __init__(self, layer: DecoderLayer, attention: torch.nn.Module) -> None:
        self._layer, self._attention = layer, attention
        self._twin = function_twin(attention, NEIGHBOURS)

    def run(self, normed: Tensor, arguments: dict[str, Any], neighbours: Neighbours) -> tuple[Tensor, AttentionCall]:
        """Run the attention for all tokens of a prompt.

        Args:
            normed: Its normalised input, shape (batch, tokens, width).
            arguments: What else the layer was called with; its cache holds no tokens yet.
            neighbours: What each token sees.

        Returns:
            What the attention adds, of the same shape as `normed`; and the inputs of its attention function.

        Raises:
            ModelError: the attention implementation takes other masks, or the attention another function.
        """
        if not is_current(self._twin, self._attention):
            self._twin = function_twin(self._attention, NEIGHBOURS)
        running = Running(neighbours, arguments.get("attention_mask"), check_implementation(self._layer))
        before = getattr(_thread, "running", None)
        _thread.running = running
        try:
            out = self._layer.sublayers.run_attention(normed, arguments, self._twin)
        finally:
            _thread.running = before
        return out, last_recorded(running.calls, self._layer.index)


def attend_to_neighbours(
    module: torch.nn.Module,
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
    """Let image tokens attend to their neighbours and all others to what the model lets them see.

    Args:
        module: The attention.
        query: Shape (batch, heads, tokens, width).
        key: Shape (batch, key heads, tokens or more, width); a static cache has empty columns after the tokens.
        value: Shape (batch, key heads, tokens or more, width of a value).
        attention_mask: The model's mask, which `Running` has too.
        scaling: What the logits are multiplied by; None for one over the root of the width.
        dropout: Share of the weights that is dropped in training.
        softcap: Bound of the logits.
        s_aux: A logit that takes part in the softmax and has no value, shape (heads,).

    Returns:
        Shape (batch, tokens, heads, width of a value), and no weights.
    """
    running: Running = _thread.running
    scale, count = query.shape[-1] ** -0.5 if scaling is None else scaling, query.shape[2]
    running.calls.append(AttentionCall(query, key, attention_mask, scale, softcap))
    key, value, around = key[:, :, :count], value[:, :, :count], running.neighbours
    weigh = Weights(scale, softcap, s_aux, dropout if module.training else 0.0)
    by_token = query.transpose(1, 2).flatten(2)

    def queries(tokens: Any) -> Tensor:
        part: Tensor = tokens.cut(by_token, -2)
        return part.unflatten(2, (query.shape[1], -1)).transpose(1, 2)

    out = query.new_zeros(*by_token.shape[:2], query.shape[1] * value.shape[-1])
    if around.others.index.shape[1]:
        update = of_others(queries(around.others), key, value, running, weigh)
        out = around.others.put_back(out, update.transpose(1, 2).flatten(2))
    update = of_images(queries(around.images), key, value, around, weigh)
    out = around.images.put_back(out, update.transpose(1, 2).flatten(2))
    return out.unflatten(2, (query.shape[1], -1)), None


@dataclass(frozen=True)
class Weights:
    """How logits become weights; see `attend_to_neighbours`."""

    scale: float
    softcap: float | None
    sinks: Tensor | None
    dropout: float

    @property
    def plain(self) -> bool:
        """True where torch's own attention computes the same."""
        return self.softcap is None and self.sinks is None

    def of(self, logits: Tensor, seen: Tensor) -> Tensor:
        """The weights of keys, of the logits' shape and dtype.

        Args:
            logits: Shape (batch, heads, queries, keys), not scaled.
            seen: Which keys count, or what is added to the logits, shape (batch, 1, queries, keys).
        """
        found = (logits * self.scale).float()
        if self.softcap is not None:
            found = torch.tanh(found / self.softcap) * self.softcap
        found = found.masked_fill(~seen, float("-inf")) if seen.dtype == torch.bool else found + seen.float()
        if self.sinks is not None:
            sinks = self.sinks.float().view(1, -1, 1, 1).expand(*found.shape[:3], 1)
            found = torch.cat([found, sinks], dim=-1)
        weights = functional.dropout(found.softmax(-1), self.dropout)
        return weights[..., : logits.shape[-1]].to(logits.dtype)


def of_others(query: Tensor, key: Tensor, value: Tensor, running: Running, weigh: Weights) -> Tensor:
    """The attention of the tokens that are not of an image, shape (batch, heads, tokens, width of a value)."""
    batch, _, count, _ = key.shape
    others = running.neighbours.others
    places = KeyPlaces(torch.arange(count, device=key.device).expand(batch, -1), None, 0, 0)
    mask = fit_mask(running.implementation, running.mask, query.dtype, others.index, places)
    if weigh.plain and running.implementation == "sdpa":
        grouped = {"enable_gqa": query.shape[1] != key.shape[1]}
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=weigh.dropout, scale=weigh.scale, **grouped
        )
    rows = by_group(query, key)
    logits = (rows @ key.transpose(-1, -2)).view(*query.shape[:3], -1)
    return (by_group(weigh.of(logits, mask), key) @ value).view(*query.shape[:3], -1)


def of_images(query: Tensor, key: Tensor, value: Tensor, around: Neighbours, weigh: Weights) -> Tensor:
    """The attention of the image tokens, shape (batch, heads, tokens, width of a value).

    Keys are gathered for some blocks at a time, so that they stay in a processor's cache.
    """
    (batch, groups, _, width), (_, blocks, keys) = key.shape, around.places.shape
    step = max(1, GATHERED // (batch * groups * keys * width))
    cuts = [slice(start, start + step) for start in range(0, blocks, step)]
    out = torch.cat([of_blocks(query, key, value, around, cut, weigh) for cut in cuts], dim=2)
    return gathered(out, around.slots[:, None])[:, :, 0]


def of_blocks(query: Tensor, key: Tensor, value: Tensor, around: Neighbours, cut: slice, weigh: Weights) -> Tensor:
    """The attention of some blocks of image tokens, shape (batch, heads, blocks * queries, width of a value)."""
    places, asking = around.places[:, cut], around.queries[:, cut]
    (batch, heads), groups, (_, blocks, size) = query.shape[:2], key.shape[1], asking.shape
    texts = around.text.shape[1]
    # Heads that share their keys are rows of one product; (batch, groups, blocks, sharing * queries, width).
    rows = gathered(query, asking).unflatten(1, (groups, -1)).transpose(2, 3).flatten(3, 4)
    near, text = gathered(key, places), gathered(key, around.text[:, None])[:, :, 0]
    of_text = (rows.flatten(2, 3) @ text.transpose(-1, -2)).view(*rows.shape[:4], texts)
    logits = torch.cat([rows @ near.transpose(-1, -2), of_text], dim=-1)
    # From (batch, groups, blocks, sharing * queries, keys) to (batch, heads, blocks * queries, keys), and back.
    split = logits.unflatten(3, (heads // groups, size)).transpose(2, 3)
    seen = torch.cat([around.seen[:, cut], around.text_seen[:, cut]], dim=-1).flatten(1, 2)[:, None]
    weights = weigh.of(split.reshape(batch, heads, blocks * size, -1), seen)
    weights = weights.view(split.shape).transpose(2, 3).flatten(3, 4)
    near, text = gathered(value, places), gathered(value, around.text[:, None])[:, :, 0]
    out = weights[..., : places.shape[2]] @ near
    out = out + (weights[..., places.shape[2] :].flatten(2, 3) @ text).view(out.shape)
    return out.unflatten(3, (heads // groups, size)).transpose(2, 3).reshape(batch, heads, blocks * size, -1)


def by_group(rows: Tensor, key: Tensor) -> Tensor:
    """Rows of the heads that share their keys below each other, shape (batch, key heads, sharing * queries, width)."""
    batch, heads, count, width = rows.shape
    return rows.reshape(batch, key.shape[1], heads // key.shape[1] * count, width)


def gathered(keys: Tensor, places: Tensor) -> Tensor:
    """The keys at some places, shape (batch, heads, blocks, keys, width).

    Args:
        keys: Shape (batch, heads, all, width).
        places: Shape (batch, blocks, keys).
    """
    if len(keys) == 1:
        return keys.index_select(2, places.flatten()).unflatten(2, places.shape[1:])
    rows = torch.arange(len(keys), device=keys.device).view(-1, 1, 1, 1)
    heads = torch.arange(keys.shape[1], device=keys.device).view(1, -1, 1, 1)
    return keys[rows, heads, places[:, None]]


ALL_ATTENTION_FUNCTIONS.register(NEIGHBOURS, attend_to_neighbours)
