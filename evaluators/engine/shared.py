"""Values that all workers of a machine hold once: pixels and image features as arrays in memory that they share."""

import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

# A smaller value costs more to look up than to keep.
LEAST_BYTES = 1 << 16


class SharedStore(Protocol):
    """Where processes of one machine keep values for one another, as `as_arrays` makes them."""

    def find(self, key: str) -> "Arrays | None":
        """A value, in shared memory; None where no process has kept it, or it was lost."""
        ...

    def keep(self, key: str, value: "Arrays") -> "Arrays | None":
        """Keep a value; returns it in shared memory, or None where there is no room."""
        ...


# The structure of a value, pickled, so that a process can hold it without torch; and its arrays.
Arrays: TypeAlias = tuple[bytes, list[np.ndarray[Any, Any]]]


@dataclass(frozen=True)
class Place:
    """What stands for a tensor in a structure: the number of its array, and its dtype, such as `torch.bfloat16`."""

    number: int
    dtype: str


def replaced(value: Any, kind: type, by: Callable[[Any], Any]) -> Any:
    """Nested values with others in the place of those of one kind."""
    if isinstance(value, kind):
        return by(value)
    if isinstance(value, ModelOutput):
        return type(value)(**{key: replaced(part, kind, by) for key, part in value.items()})
    if isinstance(value, Mapping):
        return {key: replaced(part, kind, by) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(replaced(part, kind, by) for part in value)
    return value


def is_on_cpu(value: Any) -> bool:
    """True where no tensor among nested values is on another device."""
    devices = set[str]()
    replaced(value, Tensor, lambda tensor: devices.add(tensor.device.type))
    return devices <= {"cpu"}


def as_arrays(value: Any) -> Arrays:
    """Nested values as their structure and the arrays of their tensors."""
    arrays: list[np.ndarray[Any, Any]] = []

    def place(tensor: Tensor) -> Place:
        plain = tensor.detach().contiguous()
        # NumPy has no bfloat16.
        arrays.append((plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain).numpy())
        return Place(len(arrays) - 1, str(tensor.dtype))

    return pickle.dumps(replaced(value, Tensor, place)), arrays


def as_tensors(value: Arrays) -> Any:
    """What `as_arrays` was given, with tensors on the memory of the arrays; none may be written to."""
    structure, arrays = value

    def tensor(place: Place) -> Tensor:
        with warnings.catch_warnings():
            # The memory is read-only, and torch has no such tensors.
            warnings.simplefilter("ignore", UserWarning)
            return torch.from_numpy(arrays[place.number]).view(getattr(torch, place.dtype.removeprefix("torch.")))

    return replaced(pickle.loads(structure), Place, tensor)
