"""Reading a space: from its file and the command line, with every mistake at once and every path made absolute."""

from bisect import bisect_right
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ...evaluators.base import Direction, Metric, available, evaluator_class
from ...policies.choice import KEEP, LAST_LAYER, LayerChoice
from ...policies.document import Document, Problem
from ...policies.errors import EvaluatorError, PolicyError, SpaceError
from ...policies.policy import SCHEMA as POLICY_SCHEMA
from ...policies.policy import Policy
from ...policies.wording import Key, dotted, nearest, short
from .evaluator_defaults import MOST, shared
from .layer_choices import expanded
from .space import SCHEMA, LoadedSpace, Space
from .ties_and_bans import Run, forbids_dense

MAX_CHOICES = 10_000  # of all rules of a space together

SPACES = Path(__file__).resolve().parents[2] / "spaces"


def shipped_spaces() -> dict[str, Path]:
    """The spaces that come with skipsearch, by name."""
    return {file.stem: file for file in sorted(SPACES.glob("*.yaml"))}


def space_path(given: str) -> Path:
    """A path, or the name of a shipped space.

    Raises:
        SpaceError: there is neither.
    """
    path = Path(given)
    if path.suffix in (".yaml", ".yml") or exists(path):
        return path
    shipped = shipped_spaces()
    if given not in shipped:
        raise SpaceError(
            f"no space is called {short(given)}",
            [nearest(given, list(shipped))],
            "give a path to a YAML file, or one of the shipped names; `skipsearch ls` lists them",
        )
    return shipped[given]


def load_space(given: str, overrides: Mapping[str, str] | None = None) -> LoadedSpace:
    """Read a space file.

    Args:
        given: A path, or the name of a shipped space.
        overrides: YAML values by dotted key, such as `search.trials: 20`.

    Raises:
        SpaceError: with every mistake in the file, each with its line and column.
    """
    path = space_path(given)
    return read_space(Document.read(path, SpaceError), path, overrides or {})


def read_space(document: Document, path: Path, overrides: Mapping[str, str]) -> LoadedSpace:
    """The space that a document describes, which stands at `path`.

    Raises:
        SpaceError: see `load_space`.
    """
    text = document.text
    for key, value in overrides.items():
        override(document, key, value)
        text += f"\n# --set {key}={' '.join(value.splitlines())}"
    document.require_schema(SCHEMA)
    space, problems = document.checked(Space)
    if space is not None and (most := size_of(space.layers) + size_of(space.forbid)) > MAX_CHOICES:
        found = f"the lists stand for {most} choices, expected at most {MAX_CHOICES}"
        raise document.failure([document.problem(("layers",), found)])
    problems += [*evaluator_problems(document), *metric_problems(document)]
    if space is not None:
        problems += [*rule_problems(document, space), *coupling_problems(document, space)]
        problems += model_problems(document, space, path.parent)
    if space is None or problems:
        raise document.failure(problems)
    return LoadedSpace(space=absolute(space, path.parent), name=path.stem, text=text, model_id=space.model.id)


def size_of(value: Any) -> int:
    """How many choices something in a space stands for: entries of a list add, keys of a mapping multiply."""
    if isinstance(value, list):
        return sum(map(size_of, value))
    if isinstance(value, dict):
        return sum(map(size_of, value.values()))
    if isinstance(value, BaseModel):
        return prod(size_of(getattr(value, name)) for name in type(value).model_fields)
    return 1


def override(document: Document, key: str, value: str) -> None:
    """Put a value from the command line into a document; a number in the key is a place in a list.

    Raises:
        SpaceError: the value is not one YAML value, or the key leads nowhere.
    """
    source = f"--set {key}={' '.join(value.splitlines())}"
    hint = "name a key and a value as in --set search.trials=20"
    try:
        data = Document(f"value: {value}", "value", SpaceError).check().data
        reasons = ["found several"] if len(data) > 1 else []
    except SpaceError as cause:
        reasons = [line.partition("  ")[2] for line in cause.details]
    if reasons:
        raise SpaceError(f"{source}: expected one YAML value", reasons, hint)
    target: Any = document.data
    path: tuple[Key, ...] = ()
    parts = key.split(".")
    for depth, part in enumerate(parts):
        step: Key = int(part) if isinstance(target, list) and part.isdecimal() else part
        if not (isinstance(target, dict) and part or isinstance(target, list) and step in range(len(target))):
            found = f"{dotted(path) or 'the space'} has no key {short(part)}"
            raise SpaceError(f"{source}: {found}", hint=hint)
        path = (*path, step)
        if depth < len(parts) - 1:
            if isinstance(target, dict) and target.get(step) is None:
                target[step] = {}
            target = target[step]
    document.put(path, data["value"], source)


def rule_problems(document: Document, space: Space) -> list[Problem]:
    """What is wrong with the layers' rules, told without knowing how many layers the model has."""
    problems = []
    spans: list[tuple[int, int, int]] = []  # of the rules that do not overlap, by their first layer
    for number, rule in enumerate(space.layers):
        path = ("layers", number, "range")
        first, last = rule.span(LAST_LAYER + 1)
        if last < first:
            problems.append(document.problem(path, f"found {rule.range}, expected the lower layer first"))
            continue
        place = bisect_right(spans, (first, last, number))
        clash = next(
            (span[2] for span in spans[max(0, place - 1) : place + 1] if first <= span[1] and span[0] <= last), None
        )
        if clash is not None:
            found = f"{rule.range} overlaps layers[{clash}].range, {space.layers[clash].range}"
            problems.append(document.problem(path, found))
        spans.insert(place, (first, last, number))
    for number, rule in enumerate(space.layers):
        if KEEP not in rule.expanded():
            found = "keep is missing; the dense model is trial 0 of every study, so every layer can be kept"
            problems.append(document.problem(("layers", number, "choices"), found))
    if not space.schedules and all(rule.expanded() == [KEEP] for rule in space.layers):
        problems.append(document.problem(("layers",), "every layer can only be kept, so there is nothing to search"))
    return problems


def coupling_problems(document: Document, space: Space) -> list[Problem]:
    """Tied layers that cannot choose as one, and rules of `forbid` that cannot be meant."""
    choices = [rule.expanded() for rule in space.layers]
    spans = sorted((*rule.span(LAST_LAYER + 1), number) for number, rule in enumerate(space.layers))

    def offered(layer: int) -> list[LayerChoice]:
        place = bisect_right(spans, (layer, LAST_LAYER + 1, len(spans))) - 1
        return choices[spans[place][2]] if place >= 0 and layer <= spans[place][1] else [KEEP]

    problems = []
    seen: dict[int, int] = {}
    for number, group in enumerate(space.tied if isinstance(space.tied, list) else []):
        for place, layer in enumerate(group):
            if layer in seen:
                found = f"layer {layer} stands in tied[{seen[layer]}] already, expected it once"
                problems.append(document.problem(("tied", number, place), found))
            elif offered(layer) != offered(group[0]):
                found = f"layer {layer} has other choices than layer {group[0]}, expected the same"
                problems.append(document.problem(("tied", number, place), found))
            seen[layer] = number
    anywhere = list(dict.fromkeys(choice for found in choices for choice in found))
    for number, forbidden in enumerate(space.forbid):
        if forbids_dense(forbidden):
            found = "keep is forbidden; the dense model is trial 0 of every study, so every layer can be kept"
            problems.append(document.problem(("forbid", number), found))
        run = isinstance(forbidden, Run)
        parts: dict[Any, Any] = {"consecutive": forbidden.consecutive} if isinstance(forbidden, Run) else forbidden.root
        for key, entries in parts.items() if not space.schedules else ():
            here = anywhere if run else offered(key)
            for choice in expanded(entries):
                if choice not in here:
                    who = "no layer can" if run else f"layer {key} cannot"
                    found = f"{who} be {choice.label}; {nearest(choice.label, [one.label for one in here])}"
                    problems.append(document.problem(("forbid", number, key), found))
    return problems


def evaluator_problems(document: Document) -> list[Problem]:
    """Evaluators that do not exist, and options they do not have."""
    problems: list[Problem] = []
    evaluate = document.data.get("evaluate")
    if not isinstance(evaluate, dict) or len(evaluate) > MOST:
        return problems  # The space's own validation says so.
    for name, options in shared(evaluate).items():
        if not isinstance(name, str) or not isinstance(options, dict | None):
            continue  # The space's own validation says so.
        try:
            kind = evaluator_class(name).options
            kind.model_validate(options or {})
        except EvaluatorError as cause:
            problems.append(document.problem(("evaluate", name), "; ".join([cause.what, *cause.details])))
        except ValidationError as cause:
            problems += document.mistakes(kind, cause, ("evaluate", name))
    return problems


def metric_problems(document: Document) -> list[Problem]:
    """Objectives and constraints that nobody measures, and objectives of the wrong direction."""
    evaluate = document.data.get("evaluate")
    if not isinstance(evaluate, dict) or not evaluate or not evaluate.keys() <= {*available()}:
        return []  # Perhaps the evaluator that is missing or not known measures it.
    known = measured_by([*available()])
    metrics = {name: metric for name, (evaluator, metric) in known.items() if evaluator in evaluate}
    problems = []
    for section in ("objectives", "constraints"):
        given = document.data.get(section)
        for name, value in given.items() if isinstance(given, dict) else ():
            if not isinstance(name, str):
                continue  # The space's own validation says so.
            if name not in metrics:
                mend = f"add {known[name][0]} to evaluate" if name in known else nearest(name, list(metrics))
                problems.append(document.problem((section, name), f"nobody measures this; {mend}"))
            elif section == "objectives" and value in get_args(Direction) and value != metrics[name].direction:
                found = f"found '{value}', expected '{metrics[name].direction}'"
                problems.append(document.problem((section, name), found))
    return problems


def measured_by(evaluators: list[str]) -> dict[str, tuple[str, Metric]]:
    """Every metric with the evaluator that measures it; evaluators that cannot be loaded are left out."""
    found: dict[str, tuple[str, Metric]] = {}
    for name in evaluators:
        try:
            found |= {metric: (name, described) for metric, described in evaluator_class(name).metrics.items()}
        except EvaluatorError:
            continue
    return found


def model_problems(document: Document, space: Space, folder: Path) -> list[Problem]:
    """A model's folder that is not there, as far as its path says that it stands beside the space."""
    name = space.model.id
    if not name:
        return [document.problem(("model", "id"), "found '', expected a hub id or the path of a folder")]
    if is_relative(name) and not exists(folder / name):
        return [document.problem(("model", "id"), f"there is no folder {(folder / name).absolute()}")]
    return []


def absolute(space: Space, folder: Path) -> Space:
    """The space with paths in it made absolute: they stand relative to the space file.

    A model id or task that is no path under the folder is left for the hub, or for lm-eval's own tasks.
    """

    def resolved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: resolved(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [resolved(entry) for entry in value]
        return str((folder / value).resolve()) if isinstance(value, str) and is_path(value, folder) else value

    name = space.model.id
    found = str((folder / name).resolve()) if exists(folder / name) else name
    return space.model_copy(
        update={"model": space.model.model_copy(update={"id": found}), "evaluate": resolved(space.evaluate)}
    )


def is_path(value: str, folder: Path) -> bool:
    """True where a string in an evaluator's options names something beside the space file."""
    return is_relative(value) or (("/" in value or value.endswith((".yaml", ".yml"))) and exists(folder / value))


def is_relative(value: str) -> bool:
    """True for what can be nothing but a path that begins at the space file."""
    return value.startswith(("./", "../"))


def exists(path: Path) -> bool:
    """True where there is such a file or folder; a name that no file can have is none."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def validate_file(path: Path) -> str:
    """Check a space or a policy, told apart by its `schema`.

    Returns:
        What it is.

    Raises:
        SpaceError: a space with mistakes, or a file of neither kind.
        PolicyError: a policy with mistakes.
    """
    document = Document.read(path, SpaceError)
    if document.require_schema(SCHEMA, POLICY_SCHEMA) == SCHEMA:
        read_space(document, path, {})
        return "space"
    document.error = PolicyError
    Policy.read(document)
    return "policy"
