"""Which channels of an FFN a width keeps, from the weights alone; nothing here uses skipsearch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from layer_formulas import FFN, family
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

# What families call the layer that reads channels, and the one that makes gates and values of all channels.
READ = ("down_proj", "w2", "c_proj", "fc_out", "fc2", "dense_4h_to_h", "output_linear")
BOTH = ("gate_up_proj", "input_linear")


@dataclass(frozen=True)
class Unit:
    """Matrices with the same channels, as views: those of a dense FFN, or of one expert.

    Attributes:
        read: The one that reads channels, shape (outputs, channels).
        made: Those that make channels, shape (channels, inputs); one that makes gates and values is in here in halves.
        experts: How many experts there are, of which a token is sent to some; 0 where every token comes here.
    """

    read: Tensor
    made: list[Tensor]
    experts: int = 0

    @property
    def channels(self) -> int:
        return self.read.shape[1]

    @property
    def size(self) -> int:
        """How many numbers belong to each channel."""
        return self.read.shape[0] + sum(matrix.shape[1] for matrix in self.made)

    def norm(self, channel: int) -> float:
        vectors = [self.read[:, channel], *(matrix[channel] for matrix in self.made)]
        return math.prod(float(vector.double().norm()) for vector in vectors)


def linear_layers(layer: nn.Module) -> dict[str, Any]:
    """The linear layers of a dense FFN by their names."""
    if family(layer) == "OPT":
        return {"fc1": layer.fc1, "fc2": layer.fc2}
    return dict(getattr(layer, FFN.get(family(layer), "mlp")).named_children())


def units(layer: nn.Module) -> list[Unit]:
    """The dense FFN, or every expert and the shared one after them."""
    if family(layer) != "OPT":
        ffn = getattr(layer, FFN.get(family(layer), "mlp"))
        if hasattr(ffn, "experts"):
            pairs = zip(ffn.experts.gate_up_proj.data, ffn.experts.down_proj.data, strict=True)
            found = [Unit(read, [*made.chunk(2)], len(ffn.experts.down_proj)) for made, read in pairs]
            shared = getattr(ffn, "shared_expert", getattr(ffn, "shared_experts", None))
            return found if shared is None else [*found, unit_of(dict(shared.named_children()))]
    return [unit_of(linear_layers(layer))]


def unit_of(children: dict[str, Any]) -> Unit:
    """The unit of some linear layers."""
    layers = {name: part for name, part in children.items() if isinstance(part, nn.Linear | Conv1D)}
    matrices = {
        name: part.weight.data.T if isinstance(part, Conv1D) else part.weight.data for name, part in layers.items()
    }
    made = [half for name, matrix in matrices.items() if name in BOTH for half in matrix.chunk(2)]
    made += [matrix for name, matrix in matrices.items() if name not in READ + BOTH]
    return Unit(next(matrix for name, matrix in matrices.items() if name in READ), made)


def dropped_channels(layer: nn.Module, ratio: float, ranking: str) -> list[list[int]]:
    """The channels that do not run, of each unit."""
    share, found = Fraction(str(ratio)), units(layer)
    if ranking == "first":
        return [[*range(int(share * unit.channels), unit.channels)] for unit in found]
    order = [(number, channel) for number, unit in enumerate(found) for channel in range(unit.channels)]
    order.sort(key=lambda place: -found[place[0]].norm(place[1]))
    gone = order[int(share * len(order)) :]
    return [sorted(channel for number, channel in gone if number == one) for one in range(len(found))]


def lowest(layer: nn.Module, scores: Tensor, ratio: float) -> list[list[int]]:
    """The channels that a ranking leaves out, of each unit; its scores are those of all units one after the other."""
    counts = [unit.channels for unit in units(layer)]
    gone = scores.argsort(descending=True)[int(Fraction(str(ratio)) * len(scores)) :].tolist()
    starts = [sum(counts[:one]) for one in range(len(counts))]
    return [sorted(c - start for c in gone if start <= c < start + n) for start, n in zip(starts, counts, strict=True)]


def energies(model: nn.Module, layer: nn.Module, run: Callable[[], object], alpha: float) -> Tensor:
    """By channel of all units, (1 - alpha) sum + alpha max over tokens of |FFN(x) - FFN(x) without the channel|^2."""
    opt = family(layer) == "OPT"
    ffn = layer.fc1 if opt else getattr(layer, FFN.get(family(layer), "mlp"))
    entered: list[Tensor] = []
    hook = ffn.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    run()
    hook.remove()

    def outputs() -> Tensor:
        found = [layer.fc2(layer.activation_fn(layer.fc1(x))) if opt else ffn(x) for x in entered]
        found = [one[0] if isinstance(one, tuple) else one for one in found]
        return torch.cat([one.flatten(0, -2) for one in found])

    whole, result = outputs(), []
    for number, unit in enumerate(units(layer)):
        for channel in range(unit.channels):
            with silenced(layer, [[channel] if one == number else [] for one in range(len(units(layer)))]):
                added = (whole - outputs()).square().sum(dim=-1)
            result.append((1 - alpha) * added.sum() + alpha * added.max())
    return torch.stack(result)


@contextmanager
def silenced(layer: nn.Module, dropped: list[list[int]]) -> Iterator[None]:
    """Let nothing come out of some channels of each unit: their columns are zero in this context."""
    before = [(unit.read, unit.read.clone()) for unit in units(layer)]
    for (read, _), channels in zip(before, dropped, strict=True):
        read[:, channels] = 0.0
    try:
        yield
    finally:
        for read, own in before:
            read.copy_(own)
