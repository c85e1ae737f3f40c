"""Replacing a method of a module in place, and restoring it."""

from collections.abc import Callable
from typing import Any

from torch import nn


class Patch:
    """Replaces one method of a module; the module tree, its names and its hooks stay.

    Copies and pickles of a patched module stay patched, and call the copy's own method.

    Args:
        module: The module.
        name: The method.

    Attributes:
        original: The method as it was.
    """

    def __init__(self, module: nn.Module, name: str = "forward") -> None:
        self._module = module
        # accelerate keeps the forward that it wraps with its hooks under this name.
        self._slot = "_old_forward" if name == "forward" and hasattr(module, "_hf_hook") else name
        self._was_set = self._slot in vars(module)
        self.original: Callable[..., Any] = getattr(module, self._slot)

    def __getstate__(self) -> dict[str, Any]:
        # A bound method is pickled by its name, and under that name the copy has the patch.
        return {name: value for name, value in vars(self).items() if self._was_set or name != "original"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if not self._was_set:
            self.original = getattr(type(self._module), self._slot).__get__(self._module)

    def set(self, method: Callable[..., Any]) -> None:
        """Replace the method with a function."""
        setattr(self._module, self._slot, method)

    def undo(self) -> None:
        """Restore the method."""
        if self._was_set:
            self.set(self.original)
        else:
            delattr(self._module, self._slot)
