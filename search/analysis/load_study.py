"""Reads a study from its folder as plain values."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...policies.errors import StudyError
from ...policies.wording import visible
from ..baselines.dense_stats import DENSE_STATS
from ..space.objectives import metric_definitions
from ..space.space import Space
from ..study.storage import DATABASE, folded, open_study, trial_record
from ..study.study_times import machine_times, stand_ins_of
from ..trial.hypervolume import history, reference_point
from ..trial.pareto import feasible_points, front_trials
from ..trial.trial_result import TrialResult
from .assessment import assess
from .clocks import clocks
from .study_record import StudyRecord

SPACE = "space.yaml"
ENVIRONMENT = "environment.json"


def read_record(folder: Path) -> StudyRecord:
    """A study as plain values, from its folder.

    Raises:
        StudyError: the folder holds no study, or no finished dense trial to compare with.
    """
    study = open_study(folder / DATABASE)
    attrs = study.user_attrs
    asked = [trial for trial in study.get_trials(deepcopy=False) if "policy" in trial.user_attrs]
    trials = tuple(folded(trial_record(trial, attrs) for trial in asked))
    dense = (place for place, trial in enumerate(trials) if trial.policy.is_dense and trial.state == "complete")
    first = next(dense, None)
    if first is None:
        raise StudyError(f"{folder} has no dense trial yet", hint="go on with the search: `skipsearch run … --resume`")
    space = Space.model_validate(attrs["space"])
    times = machine_times(attrs, space, attrs["facts"]["num_layers"])
    everything = tuple(times.of(trials[first:], whole=True))
    # A probe whose accuracy was never asked for only led to others.
    trials = tuple(
        trial for trial in everything if not trial.is_probe or "accuracy" in {*trial.search, *trial.estimates}
    )
    front = front_trials(trials, space.objectives)
    objectives = space.objectives
    metrics = metric_definitions(space)
    reference = reference_point(trials[0].search, objectives, metrics)
    points = feasible_points(trials, objectives)
    hypervolumes = history(points, list(objectives.values()), [reference[name] for name in objectives])
    record = StudyRecord(
        name=visible(study.study_name),
        model_id=visible(attrs["model_id"]),
        num_layers=attrs["facts"]["num_layers"],
        objectives=objectives,
        constraints={name: bound.text for name, bound in space.constraints.items()},
        metrics=metrics,
        trials=trials,
        front=front,
        hypervolume=tuple(hypervolumes),
        reference=reference,
        space_text=read_text(folder / SPACE),
        environment=read_environment(folder / ENVIRONMENT),
        summary=summary(everything) | looked(attrs),
        ended=attrs.get("ended"),
        guide=attrs.get("guide"),
        clocks=clocks(trials, front, times.null, stand_ins_of(attrs)),
    )
    return assess(record)


def read_text(path: Path) -> str:
    """A file of the study's folder; empty where it is gone, since only the database cannot be done without."""
    try:
        return visible(path.read_text(encoding="utf-8", errors="backslashreplace"))
    except OSError:
        return ""


def read_environment(path: Path) -> dict[str, Any]:
    """The run's versions and hardware.

    Raises:
        StudyError: the file is not what a run wrote.
    """
    try:
        found = json.loads(read_text(path) or "{}")
    except ValueError as cause:
        raise StudyError(f"{path} is not JSON", [str(cause)], "restore it, or remove it") from None
    if not isinstance(found, dict):
        raise StudyError(f"{path} is not what a run wrote", ["expected a mapping"], "restore it, or remove it")
    return found


def summary(trials: tuple[TrialResult, ...]) -> dict[str, float]:
    """What a trial cost: all of it, and the bare forward passes of the model in it."""
    own = [trial for trial in trials if trial.duplicate_of is None and "forward" in trial.seconds]
    if not own:
        return {}
    total = sum(trial.seconds["total"] for trial in own) / len(own)
    forward = sum(trial.seconds["forward"] for trial in own) / len(own)
    probes = sum(trial.is_probe for trial in own)
    answered = [entry for trial in own for entry in (*trial.search.values(), *trial.estimates.values())]
    layers = Counter[str]()
    for entry in answered:
        layers.update(entry.detail.get("layers", {}))
    return {
        "trials": len(own) - probes,
        **({"probes": probes} if probes else {}),
        "seconds_per_trial": total,
        "forward_seconds_per_trial": forward,
        "overhead": total / forward - 1 if forward else 0.0,
        "examples": sum(entry.n for entry in answered if "per_example" in entry.detail),
        "examples_spared": sum(entry.detail["total"] - entry.n for trial in own for entry in trial.estimates.values()),
        **{f"layers_{key}": count for key, count in layers.items()},
    }


def looked(attrs: Mapping[str, Any]) -> dict[str, float]:
    """What it took to see the dense model for the rules to begin with."""
    return {"forward_passes_for_rules": attrs[DENSE_STATS]["forwards"]} if DENSE_STATS in attrs else {}
