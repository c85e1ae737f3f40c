"""Checks of a space file that its types cannot express: overlapping rules, impossible couplings, unmeasured metrics."""

from bisect import bisect_right
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ...evaluators.base import Direction, Metric, available, evaluator_class, metrics_of
from ...policies.choice import KEEP, LAST_LAYER, LayerChoice
from ...policies.document import Document, Problem
from ...policies.errors import EvaluatorError, PolicyError
from ...policies.policy import Policy
from ...policies.quantized.kinds import NONE
from ...policies.wording import nearest
from .evaluator_defaults import MAX_EVALUATORS, with_accuracy_defaults
from .guide_metrics import QUALITY
from .layer_choices import as_options, expanded
from .search_settings import is_policy_file
from .space import Space
from .ties_and_bans import ForbiddenRun, forbids_dense

MAX_CHOICES = 10_000  # of all rules of a space together
TRIAL_0 = "the dense model is trial 0 of every study, so every layer can be kept"


def size_problems(document: Document, space: Space) -> list[Problem]:
    """A space whose lists stand for too many choices to expand."""
    size = expanded_size(space.layers) + expanded_size(space.forbid)
    if size <= MAX_CHOICES:
        return []
    return [document.problem(("layers",), f"the lists stand for {size} choices, expected at most {MAX_CHOICES}")]


def expanded_size(value: Any) -> int:
    """The number of choices that a part of a space stands for: entries of a list add, keys of a mapping multiply."""
    if isinstance(value, list):
        return sum(map(expanded_size, value))
    if isinstance(value, dict):
        return sum(map(expanded_size, value.values()))
    if isinstance(value, BaseModel):
        return prod(expanded_size(getattr(value, name)) for name in type(value).model_fields)
    return 1


def rule_problems(document: Document, space: Space) -> list[Problem]:
    """Problems of the layer rules that are visible without the number of layers of the model."""
    problems = range_problems(document, space)
    for number, rule in enumerate(space.layers):
        if KEEP not in rule.expanded():
            problems.append(document.problem(("layers", number, "choices"), f"keep is missing; {TRIAL_0}"))
    problems += window_problems(document, space)
    if not space.schedules and all(rule.expanded() == [KEEP] for rule in space.layers):
        problems.append(document.problem(("layers",), "every layer can only be kept, so there is nothing to search"))
    return problems


def window_problems(document: Document, space: Space) -> list[Problem]:
    """Windows of layers that a token ratio takes image tokens out of."""
    problems, once = [], "once" in as_options(space.token_selection.reselect)
    spans = [(rule.span(LAST_LAYER + 1), rule.expanded()) for rule in space.layers]
    ranked = [span[0] for span, choices in spans if any(choice.ranks_images for choice in choices)]
    for number, ((_, last), choices) in enumerate(spans):
        windows = [choice for choice in choices if choice.window is not None]
        if any(choice.ranks_images for choice in windows):
            reason = "found a window beside a token ratio below 1, expected one of them in a choice"
            problems.append(document.problem(("layers", number, "window"), reason))
        elif windows and once and ranked and min(ranked) < last:
            reason = f"found a window in layers after {min(ranked)}, where a ratio removes image tokens for good"
            problems.append(document.problem(("layers", number, "window"), f"{reason}, expected it before them"))
    return problems


def range_problems(document: Document, space: Space) -> list[Problem]:
    """Ranges that are reversed, or overlap an earlier one."""
    problems = []
    spans: list[tuple[int, int, int]] = []  # first layer, last layer and number of the rules so far, by first layer
    for number, rule in enumerate(space.layers):
        path = ("layers", number, "range")
        first, last = rule.span(LAST_LAYER + 1)
        if last < first:
            problems.append(document.problem(path, f"found {rule.range}, expected the lower layer first"))
            continue
        index = bisect_right(spans, (first, last, number))
        neighbours = spans[max(0, index - 1) : index + 1]
        other = next((span[2] for span in neighbours if first <= span[1] and span[0] <= last), None)
        if other is not None:
            found = f"{rule.range} overlaps layers[{other}].range, {space.layers[other].range}"
            problems.append(document.problem(path, found))
        spans.insert(index, (first, last, number))
    return problems


class AllowedChoices:
    """The choices that a space allows in a layer, before the number of layers of the model is known.

    Args:
        space: The space.
    """

    def __init__(self, space: Space) -> None:
        self._choices = [rule.expanded() for rule in space.layers]
        self._spans = sorted((*rule.span(LAST_LAYER + 1), number) for number, rule in enumerate(space.layers))

    def of_layer(self, layer: int) -> list[LayerChoice]:
        """The choices that one layer allows."""
        index = bisect_right(self._spans, (layer, LAST_LAYER + 1, len(self._spans))) - 1
        return self._choices[self._spans[index][2]] if index >= 0 and layer <= self._spans[index][1] else [KEEP]

    def of_any_layer(self) -> list[LayerChoice]:
        """The distinct choices that at least one layer with a rule allows."""
        return list(dict.fromkeys(choice for choices in self._choices for choice in choices))


def tied_problems(document: Document, space: Space) -> list[Problem]:
    """Tied groups that share a layer, or whose layers allow different choices."""
    allowed = AllowedChoices(space)
    problems = []
    group_of: dict[int, int] = {}
    for number, group in enumerate(space.tied if isinstance(space.tied, list) else []):
        for position, layer in enumerate(group):
            if layer in group_of:
                found = f"layer {layer} is in tied[{group_of[layer]}] already, expected it in one group"
                problems.append(document.problem(("tied", number, position), found))
            elif allowed.of_layer(layer) != allowed.of_layer(group[0]):
                found = f"layer {layer} has other choices than layer {group[0]}, expected the same"
                problems.append(document.problem(("tied", number, position), found))
            group_of[layer] = number
    return problems


def forbid_problems(document: Document, space: Space) -> list[Problem]:
    """Entries of `forbid` that forbid the dense model, or that name choices which no layer allows."""
    allowed = AllowedChoices(space)
    problems = []
    for number, rule in enumerate(space.forbid):
        if forbids_dense(rule):
            problems.append(document.problem(("forbid", number), f"keep is forbidden; {TRIAL_0}"))
        if space.schedules:
            continue  # A schedule may bring choices that no rule of `layers` has.
        if isinstance(rule, ForbiddenRun):
            lists: Iterable[tuple[Any, Any, str, list[LayerChoice]]] = [
                ("consecutive", rule.consecutive, "no layer can", allowed.of_any_layer())
            ]
        else:
            lists = [
                (layer, choices, f"layer {layer} cannot", allowed.of_layer(layer))
                for layer, choices in rule.root.items()
            ]
        for key, entries, subject, known in lists:
            for choice in expanded(entries):
                if choice not in known:
                    found = f"{subject} be {choice.label}; {nearest(choice.label, [one.label for one in known])}"
                    problems.append(document.problem(("forbid", number, key), found))
    return problems


def evaluator_problems(document: Document) -> list[Problem]:
    """Evaluators that do not exist, and options that they do not have."""
    problems: list[Problem] = []
    evaluate = document.data.get("evaluate")
    if not isinstance(evaluate, dict) or len(evaluate) > MAX_EVALUATORS:
        return problems  # Validation of the space reports it.
    for name, options in with_accuracy_defaults(evaluate).items():
        if not isinstance(name, str) or not isinstance(options, dict | None):
            continue  # Validation of the space reports it.
        try:
            options_class = evaluator_class(name).options
            options_class.model_validate(options or {})
        except EvaluatorError as cause:
            problems.append(document.problem(("evaluate", name), "; ".join([cause.what, *cause.details])))
        except ValidationError as cause:
            problems += document.mistakes(options_class, cause, ("evaluate", name))
    return problems


def metric_problems(document: Document) -> list[Problem]:
    """Objectives and constraints that no evaluator measures, and objectives with the wrong direction."""
    evaluate = document.data.get("evaluate")
    if not isinstance(evaluate, dict) or not evaluate or not evaluate.keys() <= {*available()}:
        return []  # An evaluator is missing or unknown, and it may be the one that measures the metric.
    installed = metrics_by_name([*available()])
    measured = {name: metric for name, (evaluator, metric) in installed.items() if evaluator in evaluate}
    for name, options in evaluate.items():
        measured |= metrics_of(name, options if isinstance(options, dict) else None)
    problems = []
    for section in ("objectives", "constraints"):
        given = document.data.get(section)
        for name, value in given.items() if isinstance(given, dict) else ():
            if not isinstance(name, str):
                continue  # Validation of the space reports it.
            if name not in measured:
                hint = f"add {installed[name][0]} to evaluate" if name in installed else nearest(name, list(measured))
                problems.append(document.problem((section, name), f"no evaluator measures this metric; {hint}"))
            elif section == "objectives" and value in get_args(Direction) and value != measured[name].direction:
                found = f"found '{value}', expected '{measured[name].direction}'"
                problems.append(document.problem((section, name), found))
    return problems


def metrics_by_name(evaluators: list[str]) -> dict[str, tuple[str, Metric]]:
    """Every metric with the evaluator that measures it; evaluators that fail to import are left out."""
    metrics: dict[str, tuple[str, Metric]] = {}
    for name in evaluators:
        try:
            metrics |= {metric: (name, definition) for metric, definition in evaluator_class(name).metrics.items()}
        except EvaluatorError:
            continue
    return metrics


def start_problems(document: Document, space: Space, folder: Path) -> list[Problem]:
    """Policy files of `search.start` that cannot be read, or have mistakes.

    Args:
        document: The file of the space.
        space: The space.
        folder: The folder of the file.
    """
    problems = []
    for place, name in enumerate(space.search.start if isinstance(space.search.start, list) else []):
        try:
            if is_policy_file(name):
                Policy.load(folder / name)
        except PolicyError as cause:
            found = "; ".join([cause.what, *cause.details])
            problems.append(document.problem(("search", "start", place), found))
    return problems


def ranking_problems(document: Document, space: Space, folder: Path) -> list[Problem]:
    """A ranking of channels and heads that is not there, or that no examples can be found for.

    Args:
        document: The file of the space.
        space: The space.
        folder: The folder of the file.
    """
    width = space.width_selection
    if width.file is not None and not (exists(folder / width.file) and (folder / width.file).is_file()):
        found = f"there is no file {(folder / width.file).absolute()}; `skipsearch rank` writes one"
        return [document.problem(("width_selection", "file"), found)]
    if "energy" not in as_options(width.ranking) or width.file is not None:
        return []
    # An evaluator that does not exist is a problem of its own.
    if not {*space.evaluate} <= {*available()} or any(evaluator_class(name).splits for name in space.evaluate):
        return []
    found = "energy is found on examples, and no evaluator has any; add accuracy to evaluate, or give a file"
    return [document.problem(("width_selection", "ranking"), found)]


def recover_problems(document: Document, space: Space, folder: Path) -> list[Problem]:
    """Trainings that cannot be done: without their data, of quantised weights, or beside evaluators that refuse them.

    Args:
        document: The file of the space.
        space: The space.
        folder: The folder of the file.
    """
    recover, path = space.search.recover, ("search", "recover")
    if recover is None:
        return []
    problems = []
    data = recover.data
    if data is None and QUALITY not in space.evaluate:
        problems.append(document.problem(path, "found no `data`, and no `accuracy` whose tasks have a training split"))
    named = {"data": data if data is not None and is_data_path(data) else None, "images": recover.images}
    for key, value in named.items():
        if value is not None and not exists(folder / value):
            found = f"there is no {(folder / value).absolute()}"
            problems.append(document.problem((*path, key), found))
    if space.model.quantization != NONE:
        found = "a model with quantised weights cannot be trained; leave out `model.quantization`, or this"
        problems.append(document.problem(path, found))
    for name in space.evaluate:
        evaluator = evaluator_class(name)
        if evaluator.exclusive and any(metric.kind != "time" for metric in evaluator.metrics.values()):
            found = f"{name} cannot measure a policy with trained weights; leave one of the two out"
            problems.append(document.problem(path, found))
    return problems


def is_data_path(value: str) -> bool:
    """True for training data that can only be a file: a path, or a name with the suffix of one."""
    return "/" in value or value.endswith((".yaml", ".yml", ".json", ".jsonl"))


def is_explicit_path(value: str) -> bool:
    """True for a string that can only be a path relative to the space file."""
    return value.startswith(("./", "../"))


def exists(path: Path) -> bool:
    """True for an existing file or folder; False for a name that no file can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
