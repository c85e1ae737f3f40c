"""The search space as a value: the choices of each layer, what is measured, the objectives and the search."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ...evaluators.base import Direction, Metric, evaluator_class, metrics_of
from ...evaluators.subject import ModelSpec
from ...policies.choice import KEEP, LayerChoice, StrictModel
from ...policies.errors import SpaceError
from ...policies.policy import Policy
from .constraint import CONSTRAINT_JSON_SCHEMA, Constraint, as_constraint, with_metrics
from .evaluator_defaults import MAX_EVALUATORS, with_accuracy_defaults
from .fingerprint import Digests, with_digests
from .guide_metrics import ANSWER_LOSS, DIVERGENCE, QUALITY
from .layer_choices import LayerRule, SelectionOptions, WidthOptions, is_default
from .log import Log
from .models.named_model import ModelEntry
from .schedules import ScheduleOptions
from .search_settings import Search, StudySettings, Workers, is_policy_file
from .ties_and_bans import ForbiddenTogether, ForbidRule, Group, TieEvery

SCHEMA: Final = "skipsearch/space/v1"
OPTIONAL = ("search", "workers", "constraints", "log", "study")  # sections that may be empty


class Space(StrictModel):
    """A search space; see `spaces/README.md` for every key.

    Attributes:
        schema: The kind of the file and the version of its keys.
        model: The model to search, and how to load it.
        models: Several models in place of one: each has a study of its own, and a report shows them together.
        layers: The choices of ranges of layers; other layers are kept. May be left out beside schedules.
        schedules: Patterns over all layers, of which a policy takes one or none. Where `layers` chooses something other
            than `keep`, it overrides the schedule.
        tied: Groups of layers that share one choice: lists of layers, or `every: N` consecutive ones.
        forbid: Choices of several layers that may not occur together, and runs of a choice that are too long.
        token_selection: How image tokens are ranked where a layer has a token ratio; the search chooses one value of a
            list.
        width_selection: How channels and heads are ranked where a layer has a share of them; the same holds for a list.
        evaluate: What is measured: options by evaluator; an empty entry means the defaults.
        objectives: The metrics to optimise, each with its direction.
        constraints: Bounds on metrics; a trial stops at the first one that it violates.
        search: How the search runs.
        workers: The workers that measure trials.
        log: Where trials are sent beside the study's database.
        study: Where the study is stored.
    """

    schema_: Literal["skipsearch/space/v1"] = Field(alias="schema")
    model: ModelSpec
    models: Annotated[list[ModelEntry], Field(exclude_if=is_default)] = []
    layers: list[LayerRule]
    schedules: Annotated[list[ScheduleOptions], Field(min_length=1, exclude_if=is_default)] = []
    tied: Annotated[list[Group] | TieEvery, Field(exclude_if=is_default)] = []
    forbid: Annotated[list[ForbidRule], Field(exclude_if=is_default)] = []
    token_selection: SelectionOptions = SelectionOptions()
    width_selection: Annotated[WidthOptions, Field(exclude_if=lambda value: value == WidthOptions())] = WidthOptions()
    evaluate: Annotated[dict[str, dict[str, Any]], Field(min_length=1, max_length=MAX_EVALUATORS)]
    objectives: Annotated[dict[str, Direction], Field(min_length=1)]
    constraints: Annotated[
        dict[str, Annotated[Constraint, BeforeValidator(as_constraint), CONSTRAINT_JSON_SCHEMA]],
        AfterValidator(with_metrics),
    ] = {}
    search: Search = Search()
    workers: Workers = Workers()
    log: Annotated[Log, Field(exclude_if=lambda log: not log.settings)] = Log()
    study: Annotated[StudySettings, Field(exclude_if=lambda study: study.storage is None)] = StudySettings()

    @model_validator(mode="before")
    @classmethod
    def _fill_empty_sections(cls, data: Any) -> Any:
        """Let sections and evaluators stand empty for their defaults.

        `layers` may be missing beside schedules, and `model` beside `models`.
        """
        if not isinstance(data, Mapping):
            return data
        filled = {key: {} if value is None and key in OPTIONAL else value for key, value in data.items()}
        if filled.get("models"):
            filled.setdefault("model", {"id": ""})  # `of_each_model` has the models.
        if filled.get("schedules"):
            filled["layers"] = [] if filled.get("layers") is None else filled["layers"]
        if isinstance(filled.get("evaluate"), Mapping):
            evaluate = with_accuracy_defaults(filled["evaluate"])
            filled["evaluate"] = {name: {} if options is None else options for name, options in evaluate.items()}
        return filled

    def of_each_model(self) -> dict[str, "Space"]:
        """A space of each of several models, by the model's name; empty for a space of one model."""
        return {one.label: self.model_copy(update={"model": one.spec, "models": []}) for one in self.models}

    def metrics(self) -> dict[str, Metric]:
        """Every metric that the space's evaluators measure."""
        found = [metrics_of(key, options) for key, options in self.evaluate.items()]
        return {name: metric for metrics in found for name, metric in metrics.items()}

    @property
    def has_transfer(self) -> bool:
        """True where the front is measured on transfer tasks too."""
        return bool(self.evaluate.get(QUALITY, {}).get("transfer"))

    @property
    def may_be_guided(self) -> bool:
        """True where a loss may guide the search; the number of examples is checked when the tasks are loaded.

        A guided search needs a sampler that learns from the loss, and racing, because it pauses a trial before its
        accuracy is measured.
        """
        search = self.search
        learns = search.guide == "auto" and search.sampler == "auto" and search.racing != "none"
        by_accuracy = QUALITY in self.evaluate and self._objectives_on_examples() == [QUALITY]
        return learns and by_accuracy and ANSWER_LOSS not in self.evaluate and self.workers.runner == "actors"

    def _objectives_on_examples(self) -> list[str]:
        evaluators = (evaluator_class(name) for name in self.evaluate)
        on_examples = {metric for evaluator in evaluators if evaluator.splits for metric in evaluator.metrics}
        return [name for name in self.objectives if name in on_examples]

    def guide_options(self) -> dict[str, Any]:
        """The options of the evaluators that can guide: the examples and prompts of accuracy."""
        accuracy = self.evaluate[QUALITY]
        return {name: with_accuracy_defaults({QUALITY: accuracy, name: {}})[name] for name in (ANSWER_LOSS, DIVERGENCE)}

    def domains(self, num_layers: int) -> list[list[LayerChoice]]:
        """The choices that each layer allows, first to last; a layer without a rule is kept.

        Raises:
            SpaceError: a rule, a tied group or a forbidden combination names a layer beyond the last one, or a rule
                offers a pair in the last layer.
        """
        domains = [[KEEP] if rule is None else rule.expanded() for rule in self.rules(num_layers)]
        if any(choice.wiring == "pair" for choice in domains[-1]):
            raise SpaceError(
                f"layer {num_layers - 1} is the last one, so no layer follows that could be paired with it",
                [f"found wiring: pair among its choices, model {self.model.id}"],
                f"give the last layer a rule of its own, such as `{{range: {num_layers - 1}, choices: [keep]}}`",
            )
        return domains

    def rules(self, num_layers: int) -> list[LayerRule | None]:
        """The rule of each layer, first to last; None for a layer without one.

        Raises:
            SpaceError: see `domains`.
        """
        for source, highest in self._highest_layers(num_layers).items():
            if highest >= num_layers:
                raise SpaceError(
                    f"the space names layer {highest}, the model has layers 0 to {num_layers - 1}",
                    [f"{source}, model {self.model.id}"],
                    "use `last` for the last layer, as in `range: 2-last`" if source.startswith("range") else None,
                )
        rules: list[LayerRule | None] = [None] * num_layers
        for rule in self.layers:
            first, last = rule.span(num_layers)
            rules[first : last + 1] = [rule] * (last + 1 - first)
        return rules

    def _highest_layers(self, num_layers: int) -> dict[str, int]:
        """The highest layer that each range, tied group and forbidden combination names."""
        ranges = {f"range {rule.range}": rule.span(num_layers)[1] for rule in self.layers}
        groups = {f"tied {group}": max(group) for group in self.tied} if isinstance(self.tied, list) else {}
        together = [rule.root for rule in self.forbid if isinstance(rule, ForbiddenTogether)]
        return ranges | groups | {f"forbid of layers {', '.join(map(str, rule))}": max(rule) for rule in together}

    def groups(self, num_layers: int) -> list[tuple[int, ...]]:
        """The groups of tied layers, ordered by their first layer; an untied layer is a group of its own."""
        if isinstance(self.tied, TieEvery):
            size = self.tied.every
            spans = [rule.span(num_layers) for rule in self.layers]
            tied = [
                tuple(range(start, min(start + size, last + 1)))
                for first, last in spans
                for start in range(first, last + 1, size)
            ]
        else:
            tied = [tuple(sorted(group)) for group in self.tied]
        untied = {*range(num_layers)} - {layer for group in tied for layer in group}
        return sorted([*tied, *((layer,) for layer in untied)])

    def fingerprint(self, digests: Digests | None = None) -> str:
        """A hash that is equal for spaces whose trials can share a study.

        It leaves out the workers, the loggers, the storage, the settings that end a search or a trial early, and those
        of trainings after the search. Local models, tasks and policy files enter by their content, wherever they lie.
        """
        may_change = {"trials", "max_failures", "stop", "racing", "recover"}
        whole = dict.fromkeys(("workers", "log", "study"), True)
        # The content of a ranking decides, by its SHA-256, and not where it lies.
        left_out: dict[str, Any] = {**whole, "search": may_change, "width_selection": {"file"}}
        data = self.model_dump(mode="json", exclude=left_out)
        if isinstance(self.search.start, list):
            names = self.search.start
            data["search"]["start"] = [
                Policy.load(name).fingerprint if is_policy_file(name) else name for name in names
            ]
        text = json.dumps(with_digests(data, digests or Digests()), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class LoadedSpace(StrictModel):
    """A space with its file.

    Attributes:
        space: The space, with absolute paths.
        name: The name of the file without its suffix.
        text: The file verbatim, with the overrides of the command line as comments at its end.
        model_id: The model as written; a path in it is relative to the file.
        model_name: What the model's study is called among those of several models; empty for a space of one model.
    """

    space: Space
    name: str
    text: str
    model_id: str
    model_name: str = ""
