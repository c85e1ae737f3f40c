"""The forward of a module, replaced in place and put back."""

from collections.abc import Callable
from typing import Any

from torch import nn


class Patch:
    """What stands in place of a module's forward; the module tree, its names and its hooks stay.

    Args:
        module: The module.

    Attributes:
        original: Its forward as it is now.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        # accelerate keeps the forward that it wraps with its hooks under this name.
        self._slot = "_old_forward" if hasattr(module, "_hf_hook") else "forward"
        self._was_set = self._slot in vars(module)
        self.original: Callable[..., Any] = getattr(module, self._slot)

    def set(self, forward: Callable[..., Any]) -> None:
        """Put a function in place of the forward."""
        setattr(self._module, self._slot, forward)

    def undo(self) -> None:
        """Put the forward back."""
        if self._was_set:
            self.set(self.original)
        else:
            delattr(self._module, self._slot)
