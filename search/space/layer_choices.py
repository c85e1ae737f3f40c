"""The choices of a space: what each range of layers may do, and how image tokens may be ranked."""

import re
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar

from pydantic import BeforeValidator, Field, StrictBool, model_validator

from ...policies.choice import (
    CHOICES,
    KEEP,
    LAST_LAYER,
    AttentionRole,
    LayerChoice,
    Ranking,
    Ratio,
    Rest,
    Sha256,
    StrictModel,
    Width,
    WidthSelection,
    Window,
    Wiring,
)
from ...policies.rankings.files import ALPHA
from ...policies.schedules import Changing
from ...policies.scores.table import DESCRIPTION, RELEVANCE, ROUTER, ScoreName
from ...policies.scores.token_selection import Dropped, TokenSelection
from ...policies.wording import nearest, short

RANGE = r"^(all|[0-9]+|[0-9]+-([0-9]+|last))$"
SUBLAYER_KEYS = ("attention", "ffn", "wiring")  # a named choice sets these three
KEYS = (*SUBLAYER_KEYS, "norm", "token_ratio", "phase", "tokens", "rest", "evict", "ffn_ratio", "head_ratio", "window")

T = TypeVar("T")
# A value, or a list of values that the search chooses from.
Options: TypeAlias = T | Annotated[list[T], Field(min_length=1)]


def as_options(value: Any) -> list[Any]:
    """The distinct options of a key, in the order of the file; a single value is the only option."""
    found = value if isinstance(value, list) else [value]
    return [entry for index, entry in enumerate(found) if entry not in found[:index]]


def is_default(value: Any) -> bool:
    """True for the default of a key that the dump of a space omits.

    Keys that were added later are omitted at their default, so that the fingerprints of older studies stay the same.
    """
    return value in (None, "own", "both", "all", "run", "sequential", False, [])


def is_default_rest(value: Any) -> bool:
    """True for the default of `rest`, which is an option of its own for `attention` and `ffn`."""
    return bool(value == KEEP.rest)


def check_choice(value: Any) -> Any:
    """Check a choice before pydantic does, so that the message can name the nearest known choice."""
    if isinstance(value, str) and value not in CHOICES:
        known = [*CHOICES, "token_ratio", "ffn_ratio", "head_ratio"]
        raise ValueError(f"unknown choice {short(value)}; {nearest(value, known)}")
    if not isinstance(value, str | Mapping | Combination):
        names = ", ".join(CHOICES)
        raise ValueError(f"found {short(value)}, expected one of {names}, or a mapping such as {{token_ratio: 0.5}}")
    return value


def check_range(value: Any) -> Any:
    """Check a range before pydantic does, so that one message lists every form."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if not re.fullmatch(RANGE, text):
        raise ValueError(f"found {short(value)}, expected one layer such as 5, or 2-31, 2-last or all")
    if any(int(number) > LAST_LAYER for number in re.findall(r"\d+", text)):
        raise ValueError(f"found {short(value)}, expected layers up to {LAST_LAYER}")
    return value


Name = Annotated[str, Field(json_schema_extra={"enum": [*CHOICES]})]
OMIT_DEFAULT, OMIT_REST = Field(exclude_if=is_default), Field(exclude_if=is_default_rest)
# Null stands for none.
Windows: TypeAlias = Window | Annotated[list[Window | None], Field(min_length=1)] | None
OMIT_NONE = Field(exclude_if=lambda value: value is None)
OMIT_ZERO = Field(exclude_if=lambda value: value == 0)


class Combination(StrictModel):
    """A choice without a short name: the keys of a policy, or a name with a scope; lists give every combination.

    Attributes:
        choice: Short names, instead of `attention`, `ffn` and `wiring`.
        attention: Run the attention sublayer, skip it, or let tokens be seen without asking (`keys_only`), or ask
            without being seen (`queries_only`).
        ffn: Run the feed-forward sublayer or skip it.
        wiring: `parallel` feeds both sublayers the layer's input, `pair` feeds it to the next layer too.
        norm: The norm that feeds the FFN of a parallel wiring: its `own`, or the attention's, `shared`.
        token_ratio: The share of the image tokens, 0 to 1, that the layer processes.
        phase: When the choice applies: in `prefill`, in `decode`, or in `both`.
        tokens: The tokens that the choice applies to: `all`, the `image` tokens, or the others, `text`.
        rest: What the image tokens do that a token ratio leaves out: `skip`, `keys_only`, `attention` or `ffn`.
        evict: True where their keys and values leave the layer's cache after the prompt.
        ffn_ratio: The share of the FFN's channels, above 0 and up to 1, that run.
        head_ratio: The share of the attention's heads, above 0 and up to 1, that its tokens are served by.
        window: How many rows and columns away an image token sees others; null for no window.
    """

    choice: Annotated[Options[Literal["keep"] | Changing] | None, OMIT_DEFAULT] = None
    attention: AttentionRole = "run"
    ffn: Literal["run", "skip"] = "run"
    wiring: Wiring = "sequential"
    norm: Annotated[Options[Literal["own", "shared"]], OMIT_DEFAULT] = "own"
    token_ratio: Ratio | Annotated[list[Ratio], Field(min_length=1)] | None = None
    phase: Annotated[Options[Literal["both", "prefill", "decode"]], OMIT_DEFAULT] = "both"
    tokens: Annotated[Options[Literal["all", "image", "text"]], OMIT_DEFAULT] = "all"
    rest: Annotated[Options[Rest], OMIT_REST] = "skip"
    evict: Annotated[Options[StrictBool], OMIT_DEFAULT] = False
    ffn_ratio: Annotated[Width | Annotated[list[Width], Field(min_length=1)] | None, OMIT_DEFAULT] = None
    head_ratio: Annotated[Width | Annotated[list[Width], Field(min_length=1)] | None, OMIT_DEFAULT] = None
    window: Annotated[Windows, OMIT_NONE] = None

    @model_validator(mode="after")
    def _name_or_keys(self) -> Self:
        beside = [key for key in SUBLAYER_KEYS if getattr(self, key) != getattr(KEEP, key)]
        if self.choice is not None and beside:
            raise ValueError(f"found choice beside {' and '.join(beside)}, expected one or the other")
        return self

    def choices(self) -> list[LayerChoice]:
        """The choice of each combination, in canonical form."""
        by_keys = LayerChoice(attention=self.attention, ffn=self.ffn, wiring=self.wiring)
        bases = [by_keys] if self.choice is None else [CHOICES[name] for name in as_options(self.choice)]
        keys = ("norm", "phase", "tokens", "token_ratio", "rest", "evict", "ffn_ratio", "head_ratio", "window")
        return [
            with_keys(base, zip(keys, values, strict=True))
            for base in bases
            for values in product(*(as_options(getattr(self, key)) for key in keys))
        ]


# An entry of a list of choices: one choice by its name, or a mapping that stands for several.
ChoiceEntry: TypeAlias = Annotated[Name | Combination, BeforeValidator(check_choice)]


def expanded(entries: Iterable[str | Combination]) -> list[LayerChoice]:
    """The distinct choices that names and combinations stand for, in their order."""
    found: list[LayerChoice] = []
    for entry in entries:
        found += [CHOICES[entry]] if isinstance(entry, str) else entry.choices()
    return list(dict.fromkeys(found))


def with_keys(base: LayerChoice, values: Iterable[tuple[str, Any]]) -> LayerChoice:
    """A choice with other values of some keys, in canonical form."""
    return base.model_copy(update=dict(values)).canonical()


class LayerRule(StrictModel):
    """What a range of layers may do: a list of choices, keys with lists of values, or both.

    Each key with a list is a parameter of its own. The rule stands for the product of `choices` and of all lists.

    Attributes:
        range: `5`, `2-31` (both ends included), `2-last` or `all`.
        choices: Names, or mappings such as `{token_ratio: [0.75, 0.5]}` or `{choice: skip_ffn, phase: decode}`;
            beside other keys the default is `keep` alone.
        attention: `run`, `skip`, `keys_only` (tokens are seen without asking), `queries_only` (they ask without being
            seen), or a list of them.
        ffn: `run`, `skip`, or the list of both.
        wiring: `sequential`, `parallel`, `pair`, or a list of them. A layer that an earlier pair contains begins none.
        norm: `own`, `shared`, or the list of both.
        token_ratio: Shares of the image tokens that the layer processes; 1 is all of them.
        phase: When the choice applies: in `prefill`, in `decode`, or in `both`.
        tokens: The tokens that the choice applies to: `all`, the `image` tokens, or the others, `text`.
        rest: What the image tokens do that a token ratio leaves out: `skip`, `keys_only`, `attention`, `ffn`, or a list
            of them.
        evict: True where their keys and values leave the layer's cache after the prompt; or the list of both.
        ffn_ratio: Shares of the FFN's channels that run; 1 is all of them.
        head_ratio: Shares of the attention's heads that its tokens are served by; 1 is all of them.
        window: How many rows and columns away an image token sees others, such as `[null, 2]`; null for no window.
    """

    range: Annotated[
        Annotated[int, Field(ge=0, le=LAST_LAYER)] | Annotated[str, Field(pattern=RANGE)],
        BeforeValidator(check_range),
    ] = "all"
    choices: Annotated[list[ChoiceEntry], Field(min_length=1)] = ["keep"]
    attention: Annotated[Options[AttentionRole], OMIT_DEFAULT] = "run"
    ffn: Annotated[Options[Literal["run", "skip"]], OMIT_DEFAULT] = "run"
    wiring: Annotated[Options[Wiring], OMIT_DEFAULT] = "sequential"
    norm: Annotated[Options[Literal["own", "shared"]], OMIT_DEFAULT] = "own"
    token_ratio: Annotated[Ratio | Annotated[list[Ratio], Field(min_length=1)] | None, OMIT_DEFAULT] = None
    phase: Annotated[Options[Literal["both", "prefill", "decode"]], OMIT_DEFAULT] = "both"
    tokens: Annotated[Options[Literal["all", "image", "text"]], OMIT_DEFAULT] = "all"
    rest: Annotated[Options[Rest], OMIT_REST] = "skip"
    evict: Annotated[Options[StrictBool], OMIT_DEFAULT] = False
    ffn_ratio: Annotated[Width | Annotated[list[Width], Field(min_length=1)] | None, OMIT_DEFAULT] = None
    head_ratio: Annotated[Width | Annotated[list[Width], Field(min_length=1)] | None, OMIT_DEFAULT] = None
    window: Annotated[Windows, OMIT_NONE] = None

    @model_validator(mode="after")
    def _choices_or_keys(self) -> Self:
        if not self.model_fields_set & {"choices", *KEYS}:
            raise ValueError("found no choices, expected `choices: [...]` or keys such as `ffn: [run, skip]`")
        if self.choices != ["keep"]:
            listed = expanded(self.choices)
            twice = [key for key in self.keys() if any(getattr(one, key) != getattr(KEEP, key) for one in listed)]
            if twice:
                raise ValueError(f"found {' and '.join(twice)} in choices and as a key, expected one or the other")
        return self

    def keys(self) -> dict[str, list[Any]]:
        """The options of each key that differs from its default, in the order of `KEYS`."""
        given = ((key, getattr(self, key)) for key in KEYS)
        return {key: as_options(value) for key, value in given if value not in (None, getattr(KEEP, key))}

    def expanded(self) -> list[LayerChoice]:
        """The distinct choices of the rule, in the order of the file."""
        bases, keys = expanded(self.choices), self.keys()
        if not keys:
            return bases
        combinations = (
            with_keys(base, zip(keys, values, strict=True)) for base in bases for values in product(*keys.values())
        )
        return list(dict.fromkeys(combinations))

    def span(self, num_layers: int) -> tuple[int, int]:
        """The first and the last layer of the range."""
        first, _, last = str(self.range).partition("-")
        if first == "all":
            return 0, num_layers - 1
        return int(first), num_layers - 1 if last == "last" else int(last or first)


class SelectionOptions(StrictModel):
    """How image tokens are ranked where a layer has a token ratio; the search chooses one value of a list.

    Attributes:
        score: The score that ranks image tokens; see `scores.table`.
        diversity: With the score `relevance`, the weight of `diverse` in a mixture of the two, 0 to 1; of no effect
            with other scores.
        reselect: `each_layer` selects from all image tokens in every layer; `once` removes a dropped token from all
            later layers, also from those without a ratio.
        dropped: What becomes of a token that is removed for good: `discard`, or `merge` into the remaining one that it
            resembles most; of no effect with `each_layer`.
    """

    score: Annotated[Options[ScoreName], Field(description=f"The score that ranks them. {DESCRIPTION}")] = "attention"
    diversity: Annotated[Options[Ratio], OMIT_ZERO] = 0.0
    reselect: Options[Literal["each_layer", "once"]] = "each_layer"
    dropped: Annotated[Options[Dropped], Field(exclude_if=lambda value: value == "discard")] = "discard"

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if ROUTER in as_options(self.score):
            hint = f"search with another score, and train a found policy with `skipsearch recover --method {ROUTER}`"
            raise ValueError(f"found score {ROUTER}, whose routers are trained for one policy; {hint}")
        if any(as_options(self.diversity)) and RELEVANCE not in as_options(self.score):
            raise ValueError(f"found diversity without the score {RELEVANCE}, which it is a part of; add that score")
        if "merge" in as_options(self.dropped) and "once" not in as_options(self.reselect):
            raise ValueError("found dropped: merge without reselect: once: a token that may come back is not dropped")
        return self

    def selection(self, values: Mapping[str, Any]) -> TokenSelection:
        """The selection with one value of each key; keys that have no effect beside the others keep their default."""
        chosen = {key: values[key] for key in type(self).model_fields}
        if chosen["score"] != RELEVANCE:
            chosen["diversity"] = 0.0
        if chosen["reselect"] != "once":
            chosen["dropped"] = "discard"
        return TokenSelection(**chosen)


class WidthOptions(StrictModel):
    """How channels and heads are ranked where a layer has a share of them; the search chooses one value of a list.

    Attributes:
        ranking: `weights` ranks a channel by the product of the norms of its weights, and a group of heads by that of
            its value and its output projection; `first` takes channels and heads in the order of the checkpoint;
            `energy` ranks a channel by what it adds to the FFN's output on examples of the search split, once a study,
            and a group of heads by what it adds to the attention's.
        alpha: With `energy`, the weight of a channel's highest energy against the sum over all tokens, 0 to 1.
        file: With `energy`, a ranking that `skipsearch rank` made, relative to the space file; None makes one.
        sha256: Of that file; another one is refused.
    """

    ranking: Options[Ranking] = "weights"
    # Left out at their defaults, so that fingerprints stay what they were.
    alpha: Annotated[Ratio, Field(exclude_if=lambda value: value == ALPHA)] = ALPHA
    file: Annotated[str | None, Field(exclude_if=lambda name: name is None)] = None
    sha256: Annotated[Sha256 | None, Field(exclude_if=lambda digest: digest is None)] = None

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        given = [key for key in ("alpha", "file", "sha256") if key in self.model_fields_set]
        if given and "energy" not in as_options(self.ranking):
            raise ValueError(f"found {given[0]} without the ranking energy, which it is a part of; add that ranking")
        if self.sha256 is not None and self.file is None:
            raise ValueError("found sha256 without file, expected the file that it belongs to")
        if self.file is not None and "alpha" in self.model_fields_set and self.sha256 is None:
            raise ValueError("found alpha beside file, expected one of them: a ranking that exists has its own alpha")
        return self

    def selection(self, ranking: Ranking) -> WidthSelection:
        """The selection with one ranking; `energy` names its file once that exists."""
        if ranking != "energy" or self.file is None or self.sha256 is None:
            return WidthSelection(ranking=ranking)
        return WidthSelection(ranking=ranking, file=PurePath(self.file).name, sha256=self.sha256)
