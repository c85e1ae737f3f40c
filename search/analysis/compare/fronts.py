"""The fronts of several studies in common units, and their hypervolumes against one reference point."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ....evaluators.base import Measurement, Split
from ...space.units import EXAMPLE_UNITS
from ...trial.hypervolume import hypervolume_history, reference_value
from ...trial.pareto import objective_value, pareto
from ...trial.trial_result import TrialResult
from ..baseline_comparison import on_report_split
from .studies import ComparedStudy


@dataclass(frozen=True)
class FrontVolume:
    """What a front dominates.

    Attributes:
        search: Its hypervolume on the search split.
        report: That of its confirmed policies on the report split; None without any.
        policies: How many policies it has, without dense.
        confirmed: How many of them are confirmed.
    """

    search: float
    report: float | None
    policies: int
    confirmed: int


def is_cost(study: ComparedStudy, name: str) -> bool:
    """True for an objective that is given as a share of the dense model's: minimised, and not on examples."""
    return study.record.objectives[name] == "minimize" and study.record.metrics[name].unit not in EXAMPLE_UNITS


def coordinate(first: ComparedStudy, study: ComparedStudy, trial: TrialResult, name: str, split: Split) -> float:
    """A trial's place on an axis: a cost as a share of the dense model of the first study, others as measured.

    Studies of one model have one dense model. A cost is then the share of the study's own dense measurement, which was
    made on the same machine on the same day. Of another model, that share is scaled by its dense cost over that of the
    first study's model.

    Args:
        first: The first study.
        study: The study of the trial.
        trial: The trial.
        name: The objective.
        split: The examples; what was not measured again on the report split counts as the search measured it.

    Returns:
        NaN where it was not measured.
    """
    entry, dense = (measured_on(one, split).get(name) for one in (trial, study.record.dense))
    if entry is None or dense is None:
        return math.nan
    value = objective_value(name, entry, dense)
    if not is_cost(study, name):
        return value
    return value / dense.value * model_factor(first, study, name) if dense.value else math.nan


def model_factor(first: ComparedStudy, study: ComparedStudy, name: str) -> float:
    """The dense cost of a study's model over that of the first study's; 1 for the same model."""
    if study.model == first.model:
        return 1.0
    reference = first.record.dense.search[name].value
    return study.record.dense.search[name].value / reference if reference else math.nan


def measured_on(trial: TrialResult, split: Split) -> Mapping[str, Measurement]:
    """The measurements of a trial on a split."""
    return trial.search if split == "search" else on_report_split(trial).search


def common_reference(studies: Sequence[ComparedStudy]) -> dict[str, float]:
    """The reference point of all hypervolumes, in the units of `coordinate`: the worst of the studies' own ones.

    An accuracy counts from chance level; a cost counts below the dense model's, of several models the most expensive.
    """
    first, found = studies[0], {}
    for name, direction in first.record.objectives.items():
        value = reference_value(first.record.metrics[name], direction)
        if value is None:
            found[name] = max(model_factor(first, study, name) for study in studies)
        elif direction == "maximize":
            found[name] = max(value, min(study.record.dense.search[name].floor for study in studies))
        else:
            found[name] = value
    return found


def combined_front(studies: Sequence[ComparedStudy]) -> list[tuple[ComparedStudy, TrialResult]]:
    """The policies of all studies that no policy of any study dominates on the search split, most expensive first.

    The dense model of each study is among the candidates.
    """
    first, names = studies[0], [*studies[0].record.objectives]
    candidates = [
        (study, study.record.trial(number))
        for study in studies
        for number in dict.fromkeys([study.record.dense.number, *study.record.front])
    ]
    points = [[coordinate(first, study, trial, name, "search") for name in names] for study, trial in candidates]
    directions = [*first.record.objectives.values()]
    cost = next((place for place, name in enumerate(names) if is_cost(first, name)), 0)
    return [candidates[index] for index in sorted(pareto(points, directions), key=lambda index: -points[index][cost])]


def front_volume(first: ComparedStudy, study: ComparedStudy, reference: Mapping[str, float]) -> FrontVolume:
    """The hypervolume of a study's front, on both splits."""
    front = [study.record.trial(number) for number in study.record.front]
    policies = [trial for trial in front if trial.number != study.record.dense.number]
    confirmed = [trial for trial in policies if trial.report]
    return FrontVolume(
        search=_volume(first, study, front, reference, "search"),
        report=_volume(first, study, confirmed, reference, "report") if confirmed else None,
        policies=len(policies),
        confirmed=len(confirmed),
    )


def _volume(
    first: ComparedStudy,
    study: ComparedStudy,
    trials: Sequence[TrialResult],
    reference: Mapping[str, float],
    split: Split,
) -> float:
    names = list(reference)
    points = [tuple(coordinate(first, study, trial, name, split) for name in names) for trial in trials]
    directions = [first.record.objectives[name] for name in names]
    return hypervolume_history([*points, None], directions, [*reference.values()])[-1]
