"""What all text formats say: which attentions and which FFNs are left out, for all tokens and in both phases."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...policies.choice import LAST_LAYER, LayerChoice
from ...policies.document import Document, KeyPath, Problem
from ...policies.errors import ExportError, PolicyError
from ...policies.metadata import ModelRef
from ...policies.policy import Policy
from ...policies.wording import short
from ..target import named_choices

LABELS = ("skip_layer", "skip_attention", "skip_ffn")


@dataclass(frozen=True)
class Given:
    """A text to import.

    Attributes:
        text: The text.
        name: Its name in messages, usually a path.
        num_layers: The number of layers of the model; None where the user does not say.
        entry: Which of several policies in the text; None where the user does not say.
    """

    text: str
    name: str
    num_layers: int | None = None
    entry: str | None = None

    @cached_property
    def document(self) -> Document:
        """The text as YAML, of which JSON is a part.

        Raises:
            PolicyError: it is not one mapping.
        """
        return Document(self.text.replace("\t", " "), self.name, PolicyError)

    @property
    def keys(self) -> dict[Any, Any]:
        """The mapping that the text is; empty where it is none."""
        try:
            return self.document.data
        except PolicyError:
            return {}


def skipped(policy: Policy) -> tuple[list[int], list[int]]:
    """The layers whose attention a policy leaves out, and those whose FFN it leaves out, ascending.

    Raises:
        ExportError: the policy has other choices.
    """
    if others := named_choices(policy, LABELS):
        hint = "keep the policy file, and use `apply_policy`"
        raise ExportError("the format says which sublayers are left out, and nothing else", others, hint)
    layers = policy.canonical().layers
    attention = [index for index, choice in layers.items() if choice.attention == "skip"]
    return attention, [index for index, choice in layers.items() if choice.ffn == "skip"]


def depth(policy: Policy) -> int:
    """The number of layers of the model that a policy was made for.

    Raises:
        ExportError: the policy does not say.
    """
    if policy.model.num_layers is None:
        hint = "write it in the policy, as in `model: {num_layers: 32}`"
        raise ExportError("the format lists every layer, and the policy does not say how many there are", hint=hint)
    return policy.model.num_layers


def policy_of(attention: Iterable[int], ffn: Iterable[int], model: ModelRef) -> Policy:
    """The policy that leaves out some attentions and some FFNs."""
    without = {"attention": set(attention), "ffn": set(ffn)}
    layers = {
        index: LayerChoice.model_validate({key: "skip" for key, layers in without.items() if index in layers})
        for index in sorted(without["attention"] | without["ffn"])
    }
    return Policy(model=model, layers=layers)


def layer_numbers(document: Document, path: KeyPath, found: Any, num_layers: int | None) -> list[Problem]:
    """The mistakes in a list of layer numbers.

    Args:
        document: The document that has the list.
        path: Where.
        found: The value there.
        num_layers: The number of layers of the model; None where it is unknown.
    """
    if not isinstance(found, list):
        return [document.problem(path, f"found {short(found)}, expected a list of layer numbers")]
    last = LAST_LAYER if num_layers is None else num_layers - 1
    wrong = {place: entry for place, entry in enumerate(found) if type(entry) is not int or not 0 <= entry <= last}
    return [
        document.problem((*path, place), f"found {short(entry)}, expected a layer number, 0 to {last}")
        for place, entry in wrong.items()
    ]
