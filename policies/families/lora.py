"""Linear layers with LoRA adapters of PEFT: W x + s B A x, where rows of B or columns of A belong to channels."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

# PEFT's class of a layer with plain adapters, which is known by its name, because PEFT may not be installed.
PLAIN: Final = ("peft.tuners.lora.layer", "Linear")


class LoraLinear:
    """A linear layer inside a layer of PEFT; stands in the place of the linear layer.

    Args:
        module: PEFT's layer; see `is_plain_lora`.
    """

    def __init__(self, module: Any) -> None:
        self.module = module

    @property
    def base(self) -> Any:
        """The linear layer."""
        return self.module.base_layer

    @property
    def weight(self) -> Tensor:
        """The matrix of the linear layer, without adapters."""
        weight: Tensor = self.base.weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The bias of the linear layer."""
        bias: Tensor | None = self.base.bias
        return bias

    @property
    def adapters(self) -> list[str]:
        """The names of its adapters."""
        return [*self.module.lora_A]

    def matrices(self, part: str) -> Iterator[tuple[str, Tensor]]:
        """The matrix A or B of each adapter, with its name in PEFT's layer."""
        for name, linear in getattr(self.module, f"lora_{part}").items():
            yield f"lora_{part}.{name}.weight", linear.weight

    def update(self, x: Tensor, columns: Sequence[slice] | None, rows: Sequence[slice] | None) -> Tensor | None:
        """What the active adapters add to the output of a part of the layer; None for nothing.

        Args:
            x: What the part reads, shape (batch, tokens, inputs of the part).
            columns: The layer's inputs that the part reads; None for all.
            rows: The outputs that it gives; None for all.
        """
        module, total = self.module, None
        if module.disable_adapters or module.merged:
            return None
        for name in (one for one in module.active_adapters if one in module.lora_A):
            down, up = module.lora_A[name].weight, module.lora_B[name].weight
            down = down if columns is None else torch.cat([down[:, own] for own in columns], dim=1)
            up = up if rows is None else torch.cat([up[own] for own in rows])
            read = module.lora_dropout[name](x.to(down.dtype))
            part = functional.linear(functional.linear(read, down), up) * module.scaling[name]
            total = part if total is None else total + part
        return total


def plain_linear(module: nn.Module) -> Any | None:
    """A linear layer, alone or with LoRA adapters beside it; None for any other module."""
    if isinstance(module, nn.Linear | Conv1D):
        return module
    return LoraLinear(module) if is_plain_lora(module) else None


def is_plain_lora(module: Any) -> bool:
    """True for a layer of PEFT that computes W x + s B A x, and nothing else."""
    if (type(module).__module__, type(module).__name__) != PLAIN:
        return False
    adds_more = module.lora_variant or any(module.lora_bias.values())
    return isinstance(module.base_layer, nn.Linear | Conv1D) and not adds_more
