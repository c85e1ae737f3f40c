"""Reads a study from its folder as plain values."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...policies.errors import StudyError
from ...policies.wording import escape_invisible
from ..baselines.dense_stats import DENSE_STATS
from ..guide.guide import Guide
from ..guide.wide_gaps import policies_in_gaps
from ..places import DATABASE
from ..space.objectives import metric_definitions
from ..space.space import Space
from ..study.storage import open_study
from ..study.study_times import smoothed_times, stand_ins_of
from ..study.trial_cache import read_trials
from ..trial.hypervolume import hypervolume_history, reference_point
from ..trial.pareto import feasible_points, front_trials
from ..trial.trial_result import TrialResult
from .assessment import assess, assess_trained
from .clocks import clocks
from .random_baseline import random_measurements
from .recovery_outcome import with_trained
from .study_record import StudyRecord

SPACE = "space.yaml"
ENVIRONMENT = "environment.json"


def read_record(folder: Path) -> StudyRecord:
    """A study as plain values, from its folder.

    Raises:
        StudyError: the folder holds no study, or its dense trial has not finished.
    """
    study = open_study(folder / DATABASE)
    searched = assess(record_of(study.study_name, study.user_attrs, read_trials(study), folder))
    return assess_trained(with_trained(searched, study.user_attrs, folder))


def record_of(name: str, attrs: Mapping[str, Any], results: Sequence[TrialResult], folder: Path) -> StudyRecord:
    """A study as its search left it, without the assessment, which takes seconds; see `with_trained`.

    Args:
        name: Of the study.
        attrs: The attributes of the study.
        results: Its trials by number, with their measurements on the report split.
        folder: Its folder, which holds its space and environment.

    Raises:
        StudyError: its dense trial has not finished.
    """
    trials = from_dense(results, folder)
    space = Space.model_validate(attrs["space"])
    times = smoothed_times(attrs, space, attrs["facts"]["num_layers"])
    all_trials = tuple(times.smooth_all(trials, final=True))
    trials = tuple(trial for trial in all_trials if not is_mere_probe(trial))
    objectives, metrics = space.objectives, metric_definitions(space)
    front = front_trials(trials, objectives)
    guide = Guide(attrs["guide"]) if attrs.get("guide") else None
    reference = reference_point(trials[0].search, objectives, metrics)
    curve = hypervolume_history(
        feasible_points(trials, objectives), list(objectives.values()), [reference[name] for name in objectives]
    )
    dense_stats = {"forward_passes_for_rules": attrs[DENSE_STATS]["forwards"]} if DENSE_STATS in attrs else {}
    return StudyRecord(
        name=escape_invisible(name),
        model_id=escape_invisible(attrs["model_id"]),
        num_layers=attrs["facts"]["num_layers"],
        objectives=objectives,
        constraints={name: bound.text for name, bound in space.constraints.items()},
        metrics=metrics,
        trials=trials,
        front=front,
        hypervolume=tuple(curve),
        reference=reference,
        space_text=read_text(folder / SPACE),
        environment=read_environment(folder / ENVIRONMENT),
        summary=summary(all_trials) | dense_stats,
        ended=attrs.get("ended"),
        guide=attrs.get("guide"),
        in_gaps=policies_in_gaps(all_trials, front, objectives, guide),
        clocks=clocks(trials, front, times, stand_ins_of(attrs)),
        random=random_measurements([trial for trial in trials if trial.number in front], attrs),
    )


def from_dense(trials: Sequence[TrialResult], folder: Path) -> Sequence[TrialResult]:
    """The trials from the first completed dense one on.

    Raises:
        StudyError: there is none.
    """
    for place, trial in enumerate(trials):
        if trial.policy.is_dense and trial.state == "complete":
            return trials[place:]
    raise StudyError(f"{folder} has no dense trial yet", hint="go on with the search: `skipsearch run … --resume`")


def is_mere_probe(trial: TrialResult) -> bool:
    """True for a probe that never measured accuracy: it only guided the search to other policies."""
    return trial.is_probe and "accuracy" not in {*trial.search, *trial.estimates}


def read_text(path: Path) -> str:
    """A file of the study's folder; empty where it is missing, since the database alone is required."""
    try:
        return escape_invisible(path.read_text(encoding="utf-8", errors="backslashreplace"))
    except OSError:
        return ""


def read_environment(path: Path) -> dict[str, Any]:
    """The run's versions and hardware.

    Raises:
        StudyError: the file was not written by a run.
    """
    try:
        found = json.loads(read_text(path) or "{}")
    except ValueError as cause:
        raise StudyError(f"{path} is not JSON", [str(cause)], "restore it, or remove it") from None
    if not isinstance(found, dict):
        raise StudyError(f"{path} was not written by a run", ["expected a mapping"], "restore it, or remove it")
    return found


def summary(trials: tuple[TrialResult, ...]) -> dict[str, float]:
    """What the trials cost: their mean time, the forward passes in it, and how many examples they answered."""
    timed = [trial for trial in trials if trial.duplicate_of is None and "forward" in trial.seconds]
    if not timed:
        return {}
    total = sum(trial.seconds["total"] for trial in timed) / len(timed)
    forward = sum(trial.seconds["forward"] for trial in timed) / len(timed)
    probes = sum(trial.is_probe for trial in timed)
    entries = [entry for trial in timed for entry in (*trial.search.values(), *trial.estimates.values())]
    estimates = [entry for trial in timed for entry in trial.estimates.values()]
    layers = Counter[str]()
    for entry in entries:
        layers.update(entry.detail.get("layers", {}))
    return {
        "trials": len(timed) - probes,
        **({"probes": probes} if probes else {}),
        "seconds_per_trial": total,
        "forward_seconds_per_trial": forward,
        "overhead": total / forward - 1 if forward else 0.0,
        "examples": sum(entry.n for entry in entries if "per_example" in entry.detail),
        "examples_spared": sum(entry.detail["total"] - entry.n for entry in estimates),
        **{f"layers_{key}": count for key, count in layers.items()},
    }
