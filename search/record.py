"""A finished study as plain values: what the report, the command line and the exported files are made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..evaluators.base import Direction, Measurement, Metric
from ..policies.policy import Policy

State = Literal["complete", "failed", "running"]


@dataclass(frozen=True)
class Estimate:
    """A figure that is known so well.

    Attributes:
        value: The figure.
        low: Lower end of its 95 % interval; None where there is none.
        high: Upper end.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What a search was worth.

    Attributes:
        rules: Trials that were simple rules to start from and stand on the front of these, dearest first.
        gain: Hypervolume of the search's front beyond that of the rules; None where it began with no rules.
        outlook: Hypervolume that the next 100 trials are expected to add; None after too few.
        ties: By number of a front trial, the next dearer one that its accuracy cannot be told from.
    """

    rules: tuple[int, ...] = ()
    gain: Estimate | None = None
    outlook: Estimate | None = None
    ties: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialRecord:
    """One trial.

    Attributes:
        number: Optuna's number; trial 0 is dense.
        policy: What was tried, in canonical form.
        search: Measurements that the search decided by, by metric name; accuracy is of the search split.
        report: Measurements on the report split; empty unless the trial was confirmed.
        violations: By metric under a constraint, how far beyond its bound (above 0 is violated).
        failure: Why it failed, in one line.
        dropped: Why it was given up on few examples; None where it was not. It can never be on the front.
        estimates: What was measured on those few examples only, by metric.
        seconds: Wall-clock seconds by part, such as `accuracy` or `apply`; `total` is all of it.
        worker: Which worker ran it.
        shared_from: The trial that measured the same policy before, where this one shares its measurements.
        rule: What rule it is, where it is one that the search started from.
    """

    number: int
    state: State
    policy: Policy
    search: Mapping[str, Measurement] = field(default_factory=dict)
    report: Mapping[str, Measurement] = field(default_factory=dict)
    violations: Mapping[str, float] = field(default_factory=dict)
    failure: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    worker: str | None = None
    shared_from: int | None = None
    rule: str | None = None
    dropped: str | None = None
    estimates: Mapping[str, Measurement] = field(default_factory=dict)

    @property
    def feasible(self) -> bool:
        """True where the trial is complete, was measured on all examples and breaks no constraint."""
        whole = self.state == "complete" and self.dropped is None
        return whole and all(excess <= 0 for excess in self.violations.values())


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
        verdict: What the search was worth, as far as that can be told.
    """

    name: str
    model_id: str
    num_layers: int
    objectives: Mapping[str, Direction]
    constraints: Mapping[str, str]
    metrics: Mapping[str, Metric]
    trials: tuple[TrialRecord, ...]
    front: tuple[int, ...]
    hypervolume: tuple[float, ...]
    reference: Mapping[str, float]
    space_text: str
    environment: Mapping[str, Any]
    summary: Mapping[str, float] = field(default_factory=dict)
    ended: str | None = None
    verdict: Verdict = Verdict()

    @property
    def dense(self) -> TrialRecord:
        """The dense baseline, trial 0."""
        return self.trials[0]

    def trial(self, number: int) -> TrialRecord:
        """A trial by Optuna's number."""
        return next(trial for trial in self.trials if trial.number == number)
