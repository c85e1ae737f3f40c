"""What a space offers the search to choose from: in a range of layers, and in how image tokens are ranked."""

import re
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from ...policies.choice import CHOICES, KEEP, LAST_LAYER, LayerChoice, Ratio, StrictModel
from ...policies.policy import Score
from ...policies.schedules import Changing
from ...policies.wording import nearest, short

RANGE = r"^(all|[0-9]+|[0-9]+-([0-9]+|last))$"
OWN_KEYS = ("attention", "ffn", "wiring")
KEYS = (*OWN_KEYS, "norm", "token_ratio", "phase", "tokens")

T = TypeVar("T")
Options: TypeAlias = T | Annotated[list[T], Field(min_length=1)]


def options(value: Any) -> list[Any]:
    """Every option of a key once, in the order of the file; a value by itself is the only one."""
    found = value if isinstance(value, list) else [value]
    return [entry for index, entry in enumerate(found) if entry not in found[:index]]


def is_default(value: Any) -> bool:
    """True for what a key that came later says by default: it is not written, so that older studies stay themselves."""
    return value in (None, "own", "both", "all", "run", "sequential", [])


def choice_name(value: Any) -> Any:
    """Check a short name here, so that the message can state the nearest one."""
    if isinstance(value, str) and value not in CHOICES:
        raise ValueError(f"unknown choice {short(value)}; {nearest(value, [*CHOICES, 'token_ratio'])}")
    if not isinstance(value, str | Mapping | Combination):
        names = ", ".join(CHOICES)
        raise ValueError(f"found {short(value)}, expected one of {names}, or a mapping such as {{token_ratio: 0.5}}")
    return value


Name = Annotated[str, Field(json_schema_extra={"enum": [*CHOICES]})]


class Combination(StrictModel):
    """A choice that has no short name: keys as in a policy, or a name with a scope; lists give every combination.

    Attributes:
        choice: Short names, in the place of `attention`, `ffn` and `wiring`.
        attention: Run the attention sublayer or skip it.
        ffn: Run the feed-forward sublayer or skip it.
        wiring: `parallel` feeds both sublayers the layer's input.
        norm: Where the wiring is parallel, which norm feeds the FFN: its `own`, or the attention's, `shared`.
        token_ratio: Share of the image tokens, 0 to 1, that the layer processes.
        phase: When the choice holds: in `prefill`, in `decode`, or in `both`.
        tokens: Whom the choice concerns: `all`, the `image` tokens, or the others, `text`.
    """

    choice: Annotated[Options[Literal["keep"] | Changing] | None, Field(exclude_if=is_default)] = None
    attention: Literal["run", "skip"] = "run"
    ffn: Literal["run", "skip"] = "run"
    wiring: Literal["sequential", "parallel"] = "sequential"
    norm: Annotated[Options[Literal["own", "shared"]], Field(exclude_if=is_default)] = "own"
    token_ratio: Ratio | Annotated[list[Ratio], Field(min_length=1)] | None = None
    phase: Annotated[Options[Literal["both", "prefill", "decode"]], Field(exclude_if=is_default)] = "both"
    tokens: Annotated[Options[Literal["all", "image", "text"]], Field(exclude_if=is_default)] = "all"

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        twice = [key for key in OWN_KEYS if getattr(self, key) != getattr(KEEP, key)]
        if self.choice is not None and twice:
            raise ValueError(f"found choice beside {' and '.join(twice)}, expected one or the other")
        return self

    def choices(self) -> list[LayerChoice]:
        """One choice for each combination, in canonical form."""
        own = LayerChoice(attention=self.attention, ffn=self.ffn, wiring=self.wiring)
        bases = [own] if self.choice is None else [CHOICES[name] for name in options(self.choice)]
        keys = ("norm", "phase", "tokens", "token_ratio")
        return [
            base.model_copy(update=dict(zip(keys, values, strict=True))).canonical()
            for base in bases
            for values in product(*(options(getattr(self, key)) for key in keys))
        ]


def expanded(entries: Iterable[str | Combination]) -> list[LayerChoice]:
    """Every choice that names and combinations stand for, once, in their order."""
    found: list[LayerChoice] = []
    for entry in entries:
        found += [CHOICES[entry]] if isinstance(entry, str) else entry.choices()
    return list(dict.fromkeys(found))


def layer_range(value: Any) -> Any:
    """Check a range here, so that one message tells all its forms."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if not re.fullmatch(RANGE, text):
        raise ValueError(f"found {short(value)}, expected one layer such as 5, or 2-31, 2-last or all")
    if any(int(number) > LAST_LAYER for number in re.findall(r"\d+", text)):
        raise ValueError(f"found {short(value)}, expected layers up to {LAST_LAYER}")
    return value


def combined(base: LayerChoice, values: Iterable[tuple[str, Any]]) -> LayerChoice:
    """A choice with the values of some keys, which it does not set itself, in canonical form."""
    return base.model_copy(update=dict(values)).canonical()


Given = Field(exclude_if=is_default)

# One choice, or a mapping that stands for several.
Entry: TypeAlias = Annotated[Name | Combination, BeforeValidator(choice_name)]


class LayerRule(StrictModel):
    """What may happen in a range of layers: a list of choices, keys that the search sets by themselves, or both.

    Each key with a list is a variable of its own: the rule stands for the product of `choices` and of all lists.

    Attributes:
        range: `5`, `2-31` (both ends included), `2-last` or `all`.
        choices: Names, or mappings such as `{token_ratio: [0.75, 0.5]}` or `{choice: skip_ffn, phase: decode}`;
            `keep` alone where a key is given and this is not.
        attention: `run`, `skip`, or the list of both.
        ffn: `run`, `skip`, or the list of both.
        wiring: `sequential`, `parallel`, or the list of both.
        norm: `own`, `shared`, or the list of both.
        token_ratio: Shares of the image tokens; 1 stands for all of them.
        phase: When what the layer leaves out is left out.
        tokens: For which tokens it is left out.
    """

    range: Annotated[
        Annotated[int, Field(ge=0, le=LAST_LAYER)] | Annotated[str, Field(pattern=RANGE)],
        BeforeValidator(layer_range),
    ] = "all"
    choices: Annotated[list[Annotated[Name | Combination, BeforeValidator(choice_name)]], Field(min_length=1)] = [
        "keep"
    ]
    attention: Annotated[Options[Literal["run", "skip"]], Given] = "run"
    ffn: Annotated[Options[Literal["run", "skip"]], Given] = "run"
    wiring: Annotated[Options[Literal["sequential", "parallel"]], Given] = "sequential"
    norm: Annotated[Options[Literal["own", "shared"]], Given] = "own"
    token_ratio: Annotated[Ratio | Annotated[list[Ratio], Field(min_length=1)] | None, Given] = None
    phase: Annotated[Options[Literal["both", "prefill", "decode"]], Given] = "both"
    tokens: Annotated[Options[Literal["all", "image", "text"]], Given] = "all"

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set & {"choices", *KEYS}:
            raise ValueError("found no choices, expected `choices: [...]` or keys such as `ffn: [run, skip]`")
        if self.choices != ["keep"]:
            listed = expanded(self.choices)
            twice = [key for key in self._given() if any(getattr(one, key) != getattr(KEEP, key) for one in listed)]
            if twice:
                raise ValueError(f"found {' and '.join(twice)} in choices and as a key, expected one or the other")
        return self

    def _given(self) -> list[str]:
        return [key for key in KEYS if not is_default(getattr(self, key))]

    def keys(self) -> dict[str, list[Any]]:
        """The values of each key that is given, in the order of `KEYS`."""
        return {key: options(getattr(self, key)) for key in self._given()}

    def expanded(self) -> list[LayerChoice]:
        """Every choice once, in the order of the file."""
        bases, keys = expanded(self.choices), self.keys()
        made = (combined(base, zip(keys, values, strict=True)) for base in bases for values in product(*keys.values()))
        return list(dict.fromkeys(made)) if keys else bases

    def span(self, num_layers: int) -> tuple[int, int]:
        """First and last layer."""
        first, _, last = str(self.range).partition("-")
        if first == "all":
            return 0, num_layers - 1
        return int(first), num_layers - 1 if last == "last" else int(last or first)


class SelectionOptions(StrictModel):
    """How the image tokens of a layer with a token ratio are ranked; of a list the search chooses one.

    Attributes:
        score: `attention` (of the last prompt token, in the nearest earlier layer that has it), `norm` (of the token's
            hidden state) or `uniform` (every k-th).
        reselect: `each_layer` lets a token that one layer left out come back in the next; `once` removes it for good,
            from all later layers, those without a ratio too.
    """

    score: Options[Score] = "attention"
    reselect: Options[Literal["each_layer", "once"]] = "each_layer"
