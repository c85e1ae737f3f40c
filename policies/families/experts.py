"""Narrow experts: a part of the channels of each expert, where the experts of a mixture have their weights in one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class ExpertMatrix:
    """The matrix of one expert; stands in the place of a linear layer without bias.

    Args:
        experts: The module that has the matrices of all experts.
        name: The name of their parameter.
        expert: The number of the expert.
    """

    bias = None

    def __init__(self, experts: nn.Module, name: str, expert: int) -> None:
        self.experts, self.name, self.expert = experts, name, expert

    @property
    def parameter(self) -> Tensor:
        """The matrices of all experts, shape (experts, outputs, inputs)."""
        matrices: Tensor = getattr(self.experts, self.name)
        return matrices

    @property
    def weight(self) -> Tensor:
        """The expert's matrix as a view, shape (outputs, inputs)."""
        return self.parameter[self.expert]


def fused_experts(module: nn.Module) -> bool:
    """True for experts that have two parameters for all of them: gates and values in one, and what reads channels."""
    shapes = {name: tuple(weight.shape) for name, weight in module.named_parameters()}
    if {*shapes} != {"gate_up_proj", "down_proj"} or any(len(shape) != 3 for shape in shapes.values()):
        return False
    experts, width, channels = shapes["down_proj"]
    return shapes["gate_up_proj"] == (experts, 2 * channels, width) and hasattr(module, "act_fn")


class NarrowExperts(nn.Module):
    """Experts that each run some of their channels; an expert without any is passed over.

    Args:
        experts: The experts.
        ends: For each expert, the first channel that runs, and one past the last.
    """

    def __init__(self, experts: Any, ends: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.experts, self.ends = experts, ends

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted sum of the experts that each token is sent to, shape (tokens, width).

        Args:
            hidden_states: Shape (tokens, width).
            top_k_index: The experts of each token, shape (tokens, experts of a token).
            top_k_weights: Their weights, of the same shape.
        """
        out = torch.zeros_like(hidden_states)
        # A number past the last expert marks a place that no expert takes.
        for expert in top_k_index.unique().tolist():
            start, stop = self.ends[expert] if expert < len(self.ends) else (0, 0)
            if start == stop:
                continue
            token, place = torch.where(top_k_index == expert)
            channels = expert_channels(self.experts, expert, hidden_states[token], start, stop)
            update = functional.linear(channels, self.experts.down_proj[expert][:, start:stop])
            update = update * top_k_weights[token, place, None]
            out.index_add_(0, token, update.to(out.dtype))
        return out


def expert_channels(experts: Any, expert: int, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
    """Some channels of one expert, shape (tokens, channels).

    Args:
        experts: The module that has the matrices of all experts.
        expert: The number of the expert.
        x: What it reads, shape (tokens, width).
        start: The first channel.
        stop: One past the last; None for all.
    """
    made, count = experts.gate_up_proj[expert], experts.down_proj.shape[-1]
    stop = count if stop is None else stop
    gate = functional.linear(x, made[start:stop])
    values = functional.linear(x, made[count + start : count + stop])
    return experts.act_fn(gate) * values
