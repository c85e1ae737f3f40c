"""Frozen adapters folded into the first matrices of an FFN, so that they cost nothing.

A frozen adapter is affine, P(u) = M u + b. So a matrix W of the FFN that reads P(u) reads u instead, as W M with W b
added to its bias. The folded matrices are copies; the FFN's own forward runs over them in a second module, and the
model keeps its weights and its classes. Where gradients are recorded, the adapter runs unfolded, so that they reach the
FFN.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ModelError
from ..families.channels import ChannelLayer, channel_groups, of_linear_layers, of_weights, random_tokens
from ..families.layers import eval_mode
from ..families.lora import LoraLinear
from ..families.model_errors import is_out_of_memory
from ..families.sublayers import Sublayers
from ..families.twins import agree, twin_of
from .adapters import Adapter


class FoldedLinear(nn.Module):
    """A linear layer that reads what a frozen adapter gives; its weights are a copy.

    Args:
        layer: The layer of the FFN.
        adapter: The adapter.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: ChannelLayer, adapter: Adapter) -> None:
        super().__init__()
        self._layer, self._adapter = layer, adapter
        self._folded_from: tuple[Any, ...] = ()
        self.refresh()

    def refresh(self) -> None:
        """Fold again where the layer's weights are others than when they were folded, such as on another device."""
        own: nn.Module = self._layer.module
        # A tensor that was made in inference mode counts no changes.
        changes = ((p, 0 if p.is_inference() else p._version) for p in own.parameters())
        state = tuple((p.data_ptr(), version, p.dtype, p.device) for p, version in changes)
        if state != self._folded_from:
            with torch.inference_mode(False), torch.no_grad():
                self.weight, self.bias = folded(self._layer, self._adapter)
            self._folded_from = state

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for P(x), shape (batch, tokens, outputs)."""
        if not torch.compiler.is_compiling():
            self.refresh()
        return functional.linear(x, self.weight, self.bias)


def folded(layer: ChannelLayer, adapter: Adapter) -> tuple[Tensor, Tensor]:
    """W M and W b, with the layer's own bias added, computed in float64 where the device has it.

    Args:
        layer: The layer, with the matrix W, shape (outputs, width).
        adapter: The frozen adapter, P(u) = M u + b.
    """
    weight, own = layer.weight, layer.linear.bias
    precise = torch.float32 if weight.device.type == "mps" else torch.float64
    up, down, bias = (part.to(weight.device, precise) for part in adapter.affine())
    wide = weight.to(precise)
    added = wide @ bias if own is None else wide @ bias + own.to(precise)
    return (wide + (wide @ up) @ down).to(weight.dtype), added.to(weight.dtype)


class FoldedFFN:
    """The FFN of a layer with a frozen adapter in its first matrices.

    Args:
        sublayers: The sublayers of the layer.
        layers: The linear layers of its FFN; see `foldable`.
        adapter: The adapter.
    """

    def __init__(self, sublayers: Sublayers, layers: Sequence[ChannelLayer], adapter: Adapter) -> None:
        self._sublayers, self._children = sublayers, sublayers.ffn_children
        own: dict[str, nn.Module] = {one.path: FoldedLinear(one, adapter) for one in layers if one.blocks}
        holder = sublayers.ffn_holder
        self._parts = own if holder is None else {sublayers.ffn_names[0]: twin_of(holder, own)}

    def parts(self) -> Mapping[str, nn.Module]:
        """The modules that run in the place of the FFN's own, by their names in the layer.

        Raises:
            ModelError: a module of the FFN was replaced since the policy was applied.
        """
        found = self._sublayers.ffn_children
        replaced = [name for name, module in self._children.items() if found.get(name) is not module]
        if replaced:
            raise ModelError(
                "modules were replaced under a policy that folds adapters into them",
                [f"{', '.join(replaced)} of a {type(self._sublayers.ffn_parent).__name__}"],
                "put the modules back, remove the policy, replace or quantise them, and apply the policy again",
            )
        holder = self._sublayers.ffn_holder
        for part in self._parts.values():
            if holder is not None and part.training is not holder.training:
                part.training = holder.training
        return self._parts


def fold(sublayers: Sublayers, adapter: Adapter) -> FoldedFFN | None:
    """The FFN with a frozen adapter folded into it; None where the FFN does not permit that.

    It does where it is dense, its matrices are plain, and on random input the folded FFN gives what the FFN gives after
    the adapter.
    """
    layers = foldable(sublayers)
    if layers is None:
        return None
    made, x = FoldedFFN(sublayers, layers, adapter), random_tokens([layers])
    try:
        with torch.no_grad(), eval_mode(sublayers.ffn_parent):
            wanted = sublayers.run_ffn_modules(adapter(x, adapter.constants))
            return made if agree(sublayers.run_ffn_modules(x, made.parts()), wanted) else None
    except Exception as cause:
        if is_out_of_memory(cause):
            raise
        # The forward of an FFN of another build can raise anything; such an FFN runs after the adapter.
        return None


def foldable(sublayers: Sublayers) -> list[ChannelLayer] | None:
    """The linear layers of an FFN that a frozen adapter can be folded into; None where it cannot be."""
    children, groups = sublayers.ffn_children, channel_groups(sublayers)
    if any("expert" in name for name in children) or of_linear_layers(children) is not None or len(groups) != 1:
        return None
    adapted = any(isinstance(layer.linear, LoraLinear) for layer in groups[0])
    plain = not adapted and all(of_weights(layer, reorders=False) is None for layer in groups[0])
    return groups[0] if plain and any(layer.blocks for layer in groups[0]) else None
