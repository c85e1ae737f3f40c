"""Weights as they are stored: the plain tensors of a quantised one, their bytes, and the numbers they stand for."""

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def plain_tensors(tensor: Tensor) -> list[Tensor]:
    """The tensors that are in memory for a tensor: itself, or the integers, scales and zeros of a quantised one."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in plain_tensors(getattr(tensor, name))]


def stored_bytes(tensor: Tensor) -> int:
    """The bytes that a tensor takes in memory; torch's `nbytes` counts a quantised one as the numbers it stands for."""
    return sum(part.numel() * part.element_size() for part in plain_tensors(tensor))


def first_address(tensor: Tensor) -> int:
    """Where the first of its plain tensors lies in memory; equal for weights that are tied."""
    return plain_tensors(tensor)[0].data_ptr()


def is_plain(weight: Tensor) -> bool:
    """True for a parameter that is the floating-point numbers of a model, and not quantised."""
    return type(weight) is nn.Parameter and weight.is_floating_point()


def is_int8(weight: Tensor) -> bool:
    """True for a weight that torchao stores as 8-bit integers with scales, whose activations stay as they are."""
    if type(weight).__name__ != "Int8Tensor" or not type(weight).__module__.startswith("torchao."):
        return False
    return getattr(weight, "act_quant_kwargs", None) is None and getattr(weight, "act_pre_scale", None) is None


def as_numbers(weight: Tensor) -> Tensor:
    """The numbers that a weight stands for, as a plain tensor; the weight itself where it is one."""
    return weight.dequantize() if is_int8(weight) else weight


def precise(weight: Tensor) -> Tensor:
    """The numbers that a weight stands for, at least in float32.

    What is computed from them is the same to the last bit for a weight and for its copy in float32.
    """
    numbers = as_numbers(weight)
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def with_axis(weight: Tensor, axis: int) -> list[Tensor]:
    """The plain tensors of a weight that have its axis: its integers, and on the axis of rows their scales too."""
    return [part for part in plain_tensors(weight) if part.shape[axis] == weight.shape[axis]]


def why_not_divided(weight: Tensor, axis: int) -> str | None:
    """The reason why a part of a weight along an axis cannot be taken as a view; None where it can."""
    if is_plain(weight):
        return None
    if not is_int8(weight) or weight.dim() != 2:
        return f"its weights are {type(weight).__name__}"
    sizes = {part.shape[axis] for part in plain_tensors(weight)}
    if sizes <= {1, weight.shape[axis]}:
        return None
    return f"its weights are {type(weight).__name__} with a scale for each group of numbers in a row"
