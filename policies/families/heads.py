"""The heads of an attention: where their weights are, and attentions over some of them.

The output of an attention is a sum over its heads, because the output projection multiplies the columns of each head by
what that head has read. Query heads that share a key head form a group, which is kept or left out as a whole: then its
keys and values need neither be computed nor stored. In multi-query and latent attention all heads share their keys, so
there each query head is a group of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..quantized.tensors import precise
from .channels import ChannelLayer, NarrowLinear, of_weights
from .layers import DecoderLayer, eval_mode
from .lora import plain_linear
from .model_errors import is_out_of_memory
from .twins import agree, twin_of

# Names of output projections, of projections that make queries, keys and values in one (one after the other, or a group
# after the other), and of parts that all heads share.
OUTPUTS: Final = ("o_proj", "out_proj", "dense", "c_proj")
BY_KIND, BY_GROUP = ("qkv_proj", "c_attn"), ("query_key_value",)
FOR_ALL_HEADS: Final = ("q_a_proj", "q_a_layernorm", "kv_a_proj_with_mqa", "kv_a_layernorm")
# Norms of each head's queries and keys, which have the same weights for all heads.
HEAD_NORMS: Final = ("q_norm", "k_norm", "q_layernorm", "k_layernorm")
UNKNOWN: Final = "its attention has projections of another build"


@dataclass(frozen=True)
class HeadLayer(ChannelLayer):
    """A linear layer of an attention, and where its groups of heads are; a group counts as a channel.

    Attributes:
        groups: The number of groups.
        widths: See `sizes`.
    """

    groups: int
    widths: tuple[int, ...]

    @property
    def channels(self) -> int:
        """The number of groups."""
        return self.groups

    @property
    def sizes(self) -> tuple[int, ...]:
        """By block, how many rows of it belong to each group, or columns where the layer reads what heads have read."""
        return self.widths


@dataclass(frozen=True)
class Heads:
    """The groups of heads of an attention.

    Attributes:
        groups: Their number.
        heads: The query heads of each.
        shares_keys: True where all of them have the same keys, or the same latent ones.
        layers: The linear layers that have rows or columns for each group; the one that reads them comes last.
        value_width: The numbers of a value.
        values: The layer whose last rows of each group make its values; None where all groups have the same.
    """

    groups: int
    heads: int
    shares_keys: bool
    layers: list[HeadLayer]
    value_width: int
    values: HeadLayer | None


class OtherCounts:
    """A configuration of an attention with other numbers of heads; every other key is that of the configuration.

    Args:
        config: The configuration.
        counts: The numbers by key.
    """

    def __init__(self, config: Any, counts: dict[str, int]) -> None:
        vars(self).update(counts, _config=config)

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__") or key == "_config":
            raise AttributeError(key)
        return getattr(self._config, key)


def find_heads(attention: nn.Module) -> Heads:
    """The groups of heads of an attention.

    Raises:
        LookupError: its projections are not known; the message is the reason, in words.
    """
    linear: dict[str, Any] = {
        name: found for name, part in attention.named_children() if (found := plain_linear(part)) is not None
    }
    read = next((name for name in OUTPUTS if name in linear), None)
    width = getattr(attention, "head_dim", getattr(attention, "head_size", getattr(attention, "qk_head_dim", None)))
    value_width = getattr(attention, "v_head_dim", width)
    check_parts(attention, {*linear, *FOR_ALL_HEADS, *HEAD_NORMS}, width)
    if read is None or not width or not value_width:
        raise LookupError(UNKNOWN)
    made = [name for name in linear if name != read and name not in FOR_ALL_HEADS]
    rows = {name: ChannelLayer(name, linear[name], 1).weight.shape[0] for name in made}
    total = ChannelLayer(read, linear[read], 0).channels // value_width
    keys, widths, values = arrangement(rows, total, width)
    groups = total if keys == 1 else keys
    layers = [HeadLayer(name, linear[name], len(sizes), groups, sizes) for name, sizes in widths.items()]
    layers.append(HeadLayer(read, linear[read], 0, groups, (total // groups * value_width,)))
    made_by = next((layer for layer in layers if layer.path == values), None)
    return Heads(groups, total // groups, keys == 1, layers, value_width, made_by)


def check_parts(attention: nn.Module, known: set[str], width: int | None) -> None:
    """Refuse an attention with weights that are neither those of projections nor the same for every head.

    Raises:
        LookupError: naming them.
    """
    for name, weight in attention.named_parameters():
        part = name.split(".")[0]
        if part not in known:
            kind = type(getattr(attention, part)).__name__
            raise LookupError(f"its attention has parts with weights that are no plain projections: {part} ({kind})")
        if part in HEAD_NORMS and (weight.numel() != width or name.count(".") > 1):
            raise LookupError(f"its {part} is not one norm that each head has alone")


def arrangement(rows: Mapping[str, int], heads: int, width: int) -> tuple[int, dict[str, tuple[int, ...]], str | None]:
    """How the rows of projections belong to groups of heads.

    Args:
        rows: The rows of each projection that makes queries, keys or values.
        heads: The number of query heads.
        width: The numbers of a key.

    Returns:
        How many heads of keys there are; by projection with rows of groups, how many rows of a group each of its
        blocks has; and the projection that makes the values of groups, None where all have the same.

    Raises:
        LookupError: the projections are not known.
    """
    names, fused = {*rows}, next(iter(rows), "")
    if names in ({"q_proj", "kv_b_proj"}, {"q_b_proj", "kv_b_proj"}):
        return 1, {name: (count // heads,) for name, count in rows.items()}, "kv_b_proj"
    if names == {"q_proj", "k_proj", "v_proj"}:
        keys, values = rows["k_proj"] // width, "v_proj"
        alone: dict[str, tuple[int, ...]] = {"q_proj": (rows["q_proj"] // heads,)}
        widths: dict[str, tuple[int, ...]] = {name: (count // max(keys, 1),) for name, count in rows.items()}
    elif names in ({name} for name in BY_KIND + BY_GROUP):
        keys, values, alone = (rows[fused] // width - heads) // 2, fused, {fused: (width,)}
        own = heads // max(keys, 1) * width
        widths = {fused: (own, width, width) if fused in BY_KIND else (own + 2 * width,)}
    else:
        raise LookupError(UNKNOWN)
    if keys < 1 or heads % keys:
        raise LookupError(UNKNOWN)
    return (1, alone, None) if keys == 1 else (keys, widths, values)


def narrow_attention(attention: nn.Module, heads: Heads, start: int, stop: int) -> nn.Module:
    """A twin of an attention over consecutive groups of its heads; it has no weights of its own."""
    twin = twin_of(attention, {layer.path: NarrowLinear(layer, start, stop) for layer in heads.layers})
    count = (stop - start) * heads.heads
    # Where all groups have the same values, these are of one head.
    keys = 1 if heads.values is None else stop - start
    counts = {
        "num_heads": count,
        "num_attention_heads": count,
        "num_key_value_heads": keys,
        "num_kv_heads": keys,
        "num_key_value_groups": count // keys,
        "split_size": count * heads.value_width,
    }
    vars(twin).update({name: counts[name] for name in counts.keys() & vars(attention).keys()})
    if heads.layers[0].path == "qkv_proj":
        # Such an attention reads there where its queries end.
        vars(twin)["config"] = OtherCounts(attention.config, {"num_attention_heads": count})
    return twin


@torch.no_grad()
def head_norms(heads: Heads) -> Tensor:
    """For each group the product of the norms of its values' rows and of its output columns, shape (groups,).

    The norms are Frobenius norms over all heads of the group. Values that all groups share count for none of them. What
    each group's values and outputs are for some input may rank groups in another way; this needs no input.
    """
    read, made = heads.layers[-1], heads.values
    columns = precise(read.weight).unflatten(1, (heads.groups, -1))
    product = torch.linalg.vector_norm(columns, dim=(0, 2))
    if made is None:
        return product
    first = sum(made.sizes[:-1]) * heads.groups
    rows = precise(made.weight)[first : first + made.sizes[-1] * heads.groups].unflatten(0, (heads.groups, -1))
    values = torch.linalg.vector_norm(rows[:, -heads.value_width :], dim=(1, 2))
    return product * values.to(product.device)


def why_not_fewer_heads(layer: DecoderLayer, ratio: float, divides: bool, reorders: bool) -> str | None:
    """The reason why the attention of a layer cannot run a share of its heads; None where it can.

    It can where its projections are known linear layers, and where on random input its groups of heads, each alone, add
    up to the whole.

    Args:
        layer: The layer.
        ratio: The share.
        divides: True where some tokens have all heads.
        reorders: True where the heads are put into another order.
    """
    if layer.kind != "attention":
        return "it has no attention between tokens, whose heads could be left out"
    try:
        heads = find_heads(layer.sublayers.attention)
    except LookupError as unknown:
        return str(unknown)
    found = [reason for one in heads.layers if (reason := of_weights(one, reorders)) is not None]
    if found:
        return found[0]
    if int(Fraction(str(ratio)) * heads.groups) == 0:
        return f"{ratio:g} of its {heads.groups} groups of heads is less than one; write `attention: skip` for none"
    if layer.call is not None and layer.call.arguments.get("alibi") is not None:
        return "each of its heads has biases of its own (ALiBi)"
    if divides and heads.shares_keys:
        return "all its heads have the same keys, which would be stored twice for the tokens that have all heads"
    return None if is_sum_of_heads(layer, heads) else "its attention is not the sum of its heads"


@torch.no_grad()
def is_sum_of_heads(layer: DecoderLayer, heads: Heads) -> bool:
    """True where the groups of heads, each alone, add up to what the attention computes on random input."""
    if layer.call is None:
        return False
    sublayers, weight = layer.sublayers, heads.layers[-1].weight
    x, arguments = moved(layer.call.x, weight), moved(layer.call.arguments, weight)
    try:
        with eval_mode(sublayers.attention):
            normed = sublayers.attention_norm(x)
            whole = sublayers.attend(normed, arguments).float()
            alone = [narrow_attention(sublayers.attention, heads, one, one + 1) for one in range(heads.groups)]
            total = sum((sublayers.attend(normed, arguments, part).float() for part in alone), torch.zeros_like(whole))
            return agree(total.to(x.dtype), whole.to(x.dtype))
    except Exception as cause:
        if is_out_of_memory(cause):
            raise
        # The forward of an attention of another build can raise anything; such an attention has no narrow twin.
        return False


def moved(value: Any, like: Tensor) -> Any:
    """Tensors, also those in a tuple or in a mapping, on the device and in the dtype of another tensor."""
    if isinstance(value, Tensor):
        return value.to(like.device, like.dtype) if value.is_floating_point() else value.to(like.device)
    if isinstance(value, tuple):
        return tuple(moved(one, like) for one in value)
    return {key: moved(one, like) for key, one in value.items()} if isinstance(value, Mapping) else value
