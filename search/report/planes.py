"""The points that a report draws: trials in the planes of two objectives.

Each axis is in percent of the dense model on the same examples, so that both splits, and latencies measured hours
apart, fit in one figure. A divergence is drawn in nats, because that of dense is 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from ...evaluators.base import Direction, Split
from ..analysis.baseline_comparison import with_expected_scores
from ..analysis.study_record import StudyRecord, percent_of_dense
from ..space.units import phrase, unit_of
from ..study.expected_results import ScorePredictor
from ..trial.hypervolume import DIVERGENCE_CAP
from ..trial.pareto import pareto
from ..trial.trial_result import TrialResult

Role = Literal["dense", "front", "dominated", "infeasible"]

TRIAL = "trial"  # the x axis of a study with one objective


@dataclass(frozen=True)
class Plane:
    """Two metrics against each other."""

    x: str
    y: str


@dataclass(frozen=True)
class Dot:
    """One trial in a plane.

    Attributes:
        trial: The trial.
        role: How it is drawn.
        x: Its place on the x axis, by the search split.
        y: Its place on the y axis, by the search split.
        confirmed: The place of the same policy on the report split; None where it was not confirmed.
        stderr: Standard error of the confirmed y.
    """

    trial: TrialResult
    role: Role
    x: float
    y: float
    confirmed: tuple[float, float] | None
    stderr: float | None


def planes(record: StudyRecord) -> list[Plane]:
    """Every pair of objectives, with a cost on the x axis where there is one."""
    names = list(record.objectives)
    if len(names) == 1:
        return [Plane(TRIAL, names[0])]
    costs_first = sorted(names, key=lambda name: record.objectives[name] == "maximize" or unit_of(name) == "nats")
    return [Plane(*pair) for pair in sorted(combinations(costs_first, 2), key=lambda pair: names.index(pair[1]))]


def axis_title(name: str) -> str:
    """The name of a metric and the unit of its axis."""
    return TRIAL if name == TRIAL else f"{phrase(name)}, {'nats' if unit_of(name) == 'nats' else '% of dense'}"


def role(record: StudyRecord, trial: TrialResult) -> Role | None:
    """How a trial is drawn; None for a trial that did not finish or that answered only some of the examples."""
    if not trial.full_fidelity and not (trial.state == "complete" and trial.violates_constraint):
        return None
    if trial.number == record.dense.number:
        return "dense"
    if trial.number in record.front:
        return "front"
    return "infeasible" if trial.violates_constraint else "dominated"


def dots(record: StudyRecord, plane: Plane) -> list[Dot]:
    """The trials that measured both metrics; a trial that stopped at a constraint may lack one."""
    found = []
    for trial in record.trials:
        kind = role(record, trial)
        x = trial.number if plane.x == TRIAL else along_axis(record, trial, plane.x)
        y = along_axis(record, trial, plane.y)
        if kind is not None and math.isfinite(x) and math.isfinite(y):
            is_reported = kind == "front" or trial.number in record.in_gaps
            confirmation = _confirmation(record, trial, plane, x) if is_reported else (None, None)
            found.append(Dot(trial, kind, x, y, *confirmation))
    return found


def baseline_dots(record: StudyRecord, plane: Plane) -> list[Dot]:
    """The baselines that the search started from; one that answered some of the examples by its expected result."""
    known = ScorePredictor.fit(record.trials)
    baselines = tuple(
        with_expected_scores(record, trial, known) for trial in record.searched.trials if trial.baseline is not None
    )
    found = dots(replace(record, trials=(record.dense, *baselines)), plane)
    return [dot for dot in found if dot.trial.baseline is not None]


def along_axis(record: StudyRecord, trial: TrialResult, name: str, split: Split = "search") -> float:
    """A trial's place on an axis: in percent of dense, or in nats; NaN where it was not measured."""
    if unit_of(name) != "nats":
        return percent_of_dense(record, trial, name, split)
    entry = getattr(trial, split).get(name)
    return math.nan if entry is None else float(entry.value)


def divergence_limit(found: Sequence[Dot]) -> float:
    """The upper end of a divergence axis, so that a few large divergences do not squeeze the others together."""
    highest = max((dot.y for dot in found if dot.role == "front" and dot.y < DIVERGENCE_CAP), default=0.0)
    return 1.2 * (highest or DIVERGENCE_CAP)


def staircase(found: Sequence[Dot], record: StudyRecord, plane: Plane) -> list[Dot]:
    """The feasible trials that are Pareto-optimal in this plane alone, from left to right."""
    directions: list[Direction] = [record.objectives.get(plane.x, "minimize"), record.objectives[plane.y]]
    feasible = [dot for dot in found if dot.trial.feasible and plane.x != TRIAL]
    optimal = pareto([(dot.x, dot.y) for dot in feasible], directions)
    return sorted((feasible[index] for index in optimal), key=lambda dot: dot.x)


def _confirmation(
    record: StudyRecord, trial: TrialResult, plane: Plane, search_x: float
) -> tuple[tuple[float, float] | None, float | None]:
    """A trial's place on the report split and the standard error of its y; counted costs are equal on both splits."""
    y = along_axis(record, trial, plane.y, "report")
    if not math.isfinite(y):
        return None, None
    report_x = along_axis(record, trial, plane.x, "report")
    x = report_x if math.isfinite(report_x) else search_x
    stderr, scale = trial.report[plane.y].stderr, 1.0
    if unit_of(plane.y) != "nats":
        scale = record.dense.report[plane.y].value / 100
    return (x, y), None if stderr is None else stderr / scale
