"""What every export target can do: say what it can represent, write it, and load it again."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..policies.card import count_choices as count_choices
from ..policies.card import is_hub_id
from ..policies.metadata import ModelRef
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
        relation: What an export is to the model, in the words of the Hugging Face hub.
        quantizes: True where what loads it quantises the weights as the policy says.
    """

    name: ClassVar[str]
    text: ClassVar[str]
    relation: ClassVar[str] = "finetune"
    quantizes: ClassVar[bool] = False

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

    def proof_line(self, difference: float, reference: "Reference") -> str:
        """What `check` has shown, in one line."""
        dtype = str(reference.dtype).removeprefix("torch.")
        found = f"{difference:.1e} in {dtype} (accepted: {reference.tolerance:.0e})"
        return f"largest difference of logits from the model under the policy: {found}"

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


def with_model(policy: Policy, source: Source) -> Policy:
    """A policy that names the model it is exported for, under an id of the hub where there is one."""
    count = source.model.config.get_text_config().num_hidden_layers
    model = policy.model.model_copy(update={"num_layers": count})
    if source.id is not None and (is_hub_id(source.id) or not is_hub_id(model.id)):
        kind = policy.model.quantization
        model = ModelRef(id=source.id, revision=source.revision, num_layers=count, quantization=kind)
    return policy.model_copy(update={"model": model})
