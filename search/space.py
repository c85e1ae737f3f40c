"""The search space: what may happen in each layer, what is measured, and what counts as better."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_serializer, model_validator

from ..evaluators.base import Direction, Metric, evaluator_class
from ..evaluators.subject import ModelSpec
from ..policies.choice import KEEP, NAMED, LayerChoice, Ratio
from ..policies.errors import SpaceError
from ..policies.policy import LAST_LAYER, Policy, TokenSelection
from ..policies.wording import nearest, short
from .content import by_content

SCHEMA: Final = "skipsearch/space/v1"
RANGE = r"^(all|[0-9]+|[0-9]+-([0-9]+|last))$"
NUMBER = r"([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+)"
BOUND = rf"(>=|<=)\s*(?:{NUMBER}\s*\*\s*dense|{NUMBER}|dense\s*(?:([+-])\s*{NUMBER})?)"
OPTIONAL = ("search", "workers", "constraints")

Count = Annotated[int, Field(ge=1, strict=True)]


class Part(BaseModel):
    """Base of everything that stands in a space file: frozen, and no key is ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Combination(Part):
    """A choice that has no short name: keys as in a policy, `token_ratio` with one or several values."""

    attention: Literal["run", "skip"] = "run"
    ffn: Literal["run", "skip"] = "run"
    wiring: Literal["sequential", "parallel"] = "sequential"
    token_ratio: Ratio | Annotated[list[Ratio], Field(min_length=1)] | None = None

    def choices(self) -> list[LayerChoice]:
        """One choice for each token ratio."""
        ratios = self.token_ratio if isinstance(self.token_ratio, list) else [self.token_ratio]
        rest = {"attention": self.attention, "ffn": self.ffn, "wiring": self.wiring}
        return [LayerChoice.model_validate({**rest, "token_ratio": ratio}).canonical() for ratio in ratios]


def choice_name(value: Any) -> Any:
    """Check a short name here, so that the message can state the nearest one."""
    if isinstance(value, str) and value not in NAMED:
        raise ValueError(f"unknown choice {short(value)}; {nearest(value, [*NAMED, 'token_ratio'])}")
    if not isinstance(value, str | Mapping | Combination):
        names = ", ".join(NAMED)
        raise ValueError(f"found {short(value)}, expected one of {names}, or a mapping such as {{token_ratio: 0.5}}")
    return value


def layer_range(value: Any) -> Any:
    """Check a range here, so that one message tells all its forms."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if not re.fullmatch(RANGE, text):
        raise ValueError(f"found {short(value)}, expected one layer such as 5, or 2-31, 2-last or all")
    if any(int(number) > LAST_LAYER for number in re.findall(r"\d+", text)):
        raise ValueError(f"found {short(value)}, expected layers up to {LAST_LAYER}")
    return value


Name = Annotated[str, Field(json_schema_extra={"enum": [*NAMED]})]


class LayerRule(Part):
    """What may happen in a range of layers.

    Attributes:
        range: `5`, `2-31` (both ends included), `2-last` or `all`.
        choices: Names, or mappings such as `{token_ratio: [0.75, 0.5]}`.
    """

    range: Annotated[
        Annotated[int, Field(ge=0, le=LAST_LAYER)] | Annotated[str, Field(pattern=RANGE)],
        BeforeValidator(layer_range),
    ] = "all"
    choices: Annotated[list[Annotated[Name | Combination, BeforeValidator(choice_name)]], Field(min_length=1)]

    def expanded(self) -> list[LayerChoice]:
        """Every choice once, in the order of the file."""
        found: list[LayerChoice] = []
        for entry in self.choices:
            found += [NAMED[entry]] if isinstance(entry, str) else entry.choices()
        return list(dict.fromkeys(found))

    def span(self, num_layers: int) -> tuple[int, int]:
        """First and last layer."""
        first, _, last = str(self.range).partition("-")
        if first == "all":
            return 0, num_layers - 1
        return int(first), num_layers - 1 if last == "last" else int(last or first)


class Constraint(Part):
    """A bound on a measured metric, as `>= 0.9 * dense`, `<= 12.5` or `>= dense - 0.02`.

    Attributes:
        text: As written.
        at_least: True for `>=`.
        factor: What the dense figure is multiplied by; 0 where the bound does not mention it.
        offset: What is added.
    """

    text: str
    at_least: bool
    factor: float
    offset: float

    @classmethod
    def parse(cls, text: Any) -> Self:
        """Read a bound.

        Raises:
            ValueError: it is not of one of the three forms.
        """
        match = re.fullmatch(BOUND, text.strip()) if isinstance(text, str) else None
        sign, factor, plain, direction, shift = match.groups() if match else ("", "inf", "", "", "")
        offset = float(plain) if plain else float(shift or 0) * (-1 if direction == "-" else 1)
        times = float(factor) if factor else float(not plain)
        if not (math.isfinite(times) and math.isfinite(offset)):
            known = "'>= 0.9 * dense', '>= dense - 0.02' or '<= 12.5'"
            raise ValueError(f"found {short(text)}, expected a bound such as {known}")
        return cls(text=text.strip(), at_least=sign == ">=", factor=times, offset=offset)

    @model_serializer
    def _as_written(self) -> str:
        return self.text

    def excess(self, value: float, dense: float) -> float:
        """How far a value lies beyond the bound; 0 or less where it holds."""
        bound = self.factor * dense + self.offset
        return bound - value if self.at_least else value - bound


def as_constraint(value: Any) -> Any:
    """Let a bound be written as a string."""
    return value if isinstance(value, Constraint) else Constraint.parse(value)


AS_TEXT = WithJsonSchema({"type": "string", "pattern": rf"^\s*{BOUND}\s*$"})


class Search(Part):
    """How the search goes.

    Attributes:
        trials: Policies to measure, the dense baseline among them; duplicates do not count.
        seed: Of the sampler and of all random inputs.
        sampler: Optuna's NSGA-II, NSGA-III, TPE or random.
        start: `rules` begins with each choice on the last part of the layers; `none` leaves the start to the sampler.
        max_failures: Stop after so many failed trials in a row.
    """

    trials: Count = 200
    seed: Annotated[int, Field(ge=0, lt=2**32, strict=True)] = 0
    sampler: Literal["nsga2", "nsga3", "tpe", "random"] = "nsga2"
    start: Literal["rules", "none"] = "rules"
    max_failures: Count = 10


class Workers(Part):
    """Who measures.

    Attributes:
        count: Models loaded at the same time; `auto` is as many as the nodes have room for, by `cpus` and `gpus`.
        gpus: GPUs of each worker.
        cpus: Cores of each worker, which is also its number of threads.
        address: A Ray cluster; none starts a local one.
        runner: Ray actors under one driver, or Ray Tune.
    """

    count: Count | Literal["auto"] = "auto"
    gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["auto"] = "auto"
    cpus: Count = 1
    address: str | None = None
    runner: Literal["actors", "tune"] = "actors"


class Space(Part):
    """A search space; see `spaces/README.md` for every key.

    Attributes:
        schema: The kind of the file and the version of its keys.
        model: The model to search, and how to load it.
        layers: What may happen where; a layer without a rule is kept.
        token_selection: How image tokens are ranked where a layer has a token ratio.
        evaluate: What is measured: options by evaluator; nothing behind a name means its defaults.
        objectives: The metrics to search for, each with its direction.
        constraints: Bounds on metrics; a trial that breaks one stops there.
        search: How the search goes.
        workers: Who measures.
    """

    schema_: Literal["skipsearch/space/v1"] = Field(alias="schema")
    model: ModelSpec
    layers: Annotated[list[LayerRule], Field(min_length=1)]
    token_selection: TokenSelection = TokenSelection()
    evaluate: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    objectives: Annotated[dict[str, Direction], Field(min_length=1)]
    constraints: dict[str, Annotated[Constraint, BeforeValidator(as_constraint), AS_TEXT]] = {}
    search: Search = Search()
    workers: Workers = Workers()

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_defaults(cls, data: Any) -> Any:
        """`flops:` with nothing behind it means its defaults."""
        if not isinstance(data, Mapping):
            return data
        tidy = {key: {} if value is None and key in OPTIONAL else value for key, value in data.items()}
        if isinstance(tidy.get("evaluate"), Mapping):
            tidy["evaluate"] = {name: {} if options is None else options for name, options in tidy["evaluate"].items()}
        return tidy

    def metrics(self) -> dict[str, Metric]:
        """Every metric that will be measured."""
        return {name: metric for key in self.evaluate for name, metric in evaluator_class(key).metrics.items()}

    def domains(self, num_layers: int) -> list[list[LayerChoice]]:
        """What may happen in each layer, first to last; a layer without a rule is kept.

        Raises:
            SpaceError: a rule reaches beyond the last layer.
        """
        domains = [[KEEP] for _ in range(num_layers)]
        for rule in self.layers:
            first, last = rule.span(num_layers)
            if last >= num_layers:
                raise SpaceError(
                    f"the space speaks of layer {last}, model has layers 0 to {num_layers - 1}",
                    [f"range {rule.range}, model {self.model.id}"],
                    "use `last` for the last layer, as in `range: 2-last`",
                )
            for index in range(first, last + 1):
                domains[index] = rule.expanded()
        return domains

    def fingerprint(self) -> str:
        """Equal for spaces whose trials can stand in one study: all but the number of trials and the workers.

        Local models and tasks count by what they contain, wherever they lie.
        """
        data = self.model_dump(mode="json", exclude={"workers": True, "search": {"trials", "max_failures"}})
        return hashlib.sha256(json.dumps(by_content(data), sort_keys=True).encode()).hexdigest()[:16]


class LoadedSpace(Part):
    """A space with where it comes from.

    Attributes:
        space: The space, its paths absolute.
        name: The file's name without ending.
        text: The file, verbatim, with overrides noted at its end.
        model_id: The model as written; a path in it is relative to the file.
    """

    space: Space
    name: str
    text: str
    model_id: str


def policy_of(space: Space, choices: list[LayerChoice]) -> Policy:
    """The policy of one choice a layer, under the space's token selection."""
    return Policy.of(choices, space.token_selection)
