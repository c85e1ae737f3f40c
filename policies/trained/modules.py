"""Modules that are trained for single layers, such as routers and adapters, and their file beside the policy."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import PolicyMismatch
from .swap import read_tensors

MAX_LISTED = 5


class LayerModules(nn.ModuleDict):
    """Modules by the number of their layer, as text; float32.

    Attributes:
        noun: What they are, in messages.
        file: The name of their file.
    """

    noun: ClassVar[str]
    file: ClassVar[str]

    def save(self, folder: Path) -> None:
        """Write the modules into a folder."""
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / self.file)

    def load(self, folder: Path) -> None:
        """Read from a folder what modules of the same layers and shapes wrote.

        Raises:
            PolicyMismatch: they are those of other layers, or of another width.
        """
        self.take(read_tensors(folder / self.file), folder)

    def take(self, found: Mapping[str, Tensor], folder: Path) -> None:
        """Take the tensors of a file in a folder; see `load`."""
        own = self.state_dict()
        wrong = [f"{name}: in the file or the policy alone" for name in sorted({*found} ^ {*own})]
        wrong += [
            f"{name}: found {list(found[name].shape)}, the model needs {list(tensor.shape)}"
            for name, tensor in own.items()
            if name in found and found[name].shape != tensor.shape
        ]
        if wrong:
            hint = "copy the whole folder that `skipsearch recover` wrote, and load the model that its policy names"
            raise PolicyMismatch(f"the {self.noun} in {folder} do not fit", wrong[:MAX_LISTED], hint)
        self.load_state_dict(dict(found))
