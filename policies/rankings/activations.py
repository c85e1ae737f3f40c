"""Watches the channels of an FFN: what each one is in a forward, and by how much the FFN multiplies its expert."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..families.channels import Group, random_tokens
from ..families.experts import ExpertMatrix, expert_channels
from ..families.layers import eval_mode
from ..families.sublayers import Sublayers
from ..families.twins import agree

# Gets the number of a group of channels; its activations, shape (tokens, channels); the factors by which the FFN
# multiplies what the group computes, shape (tokens, 1); and the places of these tokens, shape (tokens,). Without
# factors they are 1, and without places the activations are those of all tokens.
See: TypeAlias = Callable[[int, Tensor, Tensor | None, Tensor | None], None]


@contextmanager
def watched_channels(sublayers: Sublayers, groups: list[Group], see: See) -> Iterator[None]:
    """Show the channels of an FFN in every forward in this context; the forward itself runs as ever.

    Args:
        sublayers: The sublayers of the layer; its FFN can be narrow, see `channels.why_not_narrow`.
        groups: The groups of its channels.
        see: Is shown the channels of a group. Nothing is kept of them once it returns.
    """
    fused: dict[str, dict[int, int]] = {}
    hooks: list[Any] = []
    try:
        for number, group in enumerate(groups):
            if isinstance(group[0].linear, ExpertMatrix):
                fused.setdefault(group[0].path, {})[group[0].linear.expert] = number
            else:
                hooks += watch_group(sublayers, number, group, see)
        hooks += [watch_experts(sublayers.ffn_parent.get_submodule(path), own, see) for path, own in fused.items()]
        yield
    finally:
        for hook in hooks:
            hook.remove()


def watch_group(sublayers: Sublayers, number: int, group: Group, see: See) -> list[Any]:
    """Hook a dense FFN, or the expert that all tokens share, at the layer that reads its channels; returns hooks."""
    read = reading_layer(group)
    owner = read.path.rpartition(".")[0]
    gate = sublayers.ffn_children.get(f"{owner}_gate") if owner else None
    factors: list[Tensor] = []

    def keep_factors(module: nn.Module, args: tuple[Any, ...]) -> None:
        # By a linear layer of that name the FFN says how much of the shared expert counts.
        factors.append(gate(args[0]).sigmoid().flatten(0, -2))  # type: ignore[misc]

    def show(module: nn.Module, args: tuple[Any, ...]) -> None:
        see(number, args[0].flatten(0, -2), factors.pop() if factors else None, None)

    hooks = [read.module.register_forward_pre_hook(show)]
    if gate is not None:
        hooks.append(sublayers.ffn_parent.get_submodule(owner).register_forward_pre_hook(keep_factors))
    return hooks


def watch_experts(experts: nn.Module, numbers: dict[int, int], see: See) -> Any:
    """Hook experts that have their weights in one; returns the hook.

    Their forward shows its channels to no module, so those of the tokens that are sent to an expert are computed here,
    one expert at a time.

    Args:
        experts: The experts.
        numbers: By expert, the number of its group.
        see: Is shown the channels of an expert.
    """

    def show(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = dict(zip(("hidden_states", "top_k_index", "top_k_weights"), args, strict=False)) | kwargs
        index, weights = named["top_k_index"], named["top_k_weights"]
        # A number past the last expert marks a place that no expert takes.
        for expert in {*index.unique().tolist()} & {*numbers}:
            token, place = torch.where(index == expert)
            activations = expert_channels(experts, expert, named["hidden_states"][token])
            see(numbers[expert], activations, weights[token, place, None], token)

    return experts.register_forward_pre_hook(show, with_kwargs=True)


def reading_layer(group: Group) -> Any:
    """The layer of a group that reads its channels."""
    return next(layer for layer in group if not layer.blocks)


@torch.no_grad()
def why_not_watched(sublayers: Sublayers, groups: list[Group]) -> str | None:
    """The reason why the channels of a mixture cannot be watched; None where they can.

    They can where on random input the sum of what is shown of all experts is what the FFN computes. In a dense FFN the
    only group is shown at the FFN's own last layer.
    """
    if len(groups) == 1:
        return None
    x = random_tokens(groups)
    total = torch.zeros_like(x[0])

    def add(number: int, activations: Tensor, factors: Tensor | None, tokens: Tensor | None) -> None:
        read = reading_layer(groups[number])
        part = functional.linear(activations, read.weight, read.linear.bias)
        part = (part if factors is None else part * factors).to(total.dtype)
        total.index_add_(0, torch.arange(len(x[0]), device=x.device) if tokens is None else tokens, part)

    with eval_mode(sublayers.ffn_parent), watched_channels(sublayers, groups, add):
        whole = sublayers.run_ffn_modules(x)
    return None if agree(total, whole[0]) else "its experts are not added up with the factors that its modules show"
