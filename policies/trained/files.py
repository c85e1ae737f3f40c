"""Weights that were trained under a policy and lie beside it: their files, and the digest that names their content."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from ..choice import StrictModel
from ..errors import PolicyError

WeightsFormat = Literal["peft", "safetensors"]
# `peft` is the folder of a LoRA adapter; `safetensors` holds whole tensors under the model's own names.
FILES: Final[Mapping[WeightsFormat, tuple[str, ...]]] = {
    "peft": ("adapter_config.json", "adapter_model.safetensors"),
    "safetensors": ("trained.safetensors",),
}


class TrainedWeights(StrictModel):
    """Weights beside a policy file that replace the model's own while the policy is applied.

    Attributes:
        format: `peft`, a LoRA adapter in PEFT's files, or `safetensors`, whole tensors in `trained.safetensors`.
        sha256: The SHA-256 of the files, one after the other.
    """

    format: WeightsFormat
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files, which lie in the policy's folder."""
        return FILES[self.format]

    @classmethod
    def of(cls, folder: Path, form: WeightsFormat) -> "TrainedWeights":
        """The weights that lie in a folder.

        Raises:
            OSError: a file is missing or cannot be read.
        """
        digest = hashlib.sha256()
        for name in FILES[form]:
            digest.update((folder / name).read_bytes())
        return cls(format=form, sha256=digest.hexdigest())

    def check(self, folder: Path | None) -> Path:
        """The folder of the weights, once their content is what the policy names.

        Raises:
            PolicyError: the folder is not known, a file is missing, or the content is another one.
        """
        if folder is None:
            hint = "load the policy from its folder, as in `apply_policy(model, FOLDER)`"
            raise PolicyError("the policy was trained, and its weights are not beside it", [self._wanted()], hint)
        missing = [name for name in self.files if not (folder / name).is_file()]
        hint = "copy the whole folder that `skipsearch recover` wrote"
        if missing:
            raise PolicyError(f"{folder} lacks trained weights", [f"expected {name}" for name in missing], hint)
        found = self.of(folder, self.format).sha256
        if found != self.sha256:
            raise PolicyError(f"{folder} has other weights than its policy", [self._wanted(), f"found {found}"], hint)
        return folder

    def _wanted(self) -> str:
        return f"expected {' and '.join(self.files)} with SHA-256 {self.sha256}"
