"""What ties layers together in a space: groups that choose as one, and combinations that may not occur."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, RootModel, Tag

from ...policies.choice import KEEP, LAST_LAYER, LayerChoice, StrictModel
from ...policies.policy import Policy
from .layer_choices import Entry, Options, expanded

Layer: TypeAlias = Annotated[int, Field(ge=0, le=LAST_LAYER)]
Group: TypeAlias = Annotated[list[Layer], Field(min_length=2)]


def as_list(value: Any) -> Any:
    """Let a list of one be written without brackets."""
    return value if isinstance(value, list) else [value]


# One choice or a list of them, each as in a rule of `layers`.
Choices: TypeAlias = Annotated[
    list[Entry], BeforeValidator(as_list, json_schema_input_type=Options[Entry]), Field(min_length=1)
]


class Every(StrictModel):
    """Groups of consecutive layers.

    Attributes:
        every: Layers of a group, counted from the first layer of each rule's range; the last group of a range has what
            is left.
    """

    every: Annotated[int, Field(ge=2, strict=True)]


class Run(StrictModel):
    """Too many consecutive layers with some choice.

    Attributes:
        consecutive: The choice, or a list of them, of which each layer of the run has one.
        more_than: The longest run that may occur.
    """

    consecutive: Choices
    more_than: Annotated[int, Field(ge=1, strict=True)]


class Together(RootModel[Annotated[dict[Layer, Choices], Field(min_length=2)]]):
    """Choices of several layers that may not occur together: by layer, a choice or a list of them."""

    model_config = ConfigDict(frozen=True, json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,4}$"}})


def kind_of_rule(value: Any) -> str:
    """Which of the two a rule is to be read as."""
    is_run = isinstance(value, Run) or (isinstance(value, Mapping) and {"consecutive", "more_than"} & {*value})
    return "run" if is_run else "together"


Rule: TypeAlias = Annotated[
    Annotated[Run, Tag("run")] | Annotated[Together, Tag("together")], Discriminator(kind_of_rule)
]


class Forbidden:
    """Tells which policies a space forbids.

    Args:
        rules: The space's `forbid`.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._together: list[dict[int, set[LayerChoice]]] = []
        self._runs: list[tuple[set[LayerChoice], int]] = []
        for rule in rules:
            if isinstance(rule, Run):
                self._runs.append((spellings(rule.consecutive), rule.more_than))
            else:
                self._together.append({layer: spellings(choices) for layer, choices in rule.root.items()})

    def holds(self, choices: Sequence[LayerChoice]) -> bool:
        """True where the layers' choices, in canonical form, break a rule.

        Args:
            choices: One choice a layer.
        """
        if any(all(choices[layer] in known for layer, known in rule.items()) for rule in self._together):
            return True
        return any(longest_run(choice in known for choice in choices) > most for known, most in self._runs)


def longest_run(flags: Iterable[bool]) -> int:
    """The most consecutive flags that are true."""
    longest = current = 0
    for flag in flags:
        current = current + 1 if flag else 0
        longest = max(longest, current)
    return longest


def spellings(entries: Iterable[Any]) -> set[LayerChoice]:
    """The choices that entries of a rule stand for, as they stand in a canonical policy."""
    found = expanded(entries)
    return {*found, *(Policy.of([choice]).choice(0) for choice in found)}


def forbids_dense(rule: Rule) -> bool:
    """True where a model without a policy breaks a rule."""
    parts = [rule.consecutive] if isinstance(rule, Run) else [*rule.root.values()]
    return all(KEEP in expanded(choices) for choices in parts)
