"""A share of an FFN's channels: the best ones come first in memory, and a twin of the FFN runs over views of them.

The channels are put into the order of a ranking in place, so that no weight is in memory twice. The whole FFN computes
the same in every order, up to rounding, so tokens out of the choice's scope still go through the family's own module.
Removing the policy restores the order, and with it every bit. A share of an attention's heads works alike.
"""

import gc
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from ..choice import Ranking
from ..errors import ModelError, PolicyError
from ..quantized.tensors import precise, with_axis
from .channels import ChannelAxis, Group, channel_groups, narrow_parts
from .lora import LoraLinear
from .sublayers import Sublayers

# By weight, what runs a part of it. One that changes its order would change what the others compute.
_users: WeakIdKeyDictionary = WeakIdKeyDictionary()


class NarrowSublayer(ABC):
    """A share of a sublayer: of the channels of its FFN, or of the heads of its attention, which count as channels.

    Args:
        groups: The linear layers with these channels, which can be narrow.
        ratio: The share: the trunc(ratio * channels) best channels run, of all groups together.
        ranking: How channels are ranked; see `choice.WidthSelection`.

    Attributes:
        scores: By which `energy` ranks the channels of all groups, one after the other, shape (channels,); set before
            it is installed.

    Raises:
        PolicyError: another policy runs a part of the same weights, and one of the two changes their order.
    """

    noun = "channels"
    scores: Tensor | None = None

    def __init__(self, groups: Sequence[Group], ratio: float, ranking: Ranking) -> None:
        self.ranking = ranking
        # Exact, as the ratio is written.
        self._ratio = Fraction(str(ratio))
        self._groups = groups
        self._modules = {layer.path: layer.module for group in self._groups for layer in group}
        self._adapters = {
            layer.path: (layer.linear, layer.linear.adapters)
            for group in self._groups
            for layer in group
            if isinstance(layer.linear, LoraLinear)
        }
        self._best: list[Tensor] = []
        self._orders: list[Tensor] = []
        self._hooks: list[Any] = []
        if self._is_in_the_way():
            # A model that was dropped with its policy is only gone once its cycles are collected.
            gc.collect()
        if self._is_in_the_way():
            raise PolicyError(
                f"another policy runs a share of the {self.noun} of the same weights",
                [f"{self._where()} belongs to a second model over the same tensors, such as a draft"],
                "remove the other policy first, as in `applied_policy(draft).remove()`, or rank by `first` in both",
            )

    def _is_in_the_way(self) -> bool:
        """True where another policy runs a part of the same weights, and one of the two changes their order."""
        users = {user for axis, *_ in self._axes() for user in _users.get(axis.parameter, ())}
        return any(self.ranking != "first" or user.ranking != "first" for user in users)

    @property
    @abstractmethod
    def parent(self) -> nn.Module:
        """The module that holds the linear layers."""

    @abstractmethod
    def best(self) -> list[Tensor]:
        """The channels that run, ascending, for each group; by the weights that the model has now."""

    def rank(self) -> None:
        """Choose the channels that run, once for all; call it before trained weights are put into the model."""
        self._best = self.best()

    @property
    def _kept(self) -> list[int]:
        """How many channels of each group run."""
        return [len(channels) for channels in self._best]

    @property
    def left_out_bytes(self) -> int:
        """The bytes of the weights that belong to the channels which do not run, as they are stored."""
        total = 0
        for axis, group, sizes in self._axes():
            out = self._groups[group][0].channels - self._kept[group]
            for part in with_axis(axis.of(axis.parameter), axis.axis):
                total += out * sum(sizes) * part.element_size() * part.numel() // part.shape[axis.axis]
        return total

    def check_current(self) -> None:
        """Refuse to go on where linear layers, or adapters in them, were replaced since the policy was applied.

        Raises:
            ModelError: naming them.
        """
        parent = self.parent
        replaced = [path for path, module in self._modules.items() if parent.get_submodule(path) is not module]
        replaced += [path for path, (linear, names) in self._adapters.items() if linear.adapters != names]
        if replaced:
            raise ModelError(
                f"linear layers were replaced under a policy that runs a share of their {self.noun}",
                [f"{self._where()}: {', '.join(replaced)} is another module than when the policy was applied"],
                "put the layers back, remove the policy, replace or quantise them, and apply the policy again",
            )

    def install(self) -> None:
        """Put the best channels first."""
        for axis, *_ in self._axes():
            _users.setdefault(axis.parameter, WeakSet()).add(self)
        if self.ranking == "first":
            return
        self._orders = [
            first_of(channels, group[0].channels) for channels, group in zip(self._best, self._groups, strict=True)
        ]
        self._move(self._orders)
        self._hooks = [
            # A partial function, because torch sets an attribute of the hook.
            self.parent.register_state_dict_post_hook(partial(self._restore_saved)),
            self.parent.register_load_state_dict_pre_hook(partial(self._order_loaded)),
        ]

    def uninstall(self) -> None:
        """Put the channels back into their own order."""
        self._move(self._inverse())
        self._orders = []
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def release(self) -> None:
        """Let other policies have the weights."""
        for axis, *_ in self._axes():
            _users.get(axis.parameter, WeakSet()).discard(self)

    def _axes(self) -> Iterator[tuple[ChannelAxis, int, tuple[int, ...]]]:
        """Every axis of channels, the number of its group, and the sizes of a channel in its blocks."""
        for number, group in enumerate(self._groups):
            for layer in group:
                for axis in layer.axes():
                    yield axis, number, layer.sizes

    def _where(self) -> str:
        return f"the {type(self.parent).__name__} with {', '.join(self._modules)}"

    def _inverse(self) -> list[Tensor]:
        return [order.argsort() for order in self._orders]

    @torch.no_grad()
    def _move(self, orders: Sequence[Tensor]) -> None:
        """Put channels into an order, in place, so that other references to the tensors stay valid."""
        for axis, group, sizes in self._axes() if orders else ():
            for part in with_axis(axis.of(axis.parameter.data), axis.axis):
                part.copy_(reordered(part, orders[group], axis.axis, sizes))

    def _restore_saved(self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        """Save the weights in their own order: a hook of `state_dict`."""
        self._reorder(state, prefix, self._inverse())

    def _order_loaded(self, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        """Load weights that are in their own order: a hook of `load_state_dict`."""
        self._reorder(state, prefix, self._orders)

    def _reorder(self, state: dict[str, Any], prefix: str, orders: Sequence[Tensor]) -> None:
        copied: set[str] = set()
        for axis, group, sizes in self._axes() if orders else ():
            key = prefix + axis.key
            if key in state and key not in copied:
                state[key] = state[key].detach().clone()
                copied.add(key)
            if key in state:
                for part in with_axis(axis.of(state[key]), axis.axis):
                    part.copy_(reordered(part, orders[group], axis.axis, sizes))


class NarrowFFN(NarrowSublayer):
    """A share of the channels of a layer's FFN; in a mixture of experts, of the channels of all experts together.

    Args:
        sublayers: The sublayers of the layer, whose FFN can be narrow; see `channels.why_not_narrow`.
        ratio: See `NarrowSublayer`.
        ranking: See `NarrowSublayer`.

    Raises:
        PolicyError: see `NarrowSublayer`.
    """

    def __init__(self, sublayers: Sublayers, ratio: float, ranking: Ranking) -> None:
        self._sublayers = sublayers
        self._parts: dict[str, nn.Module] = {}
        super().__init__(channel_groups(sublayers), ratio, ranking)

    @property
    def parent(self) -> nn.Module:
        """See `NarrowSublayer`."""
        return self._sublayers.ffn_parent

    def best(self) -> list[Tensor]:
        """See `NarrowSublayer`."""
        return best_channels(self._groups, self._ratio, self.ranking, self.scores)

    def install(self) -> None:
        """Put the best channels first, and make the narrow FFN."""
        super().install()
        self._parts = narrow_parts(self._sublayers, self._groups, [(0, count) for count in self._kept])

    def parts(self) -> Mapping[str, nn.Module]:
        """The modules that run in the place of the FFN's own, by their names in the layer.

        Raises:
            ModelError: a linear layer was replaced since the policy was applied.
        """
        self.check_current()
        holder = self._sublayers.ffn_holder
        for part in self._parts.values():
            if holder is not None and part.training is not holder.training:
                part.training = holder.training
        return self._parts


def reordered(tensor: Tensor, order: Tensor, axis: int, sizes: tuple[int, ...]) -> Tensor:
    """A copy of a tensor with its channels in another order; each of its blocks has all channels.

    Args:
        tensor: The tensor.
        order: The channels in their new order.
        axis: The axis of channels; what stands on it after the blocks belongs to no channel and stays.
        sizes: By block, how many places on the axis belong to each channel.
    """
    order, places, first = order.to(tensor.device), [], 0
    for size in sizes:
        places.append(first + (order[:, None] * size + torch.arange(size, device=order.device)).flatten())
        first += size * len(order)
    places.append(torch.arange(first, tensor.shape[axis], device=order.device))
    return tensor.index_select(axis, torch.cat(places))


def first_of(channels: Tensor, count: int) -> Tensor:
    """An order of so many channels that begins with some; both parts keep the order of the checkpoint."""
    others = torch.ones(count, dtype=torch.bool, device=channels.device)
    others[channels] = False
    return torch.cat([channels, others.nonzero()[:, 0]])


@torch.no_grad()
def best_channels(
    groups: Sequence[Group], ratio: Fraction, ranking: Ranking, scores: Tensor | None = None
) -> list[Tensor]:
    """The channels that run, ascending, for each group; `first` takes the same share of each."""
    counts = [group[0].channels for group in groups]
    if ranking == "first":
        return [torch.arange(int(ratio * count)) for count in counts]
    if scores is None:
        norms = [channel_norms(group) for group in groups]
        scores = torch.cat([one.to(norms[0].device) for one in norms])
    joint = scores.to(groups[0][0].weight.device)
    best = torch.zeros_like(joint, dtype=torch.bool)
    best[joint.argsort(descending=True, stable=True)[: int(ratio * len(joint))]] = True
    return [part.nonzero()[:, 0] for part in best.split(counts)]


def channel_norms(group: Group) -> Tensor:
    """For each channel the product of the norms of its weights, float32, shape (channels,)."""
    product = torch.ones(group[0].channels, device=group[0].weight.device)
    for layer in group:
        norms = torch.linalg.vector_norm(precise(layer.weight), dim=1 if layer.blocks else 0)
        product *= norms.view(max(layer.blocks, 1), -1).prod(dim=0).to(product.device)
    return product
