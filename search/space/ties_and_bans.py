"""Couplings of layers in a space: tied layers share one choice, and forbidden combinations may not occur."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, RootModel, Tag

from ...policies.choice import KEEP, LAST_LAYER, LayerChoice, StrictModel
from ...policies.policy import Policy
from .layer_choices import ChoiceEntry, Options, expanded

Layer: TypeAlias = Annotated[int, Field(ge=0, le=LAST_LAYER)]
Group: TypeAlias = Annotated[list[Layer], Field(min_length=2)]


def as_list(value: Any) -> Any:
    """Wrap a single value in a list, so that a list of one may be written without brackets."""
    return value if isinstance(value, list) else [value]


# One choice or a list of them, each as in a rule of `layers`.
ChoiceList: TypeAlias = Annotated[
    list[ChoiceEntry], BeforeValidator(as_list, json_schema_input_type=Options[ChoiceEntry]), Field(min_length=1)
]


class TieEvery(StrictModel):
    """Groups of consecutive tied layers.

    Attributes:
        every: The size of a group, counted from the first layer of each rule's range. The last group of a range is
            smaller where the size does not divide the range.
    """

    every: Annotated[int, Field(ge=2, strict=True)]


class ForbiddenRun(StrictModel):
    """A run of consecutive layers with some choice that is too long.

    Attributes:
        consecutive: The choice, or a list of them; each layer of the run has one of these.
        more_than: The longest run that is allowed.
    """

    consecutive: ChoiceList
    more_than: Annotated[int, Field(ge=1, strict=True)]


class ForbiddenTogether(RootModel[Annotated[dict[Layer, ChoiceList], Field(min_length=2)]]):
    """Choices of several layers that may not occur together: by layer, a choice or a list of them."""

    model_config = ConfigDict(frozen=True, json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,4}$"}})


def forbid_tag(value: Any) -> str:
    """The kind of an entry of `forbid`: `run` or `together`."""
    is_run = isinstance(value, ForbiddenRun) or (isinstance(value, Mapping) and {"consecutive", "more_than"} & {*value})
    return "run" if is_run else "together"


ForbidRule: TypeAlias = Annotated[
    Annotated[ForbiddenRun, Tag("run")] | Annotated[ForbiddenTogether, Tag("together")], Discriminator(forbid_tag)
]


class ForbiddenChoices:
    """Matches policies against the `forbid` of a space.

    Args:
        rules: The entries of `forbid`.
    """

    def __init__(self, rules: Iterable[ForbidRule]) -> None:
        self._together: list[dict[int, set[LayerChoice]]] = []
        self._runs: list[tuple[set[LayerChoice], int]] = []
        for rule in rules:
            if isinstance(rule, ForbiddenRun):
                self._runs.append((canonical_choices(rule.consecutive), rule.more_than))
            else:
                self._together.append({layer: canonical_choices(choices) for layer, choices in rule.root.items()})

    def match(self, choices: Sequence[LayerChoice]) -> bool:
        """True where a policy is forbidden.

        Args:
            choices: The choice of each layer, of a policy in canonical form.
        """
        if any(all(choices[layer] in forbidden for layer, forbidden in rule.items()) for rule in self._together):
            return True
        return any(longest_run(choice in counted for choice in choices) > limit for counted, limit in self._runs)


def longest_run(flags: Iterable[bool]) -> int:
    """The length of the longest run of true flags."""
    longest = current = 0
    for flag in flags:
        current = current + 1 if flag else 0
        longest = max(longest, current)
    return longest


def canonical_choices(entries: Iterable[Any]) -> set[LayerChoice]:
    """The choices that the entries of a rule stand for, as given and in the form that a canonical policy has."""
    choices = expanded(entries)
    return {*choices, *(Policy.of([choice]).choice(0) for choice in choices)}


def forbids_dense(rule: ForbidRule) -> bool:
    """True where a rule forbids the dense model."""
    choice_lists = [rule.consecutive] if isinstance(rule, ForbiddenRun) else [*rule.root.values()]
    return all(KEEP in expanded(choices) for choices in choice_lists)
