"""A finished study as plain values: what the report, the command line and the exported files are made from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...evaluators.base import Direction, Metric, Split
from ..trial.pareto import objective_value
from ..trial.trial_result import Estimate, TrialResult


@dataclass(frozen=True)
class BaselineComparison:
    """A policy of a rule, and the best of the search's front that costs no more.

    Attributes:
        trial: The rule's.
        best: The front's; the same where nothing on the front is better.
        search: By how much the front's is better, on the search split.
        report: The same on the report split; None where they are not both confirmed.
    """

    trial: int
    best: int
    search: Estimate | None
    report: Estimate | None


@dataclass(frozen=True)
class BaselineResult:
    """What one rule came to by itself.

    Attributes:
        name: Of the rule.
        settings: How many policies were begun as this rule.
        front: The trials of those that stand on the front which they make together with dense, dearest first. One that
            answered only some examples stands where it is expected to.
        hypervolume: Of that front, on the search split.
        confirmed: How many of that front are confirmed.
        report: Hypervolume of those on the report split; None where there are none.
        beside: Some of that front beside the search's.
    """

    name: str
    settings: int
    front: tuple[int, ...]
    hypervolume: float
    confirmed: int
    report: float | None
    beside: tuple[BaselineComparison, ...]


@dataclass(frozen=True)
class Assessment:
    """What a search was worth.

    Attributes:
        rules: Trials that were simple rules to start from and stand on the front of these, dearest first.
        gain: Hypervolume of the search's front beyond that of the rules; None where it began with no rules.
        confirmed_gain: The same on the report split; None where the two fronts are not both confirmed there.
        forecast: Hypervolume that the next 100 trials are expected to add; None after too few.
        ties: By number of a front trial, the next dearer one that it cannot be told from by what tells how good it is.
        by_rule: What each rule that the search started from came to, the best first.
        agreement: How well the divergence ranks policies by accuracy; None where not both were measured often enough.
    """

    rules: tuple[int, ...] = ()
    gain: Estimate | None = None
    confirmed_gain: Estimate | None = None
    forecast: Estimate | None = None
    ties: Mapping[int, int] = field(default_factory=dict)
    by_rule: tuple[BaselineResult, ...] = ()
    agreement: Estimate | None = None


@dataclass(frozen=True)
class Clock:
    """How a time was measured; ratios are to dense.

    Attributes:
        noise: How far one measured ratio strays, by dense against dense; None where that was not measured.
        blocks: How often dense was measured against itself.
        spread: Standard deviation of the ratios of all measured policies, noise taken off; None where few were.
        cost: The counted cost that the time was predicted from; None where it was measured in every trial.
        text: What the search said of that.
        again: How many policies of the front were timed again.
        within: How many of those are within the 95 % interval of the difference.
        gap: By how much the ratio of those is larger when it is measured again, on average.
        raw_gap: The same of what was measured in the search, without the model.
    """

    noise: float | None = None
    blocks: int = 0
    spread: float | None = None
    cost: str | None = None
    text: str = ""
    again: int = 0
    within: int = 0
    gap: float | None = None
    raw_gap: float | None = None


@dataclass(frozen=True)
class StudyRecord:
    """A study, read from its database.

    Attributes:
        name: The study's name, also its folder's.
        model_id: The model that was searched.
        num_layers: Its decoder layers.
        objectives: Direction by metric, in the space's order.
        constraints: Bound by metric, as written in the space, such as `>= 0.9 * dense`.
        metrics: Unit and meaning of every measured metric.
        trials: All trials by number; the first is dense.
        front: Numbers of the Pareto-optimal feasible trials, by falling first cost objective (dense first).
        hypervolume: After each finished trial, in the order of numbers.
        reference: The reference point of the hypervolume, by objective.
        space_text: The space file, verbatim.
        environment: Versions, hardware, seed.
        summary: What the run measured of itself, such as seconds a trial against seconds of its forward passes.
        ended: Why the search ended; None where it was interrupted.
        assessment: What the search was worth, as far as that can be told.
        guide: Which figure guided the search; None where accuracy did alone.
        clocks: By time, how it was measured.
    """

    name: str
    model_id: str
    num_layers: int
    objectives: Mapping[str, Direction]
    constraints: Mapping[str, str]
    metrics: Mapping[str, Metric]
    trials: tuple[TrialResult, ...]
    front: tuple[int, ...]
    hypervolume: tuple[float, ...]
    reference: Mapping[str, float]
    space_text: str
    environment: Mapping[str, Any]
    summary: Mapping[str, float] = field(default_factory=dict)
    ended: str | None = None
    assessment: Assessment = Assessment()
    guide: str | None = None
    clocks: Mapping[str, Clock] = field(default_factory=dict)

    @property
    def dense(self) -> TrialResult:
        """The dense baseline, trial 0."""
        return self.trials[0]

    def trial(self, number: int) -> TrialResult:
        """A trial by Optuna's number."""
        return next(trial for trial in self.trials if trial.number == number)


def percent_of_dense(record: StudyRecord, trial: TrialResult, name: str, split: Split = "search") -> float:
    """A figure in percent of the dense model's on the same examples; NaN where either is missing."""
    ours, dense = (getattr(one, split).get(name) for one in (trial, record.dense))
    if ours is None or dense is None or not dense.value:
        return math.nan
    return 100 * objective_value(name, ours, dense) / float(dense.value)


def policy_files(record: StudyRecord) -> dict[int, str]:
    """File name of each front policy by trial number, in the order of the front; dense needs no file."""
    numbers = [number for number in record.front if number != record.dense.number]
    return {number: f"pareto-{place:02d}.yaml" for place, number in enumerate(numbers, start=1)}


def quality(record: StudyRecord) -> str | None:
    """The metric that says how good a model is: the first maximised objective that is a fraction."""
    fractions = [name for name in record.objectives if record.metrics[name].unit == "fraction"]
    return next((name for name in fractions if record.objectives[name] == "maximize"), None)
