"""Weights that were trained under a policy and lie beside it: their files, and the digest that names their content."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from ..choice import Sha256, StrictModel
from ..errors import PolicyError

WeightsFormat = Literal["peft", "safetensors"]
# `peft` is the folder of a LoRA adapter; `safetensors` holds whole tensors under the model's own names.
FILES: Final[Mapping[WeightsFormat, tuple[str, ...]]] = {
    "peft": ("adapter_config.json", "adapter_model.safetensors"),
    "safetensors": ("trained.safetensors",),
}
ROUTERS: Final = "routers.safetensors"
ADAPTERS: Final = "adapters.safetensors"


class TrainedWeights(StrictModel):
    """Weights beside a policy file that replace the model's own while the policy is applied.

    Attributes:
        format: `peft`, a LoRA adapter in PEFT's files, or `safetensors`, whole tensors in `trained.safetensors`.
        routers: Whether `routers.safetensors` has the routers of layers that rank image tokens by one.
        adapters: Whether `adapters.safetensors` has the adapters of layers with one in place of their attention.
        sha256: The SHA-256 of the files, one after the other.
        folder: The folder of the files, beside the policy file; None where they lie beside it themselves.
    """

    format: WeightsFormat
    # Left out where there are none, so that fingerprints stay what they were.
    routers: Annotated[bool, Field(strict=True, exclude_if=lambda value: not value)] = False
    adapters: Annotated[bool, Field(strict=True, exclude_if=lambda value: not value)] = False
    sha256: Sha256
    folder: Annotated[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")] | None,
        Field(exclude_if=lambda folder: folder is None),
    ] = None

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files."""
        return names_of(self.format, self.routers, self.adapters)

    @classmethod
    def of(cls, folder: Path, form: WeightsFormat, routers: bool = False, adapters: bool = False) -> "TrainedWeights":
        """The weights that lie in a folder.

        Raises:
            OSError: a file is missing or cannot be read.
        """
        digest = hashlib.sha256()
        for name in names_of(form, routers, adapters):
            digest.update((folder / name).read_bytes())
        return cls(format=form, routers=routers, adapters=adapters, sha256=digest.hexdigest())

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
        found = self.of(folder, self.format, self.routers, self.adapters).sha256
        if found != self.sha256:
            raise PolicyError(f"{folder} has other weights than its policy", [self._wanted(), f"found {found}"], hint)
        return folder

    def _wanted(self) -> str:
        return f"expected {' and '.join(self.files)} with SHA-256 {self.sha256}"


def names_of(form: WeightsFormat, routers: bool, adapters: bool) -> tuple[str, ...]:
    """The names of the files of a form, with those of routers and adapters where there are some."""
    return (*FILES[form], *([ROUTERS] if routers else []), *([ADAPTERS] if adapters else []))
