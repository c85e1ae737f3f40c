"""Checks that the objectives of several studies measure the same, so that their fronts may share a plane."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ....evaluators.base import Split, evaluator_class, metrics_of
from ....policies.errors import StudyError, UsageError
from ....policies.wording import nearest, short
from ...space.fingerprint import Digests
from .studies import ComparedStudy

# Options of evaluators on examples that change neither the examples nor what is asked about them.
NEUTRAL = ("batch_size", "batch_tokens", "memory_bytes", "states_bytes", "transfer")
# Evaluators whose metrics compare a policy with its own dense model, so that they say nothing beside another model.
RELATIVE = ("divergence", "speculative")
MISSING = "none"


def common_axes(
    studies: Sequence[ComparedStudy], chosen: Sequence[str] = (), leave_out: bool = False
) -> tuple[list[str], list[str]]:
    """The objectives that all studies have, in the order of the first study, or those of them that are chosen.

    Args:
        studies: The studies.
        chosen: Some of the objectives; empty for all.
        leave_out: Leave out an axis that does not measure the same in all studies, in place of refusing all.

    Returns:
        The axes, and the differences of those that were left out, one line each.

    Raises:
        UsageError: a chosen one is no objective of every study.
        StudyError: the studies have no objective in common, or an axis does not measure the same in all of them.
    """
    first, *others = studies
    common = [name for name in first.record.objectives if all(name in one.record.objectives for one in others)]
    for name in chosen:
        if name not in common:
            found = [f"{study.name}: {', '.join(study.record.objectives)}" for study in studies]
            hint = nearest(name, common) if common else None
            raise UsageError(f"--axes names {short(name)}, which is not an objective of every study", found, hint)
    names = [name for name in common if not chosen or name in chosen]
    if not names:
        found = [f"{study.name}: {', '.join(study.record.objectives)}" for study in studies]
        raise StudyError("the studies have no objective in common", found, "compare studies with the same objectives")
    differences = {name: [line for other in others for line in axis_differences(first, other, name)] for name in names}
    wrong = {name: lines for name, lines in differences.items() if lines}
    fitting = [name for name in names if name not in wrong]
    lines = [line for found in wrong.values() for line in found]
    if wrong and not (leave_out and fitting):
        hint = f"compare the others alone: `--axes {','.join(fitting)}`" if fitting else None
        raise StudyError(f"{' and '.join(wrong)} cannot be compared, since the studies measured something else",
                         lines, hint)  # fmt: skip
    return fitting, lines


def axis_differences(first: ComparedStudy, other: ComparedStudy, name: str) -> list[str]:
    """What differs in an axis of two studies, one line each: expected is the first study's, found the other's."""
    if first.model != other.model and evaluator_of(first, name) in RELATIVE:
        return [f"{name}: measured against each study's own dense model; those of {first.name} and {other.name} differ"]
    by_content = all(path.exists() for study in (first, other) for path in local_files(study, name))
    expected, found = (axis_facts(study, name, by_content) for study in (first, other))
    if not all(name in study.record.dense.report for study in (first, other)):  # One front is not confirmed yet.
        expected, found = ({key: value for key, value in facts.items() if not key.startswith("report split")}
                           for facts in (expected, found))  # fmt: skip
    if first.model != other.model:  # Another tokenizer makes another number of tokens of the same prompt.
        expected, found = ({key: value for key, value in facts.items() if not key.startswith("prompt")}
                           for facts in (expected, found))  # fmt: skip
    return [
        f"{name}, {key}: expected {shown(expected.get(key))} ({first.name}), "
        f"found {shown(found.get(key))} ({other.name})"
        for key in dict.fromkeys([*expected, *found])
        if expected.get(key) != found.get(key)
    ]


def shown(value: Any) -> str:
    """A fact in a message."""
    return MISSING if value is None else str(value)


def axis_facts(study: ComparedStudy, name: str, by_content: bool) -> dict[str, Any]:
    """Everything that makes an axis what it is, by a key that a reader finds in the space or the environment.

    Args:
        study: The study.
        name: The objective.
        by_content: True to tell task files apart by their content, False by their names alone.
    """
    record = study.record
    metric = record.metrics[name]
    facts: dict[str, Any] = {"unit": metric.unit, "direction": record.objectives[name], "meaning": metric.text}
    digests = Digests()
    for key, value in evaluator_options(study, name).items():
        facts[key] = content(value, digests, by_content)
    for split in ("search", "report"):
        facts |= measured_facts(study, name, split)
    return facts | (hardware(record.environment) if metric.kind == "time" else {})


def evaluator_of(study: ComparedStudy, name: str) -> str:
    """The evaluator that measures an objective."""
    return next(key for key in study.space.evaluate if name in metrics_of(key, study.space.evaluate[key]))


def evaluator_options(study: ComparedStudy, name: str) -> dict[str, Any]:
    """The options of the evaluator of an objective by key path, with defaults, without those that change no answer."""
    evaluator = evaluator_of(study, name)
    kind = evaluator_class(evaluator)
    options = kind.options.model_validate(study.space.evaluate[evaluator]).model_dump(mode="json")
    kept = {key: value for key, value in options.items() if not (kind.splits and key in NEUTRAL)}
    return flattened(kept, f"evaluate.{evaluator}")


def local_files(study: ComparedStudy, name: str) -> list[Path]:
    """The task files that an objective is measured on."""
    values = evaluator_options(study, name).values()
    entries = [entry for value in values for entry in (value if isinstance(value, list) else [value])]
    return [Path(entry) for entry in entries if isinstance(entry, str) and Path(entry).is_absolute()]


def content(value: Any, digests: Digests, by_content: bool) -> Any:
    """A value in which file names, with digests where asked for, take the place of paths: a study may be moved."""
    if isinstance(value, list):
        return ", ".join(str(content(entry, digests, by_content)) for entry in value)
    if not isinstance(value, str) or not Path(value).is_absolute():
        return value
    path = Path(value)
    return f"{path.name} ({digests.of_files(path)})" if by_content else path.name


def measured_facts(study: ComparedStudy, name: str, split: Split) -> dict[str, Any]:
    """What the dense measurement of an axis says about its examples, or its prompt."""
    entry = getattr(study.record.dense, split).get(name)
    if entry is None:
        return {}
    tasks: Mapping[str, Mapping[str, Any]] = entry.detail.get("tasks", {})
    facts: dict[str, Any] = {}
    for task, result in tasks.items():
        facts[f"{split} split, task {task}"] = f"{result['n']} examples by {result['metric']}"
    if "prompt" in entry.detail:
        facts["prompt"] = entry.detail["prompt"]
    return facts


def hardware(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The machine that times were measured on; a study that was resumed on another one has both."""
    runs = [environment, *environment.get("resumed", [])]
    keys = ("system", "processor", "cores")
    facts = {key: " and ".join(dict.fromkeys(str(run[key]) for run in runs if key in run)) or None for key in keys}
    workers = [worker for run in runs for worker in run.get("workers", [])]
    for key in ("device", "threads"):
        facts[f"workers.{key}"] = " and ".join(dict.fromkeys(str(one[key]) for one in workers if key in one)) or None
    return facts


def flattened(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings, and lists of mappings, as one mapping by key path, such as `layers[0].range`."""
    if isinstance(value, Mapping):
        parts = [(f"{path}.{key}" if path else str(key), entry) for key, entry in value.items()]
    elif isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
        parts = [(f"{path}[{place}]", entry) for place, entry in enumerate(value)]
    else:
        return {path: value}
    return {key: entry for part, nested in parts for key, entry in flattened(nested, part).items()}
