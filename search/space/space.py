"""The search space: what may happen in each layer, what is measured, and what counts as better."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ...evaluators.base import Direction, Metric, evaluator_class
from ...evaluators.subject import ModelSpec
from ...policies.choice import KEEP, LayerChoice, StrictModel
from ...policies.errors import SpaceError
from ...policies.wording import nearest, short
from ..baselines.registry import BASELINES, SOURCES
from .constraint import CONSTRAINT_JSON_SCHEMA, Constraint, as_constraint, with_metrics
from .evaluator_defaults import MOST, shared
from .fingerprint import Digests, by_content
from .guide_metrics import ANSWER_LOSS, DIVERGENCE, QUALITY
from .layer_choices import LayerRule, SelectionOptions, is_default
from .schedules import Pattern
from .ties_and_bans import Every, Group, Rule, Together

SCHEMA: Final = "skipsearch/space/v1"
OPTIONAL = ("search", "workers", "constraints")

START_NAMES = ("schedules", *SOURCES)  # the settings of the space's own schedules, and published rules
DEFAULT_BASELINES = ("schedules", *(name for name, rule in BASELINES.items() if not rule.needs_statistics))

Count = Annotated[int, Field(ge=1, strict=True)]


def start_name(value: Any) -> Any:
    """Check a rule's name here, so that the message can state the nearest one."""
    if isinstance(value, str) and value not in START_NAMES:
        raise ValueError(f"unknown rule {short(value)}; {nearest(value, [*STARTS])}")
    return value


StartName = Annotated[str, BeforeValidator(start_name), Field(json_schema_extra={"enum": [*START_NAMES]})]


class Stop(StrictModel):
    """What ends a search before its trials are spent.

    Attributes:
        stagnation: Stop when the hypervolume has not grown in so many measured trials, counted from the first policy
            that improves on dense.
        gain: What counts as growth: a larger share of the hypervolume before those trials than this.
        minutes: End the search, the confirmation of its front included, after so much time, that of a search which is
            resumed included. No trial begins when the time is left that the front and the report take.
    """

    stagnation: Count | None = None
    gain: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.005
    minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class Racing(StrictModel):
    """How a candidate is judged on few examples first, and on more only while it may belong to the front.

    Attributes:
        confidence: With what probability one that belongs to the front, as it is then, is not dropped on few examples.
        step: Share of the examples that is answered from one look to the next, though at least one batch.
        patience: How many times as old the search has to be before one that still looks like a member of the front
            answers more; at the end all do that are expected to add to it. `none` lets everyone answer at once until it
            is known to be out. It is for samplers that learn from a part of the examples, hence for `auto`.
    """

    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    step: Annotated[float, Field(gt=0, le=1)] = 0.0625
    patience: Annotated[float, Field(ge=1, allow_inf_nan=False)] | Literal["none"] = 3.0


class Search(StrictModel):
    """How the search goes.

    Attributes:
        trials: Policies to measure, the dense baseline among them; duplicates do not count.
        seed: Of the sampler and of all random inputs.
        sampler: Our own (`auto`), or Optuna's NSGA-II, NSGA-III, TPE or random.
        start: `rules` begins with the space's schedules and with what published rules say that look at nothing but a
            layer's place; a list names the rules; `none` leaves the start to the sampler.
        max_failures: Stop after so many failed trials in a row.
        stop: What else ends the search.
        racing: When a candidate is given up on few examples; `none` measures everyone on all of them.
        guide: `auto` lets the loss of the right answers, or the divergence from dense where no right answers are known,
            guide the search to where accuracy is worth measuring; `none` searches by accuracy alone.
    """

    trials: Count = 200
    seed: Annotated[int, Field(ge=0, lt=2**32, strict=True)] = 0
    sampler: Literal["auto", "nsga2", "nsga3", "tpe", "random"] = "auto"
    start: Literal["rules", "none"] | Annotated[list[StartName], Field(min_length=1)] = "rules"
    max_failures: Count = 10
    stop: Stop = Stop()
    racing: Racing | Literal["none"] = Racing()
    guide: Annotated[Literal["auto", "none"], Field(exclude_if=lambda value: value == "auto")] = "auto"

    @property
    def rules(self) -> list[str]:
        """The rules that the search begins with, by name."""
        named = {"rules": DEFAULT_BASELINES, "none": ()}
        return [*dict.fromkeys(named[self.start] if isinstance(self.start, str) else self.start)]


class Workers(StrictModel):
    """Who measures.

    Attributes:
        count: Models loaded at the same time; `auto` is as many as the nodes have room for, by `cpus` and `gpus`.
        gpus: GPUs of each worker.
        cpus: Cores of each worker, which is also its number of threads.
        address: A Ray cluster; none starts a local one.
        timeout: Seconds that a worker may take for a policy; a trial that takes longer fails. `auto` is a minute and
            twenty times what the dense model took, which itself may take six hours.
        runner: Ray actors under one driver, or Ray Tune.
    """

    count: Count | Literal["auto"] = "auto"
    gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["auto"] = "auto"
    cpus: Count = 1
    address: str | None = None
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["auto"] = "auto"
    runner: Literal["actors", "tune"] = "actors"


class Space(StrictModel):
    """A search space; see `spaces/README.md` for every key.

    Attributes:
        schema: The kind of the file and the version of its keys.
        model: The model to search, and how to load it.
        layers: What may happen where; a layer without a rule is kept. May be left out beside schedules.
        schedules: Patterns over all layers, of which a policy takes one or none; `layers` goes over it where it does
            not keep.
        tied: Groups of layers that take one choice together: lists of layers, or `every: N` consecutive ones.
        forbid: Choices of several layers that may not occur together, and runs of a choice that are too long.
        token_selection: How image tokens are ranked where a layer has a token ratio; of a list the search chooses.
        evaluate: What is measured: options by evaluator; nothing behind a name means its defaults.
        objectives: The metrics to search for, each with its direction.
        constraints: Bounds on metrics; a trial that breaks one stops there.
        search: How the search goes.
        workers: Who measures.
    """

    schema_: Literal["skipsearch/space/v1"] = Field(alias="schema")
    model: ModelSpec
    layers: list[LayerRule]
    schedules: Annotated[list[Pattern], Field(min_length=1, exclude_if=is_default)] = []
    tied: Annotated[list[Group] | Every, Field(exclude_if=is_default)] = []
    forbid: Annotated[list[Rule], Field(exclude_if=is_default)] = []
    token_selection: SelectionOptions = SelectionOptions()
    evaluate: Annotated[dict[str, dict[str, Any]], Field(min_length=1, max_length=MOST)]
    objectives: Annotated[dict[str, Direction], Field(min_length=1)]
    constraints: Annotated[
        dict[str, Annotated[Constraint, BeforeValidator(as_constraint), CONSTRAINT_JSON_SCHEMA]],
        AfterValidator(with_metrics),
    ] = {}
    search: Search = Search()
    workers: Workers = Workers()

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_defaults(cls, data: Any) -> Any:
        """`flops:` with nothing behind it means its defaults; beside schedules, `layers` may be missing."""
        if not isinstance(data, Mapping):
            return data
        tidy = {key: {} if value is None and key in OPTIONAL else value for key, value in data.items()}
        if tidy.get("schedules"):
            tidy["layers"] = [] if tidy.get("layers") is None else tidy["layers"]
        if isinstance(tidy.get("evaluate"), Mapping):
            given = shared(tidy["evaluate"])
            tidy["evaluate"] = {name: {} if options is None else options for name, options in given.items()}
        return tidy

    def metrics(self) -> dict[str, Metric]:
        """Every metric that will be measured."""
        return {name: metric for key in self.evaluate for name, metric in evaluator_class(key).metrics.items()}

    @property
    def may_be_guided(self) -> bool:
        """True where a loss may guide the search; whether the tasks have enough examples is known when they are loaded.

        It takes a sampler that learns from it, and a race, for a policy is paused before its accuracy is measured.
        """
        search = self.search
        ours = search.guide == "auto" and search.sampler == "auto" and search.racing != "none"
        usual = QUALITY in self.evaluate and self._scored() == [QUALITY]
        return ours and usual and ANSWER_LOSS not in self.evaluate and self.workers.runner == "actors"

    def _scored(self) -> list[str]:
        """The objectives that are measured on examples."""
        kinds = (evaluator_class(name) for name in self.evaluate)
        scored = {metric for kind in kinds if kind.splits for metric in kind.metrics}
        return [name for name in self.objectives if name in scored]

    def guide_options(self) -> dict[str, Any]:
        """The options of an evaluator that guides: the examples and prompts of accuracy."""
        return {name: shared({QUALITY: self.evaluate[QUALITY], name: {}})[name] for name in (ANSWER_LOSS, DIVERGENCE)}

    def domains(self, num_layers: int) -> list[list[LayerChoice]]:
        """What may happen in each layer, first to last; a layer without a rule is kept.

        Raises:
            SpaceError: a rule, a group or what is forbidden reaches beyond the last layer.
        """
        rules = self.rules(num_layers)
        return [[KEEP] if rule is None else rule.expanded() for rule in rules]

    def rules(self, num_layers: int) -> list[LayerRule | None]:
        """The rule of each layer, first to last; None for a layer that is kept.

        Raises:
            SpaceError: see `domains`.
        """
        for where, last in self._reaches(num_layers).items():
            if last >= num_layers:
                raise SpaceError(
                    f"the space speaks of layer {last}, model has layers 0 to {num_layers - 1}",
                    [f"{where}, model {self.model.id}"],
                    "use `last` for the last layer, as in `range: 2-last`" if where.startswith("range") else None,
                )
        found: list[LayerRule | None] = [None] * num_layers
        for rule in self.layers:
            first, last = rule.span(num_layers)
            found[first : last + 1] = [rule] * (last + 1 - first)
        return found

    def _reaches(self, num_layers: int) -> dict[str, int]:
        """By what speaks of layers, the highest that it names."""
        ranges = {f"range {rule.range}": rule.span(num_layers)[1] for rule in self.layers}
        groups = {f"tied {group}": max(group) for group in self.tied} if isinstance(self.tied, list) else {}
        together = [rule.root for rule in self.forbid if isinstance(rule, Together)]
        return ranges | groups | {f"forbid of layers {', '.join(map(str, rule))}": max(rule) for rule in together}

    def groups(self, num_layers: int) -> list[tuple[int, ...]]:
        """The layers that take one choice together, by their first; a layer that is tied to none is alone."""
        if isinstance(self.tied, Every):
            size = self.tied.every
            spans = [rule.span(num_layers) for rule in self.layers]
            tied = [
                tuple(range(start, min(start + size, last + 1)))
                for first, last in spans
                for start in range(first, last + 1, size)
            ]
        else:
            tied = [tuple(sorted(group)) for group in self.tied]
        alone = {*range(num_layers)} - {layer for group in tied for layer in group}
        return sorted([*tied, *((layer,) for layer in alone)])

    def fingerprint(self, digests: Digests | None = None) -> str:
        """Equal for spaces whose trials can stand in one study: all but when search and trials end, and the workers.

        Local models and tasks count by what they contain, to the last byte, wherever they lie.
        """
        ends = {"trials", "max_failures", "stop", "racing"}
        data = self.model_dump(mode="json", exclude={"workers": True, "search": ends})
        return hashlib.sha256(json.dumps(by_content(data, digests or Digests()), sort_keys=True).encode()).hexdigest()[
            :16
        ]


class LoadedSpace(StrictModel):
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
