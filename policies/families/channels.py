"""The linear layers of an FFN, their axis of channels, and narrow layers over a part of the channels.

A dense FFN is a sum over its channels: channel c adds w_c act(g_c x) u_c x, where w_c is a column of the last matrix,
and g_c and u_c are rows of the first ones. So a part of the channels computes exactly its part of the sum. In a mixture
of experts this holds of each expert, and of the expert that all tokens share.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..quantized.tensors import first_address, plain_tensors, why_not_divided
from .experts import ExpertMatrix, NarrowExperts, fused_experts
from .layers import eval_mode
from .lora import LoraLinear, plain_linear
from .model_errors import is_out_of_memory
from .sublayers import Sublayers
from .twins import agree, twin_of

# The names of linear layers that make channels, that make gates and values in one, and that read channels.
MAKE: Final = ("gate_proj", "up_proj", "w1", "w3", "c_fc", "fc_in", "fc1", "dense_h_to_4h")
MAKE_BOTH: Final = ("gate_up_proj", "input_linear")
READ: Final = ("down_proj", "w2", "c_proj", "fc_out", "fc2", "dense_4h_to_h", "output_linear")
BLOCKS: Final = {**dict.fromkeys(MAKE, 1), **dict.fromkeys(MAKE_BOTH, 2), **dict.fromkeys(READ, 0)}
# The first channel of a part, and one past its last.
Ends: TypeAlias = tuple[int, int]


class ChannelAxis(NamedTuple):
    """A parameter of a linear layer that has an axis of channels.

    Attributes:
        parameter: The parameter.
        key: Its name in the module that holds the FFN's parts.
        expert: The number of its expert; None where the parameter belongs to one alone.
        axis: The axis, in the part of the parameter that belongs to the expert.
    """

    parameter: Tensor
    key: str
    expert: int | None
    axis: int

    def of(self, tensor: Tensor) -> Tensor:
        """The expert's part of a tensor that is like the parameter, as a view."""
        return tensor if self.expert is None else tensor[self.expert]


@dataclass(frozen=True)
class ChannelLayer:
    """A linear layer of an FFN, and where its channels are.

    Attributes:
        path: Its name in the module that holds the FFN's parts; of an expert's matrix, the name of the experts.
        linear: The layer, or what stands in its place.
        blocks: How many rows belong to a channel: 1, or 2 where one layer makes gates and values; 0 where it reads
            channels.
    """

    path: str
    linear: Any
    blocks: int

    @property
    def module(self) -> nn.Module:
        """The module under the path."""
        module: nn.Module = self.linear
        if isinstance(self.linear, ExpertMatrix):
            module = self.linear.experts
        elif isinstance(self.linear, LoraLinear):
            module = self.linear.module
        return module

    @property
    def is_turned(self) -> bool:
        """True where its matrix is stored with inputs as rows."""
        return isinstance(self.linear.base if isinstance(self.linear, LoraLinear) else self.linear, Conv1D)

    @property
    def weight(self) -> Tensor:
        """Its matrix as a view, shape (outputs, inputs)."""
        weight: Tensor = self.linear.weight
        return weight.T if self.is_turned else weight

    @property
    def channels(self) -> int:
        """The number of channels."""
        return self.weight.shape[0] // self.blocks if self.blocks else self.weight.shape[1]

    @property
    def sizes(self) -> tuple[int, ...]:
        """By block, how many rows of it belong to each channel, or columns where the layer reads channels."""
        return (1,) * max(self.blocks, 1)

    def places(self, start: int, stop: int) -> list[slice]:
        """The rows or columns of some channels, by block, and after them those that belong to no channel."""
        found, first = [], 0
        for size in self.sizes:
            found.append(slice(first + start * size, first + stop * size))
            first += size * self.channels
        whole = self.weight.shape[0 if self.blocks else 1]
        return found if first == whole else [*found, slice(first, whole)]

    def axes(self) -> Iterator[ChannelAxis]:
        """Its parameters that have an axis of channels."""
        rows, path = int(self.is_turned), self.path
        axis = rows if self.blocks else 1 - rows
        if isinstance(self.linear, ExpertMatrix):
            yield ChannelAxis(self.linear.parameter, f"{path}.{self.linear.name}", self.linear.expert, axis)
            return
        if isinstance(self.linear, LoraLinear):
            for name, matrix in self.linear.matrices("B" if self.blocks else "A"):
                yield ChannelAxis(matrix, f"{path}.{name}", None, 0 if self.blocks else 1)
            path = f"{path}.base_layer"
        yield ChannelAxis(self.linear.weight, f"{path}.weight", None, axis)
        if self.blocks and self.linear.bias is not None:
            yield ChannelAxis(self.linear.bias, f"{path}.bias", None, 0)


# The layers that have the same channels: those of a dense FFN, or of one expert.
Group: TypeAlias = list[ChannelLayer]


class NarrowLinear(nn.Module):
    """A linear layer over consecutive channels of another one; it has no weights of its own.

    Args:
        whole: The other layer.
        start: The first channel.
        stop: One past the last channel. The bias of a layer that reads channels belongs to the part with channel 0.
    """

    def __init__(self, whole: ChannelLayer, start: int, stop: int) -> None:
        super().__init__()
        self.whole, self.start, self.stop = whole, start, stop

    def forward(self, x: Tensor) -> Tensor:
        """The channels of `x`, or the output of channels that `x` has; shape (batch, tokens, outputs)."""
        linear, places = self.whole.linear, self.whole.places(self.start, self.stop)
        own = places if self.whole.blocks else places[:1]
        if not self.whole.blocks:
            out = functional.linear(x, self.views()[0], None if self.start else linear.bias)
        else:
            parts = [
                functional.linear(x, view, None if linear.bias is None else linear.bias[rows])
                for view, rows in zip(self.views(), own, strict=True)
            ]
            out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        if not isinstance(linear, LoraLinear):
            return out
        added = linear.update(x, None, own) if self.whole.blocks else linear.update(x, own, None)
        return out if added is None else (out + added).to(out.dtype)

    def views(self) -> list[Tensor]:
        """The parts of the other layer's matrix that it reads, as views."""
        # Looked up at each call, because a model may move to another device or dtype.
        weight, places = self.whole.weight, self.whole.places(self.start, self.stop)
        return [weight[own] if self.whole.blocks else weight[:, own] for own in places]


def channel_groups(sublayers: Sublayers) -> list[Group]:
    """The layers of an FFN that have a known place in it: one group, or one for each expert and for the shared one."""
    groups = [linear_layers("", sublayers.ffn_children)]
    for name, child in sublayers.ffn_children.items():
        if fused_experts(child):
            experts = range(len(child.get_parameter("down_proj")))
            names = ("gate_up_proj", "down_proj")
            groups += [[ChannelLayer(name, ExpertMatrix(child, one, e), BLOCKS[one]) for one in names] for e in experts]
        else:
            groups.append(linear_layers(f"{name}.", dict(child.named_children())))
    return [group for group in groups if group]


def linear_layers(prefix: str, children: dict[str, nn.Module]) -> Group:
    """The linear layers among some modules that make or read channels."""
    known = {name: child for name, child in children.items() if name in BLOCKS}
    plain = {name: linear for name, child in known.items() if (linear := plain_linear(child)) is not None}
    return [ChannelLayer(prefix + name, linear, BLOCKS[name]) for name, linear in plain.items()]


def narrow_parts(sublayers: Sublayers, groups: Sequence[Group], ends: Sequence[Ends]) -> dict[str, nn.Module]:
    """Modules that run the FFN's own forward over some channels, by the names of the FFN's modules in the layer.

    Args:
        sublayers: The sublayers of the layer.
        groups: The layers of its FFN.
        ends: The channels of each group that run.
    """
    parts: dict[str, dict[str, nn.Module]] = {}
    experts: dict[str, list[Ends]] = {}
    for group, (start, stop) in zip(groups, ends, strict=True):
        if isinstance(group[0].linear, ExpertMatrix):
            experts.setdefault(group[0].path, []).append((start, stop))
            continue
        for layer in group:
            owner, _, name = layer.path.rpartition(".")
            parts.setdefault(owner, {})[name] = NarrowLinear(layer, start, stop)
    holder, narrow = sublayers.ffn_holder, parts.pop("", {})
    narrow |= {owner: twin_of(sublayers.ffn_parent.get_submodule(owner), own) for owner, own in parts.items()}
    narrow |= {name: NarrowExperts(sublayers.ffn_parent.get_submodule(name), own) for name, own in experts.items()}
    return narrow if holder is None else {sublayers.ffn_names[0]: twin_of(holder, narrow)}


def why_not_narrow(sublayers: Sublayers, reorders: bool) -> str | None:
    """The reason why an FFN cannot run a share of its channels; None where it can.

    It can where its parts are known linear layers, and where on random input the sum of two parts is the whole.

    Args:
        sublayers: The sublayers of the layer.
        reorders: True where the channels are put into another order.
    """
    groups, children = channel_groups(sublayers), sublayers.ffn_children
    reason = of_experts(children) if any("expert" in name for name in children) else of_linear_layers(children)
    if reason is not None:
        return reason
    for group in groups:
        if sorted(layer.blocks for layer in group) not in ([0, 1], [0, 1, 1], [0, 2]):
            return f"its FFN has other linear layers: {', '.join(layer.path for layer in group)}"
        found = [reason for layer in group if (reason := of_weights(layer, reorders)) is not None]
        if found:
            return found[0]
        if len({layer.channels for layer in group}) > 1:
            return "its FFN is not the sum of its channels"
    return None if groups and is_sum_of_parts(sublayers, groups) else "its FFN is not the sum of its channels"


def of_linear_layers(children: dict[str, nn.Module]) -> str | None:
    """The reason why a dense FFN cannot be narrow that its modules show."""
    known = {layer.path for layer in linear_layers("", children)}
    others = {name for name, child in children.items() if name in BLOCKS or [*child.parameters()]} - known
    kinds = [f"{name} ({type(children[name]).__name__})" for name in sorted(others)]
    return f"its FFN has parts with weights that are no plain linear layers: {', '.join(kinds)}" if kinds else None


def of_experts(children: dict[str, nn.Module]) -> str | None:
    """The reason why a mixture of experts cannot be narrow that its modules show."""
    for name, child in children.items():
        shared = dict(child.named_children())
        if "expert" not in name or fused_experts(child) or plain_linear(child) is not None:
            # A linear layer by that name says how much of the shared expert counts.
            continue
        if not linear_layers("", shared) or of_linear_layers(shared) is not None:
            return f"its mixture of experts has a part of another build: {name} ({type(child).__name__})"
    return None


def of_weights(layer: ChannelLayer, reorders: bool) -> str | None:
    """The reason why a part of the weights of a layer cannot run, or cannot be put into another order."""
    for axis in layer.axes():
        weight = axis.parameter
        if (found := why_not_divided(weight, axis.axis)) is not None:
            return f"{layer.path} is quantised or of another build: {found}"
        if weight.is_meta:
            return f"{layer.path} is offloaded: its weights are loaded anew in every forward"
        if reorders and weight.is_inference():
            return f"{layer.path} was made in inference mode, and its order cannot be changed outside it"
        if reorders and weight.device.type == "cpu" and any(part.is_shared() for part in plain_tensors(weight)):
            return f"{layer.path} is in memory that processes share, where its order cannot be changed"
    return None


@torch.no_grad()
def is_sum_of_parts(sublayers: Sublayers, groups: Sequence[Group]) -> bool:
    """True where two parts of the channels of an FFN add up to what the FFN computes, on random input."""
    x = random_tokens(groups)
    channels = [group[0].channels for group in groups]
    halves = [[(0, count // 2) for count in channels], [(count // 2, count) for count in channels]]
    try:
        with eval_mode(sublayers.ffn_parent):
            found = [sublayers.run_ffn_modules(x, narrow_parts(sublayers, groups, half)) for half in halves]
            return agree(found[0] + found[1], sublayers.run_ffn_modules(x))
    except Exception as cause:
        if is_out_of_memory(cause):
            raise
        # The forward of an FFN of another build can raise anything; such an FFN has no narrow twin.
        return False


def random_tokens(groups: Sequence[Group]) -> Tensor:
    """Random input of an FFN: eight tokens, shape (1, 8, width); leaves the global random state alone."""
    weight = next(layer.weight for layer in groups[0] if layer.blocks)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 8, weight.shape[1], generator=generator).to(device=weight.device, dtype=weight.dtype)


def shared_weight(model: PreTrainedModel, groups: Sequence[Group]) -> str | None:
    """The name of a parameter with channels that another part of the model has too; None where there is none."""
    uses = Counter(first_address(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    axes = (axis for group in groups for layer in group for axis in layer.axes())
    return next((axis.key for axis in axes if uses[first_address(axis.parameter)] > 1), None)
