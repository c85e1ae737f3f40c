"""What every export target can do: say what it can represent, write it, and load it again."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..policies.policy import Policy

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from .reference import Reference


@dataclass(frozen=True)
class Source:
    """The model that an export starts from.

    Attributes:
        model: The dense model, in evaluation mode.
        processor: Its tokenizer or processor, which is saved beside the weights; None where there is none.
        id: Its hub id or folder.
        revision: Its revision on the hub.
        prompts: Inputs of the model (CPU tensors by argument name), on which an export is compared with the model under
            the policy; random text where there are none.
    """

    model: "PreTrainedModel"
    processor: Any = None
    id: str | None = None
    revision: str | None = None
    prompts: Sequence[dict[str, "Tensor"]] = ()


@dataclass(frozen=True)
class Options:
    """What the user chose about an export.

    Attributes:
        zero: Whether a sublayer that the format cannot leave out may be written with weights of 0.
        python: The interpreter of an environment that has the target tool; None for the running one.
    """

    zero: bool = True
    python: Path | None = None


class Target(ABC):
    """One kind of export.

    Attributes:
        name: What `--to` calls it.
        text: What it writes and what loads it, in one line.
    """

    name: ClassVar[str]
    text: ClassVar[str]

    def __init__(self, options: Options = Options()) -> None:
        self.options = options

    @abstractmethod
    def can(self, policy: Policy, source: Source) -> list[str]:
        """The reasons why this policy cannot be written for this model; empty where it can.

        Each reason names a choice with its layers, or a property of the model.
        """

    @abstractmethod
    def write(self, policy: Policy, source: Source, folder: Path) -> list[str]:
        """Write the export into an empty folder.

        Returns:
            What the user should know about it, one line each: what is saved and what is not.
        """

    @abstractmethod
    def check(self, folder: Path, reference: "Reference") -> float:
        """Load the export in its tool, in a fresh process, and compare it with the model under the policy.

        Returns:
            The largest difference; see `Reference.difference`.

        Raises:
            ExportError: the tool does not load it, or is missing.
        """

    def load_lines(self, source: Source, folder: str) -> list[str]:
        """The commands or lines of Python that load the export, for its card."""
        return []


def named_choices(policy: Policy, labels: Sequence[str]) -> list[str]:
    """One line for each kind of choice of a policy that is not among `labels`, with its layers."""
    layers: dict[str, list[int]] = {}
    for index, choice in policy.canonical().layers.items():
        if choice.label not in labels:
            layers.setdefault(choice.label, []).append(index)
    return [f"{label} in layer {', '.join(map(str, where))}" for label, where in layers.items()]


def count_choices(policy: Policy) -> dict[str, int]:
    """How many layers have each kind of choice, by label."""
    return dict(Counter(choice.label for choice in policy.canonical().layers.values()))
