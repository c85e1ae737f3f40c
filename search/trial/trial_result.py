"""A finished study as plain values: what the report, the command line and the exported files are made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...evaluators.base import Direction, Measurement, Metric
from ...policies.policy import Policy

State = Literal["complete", "failed", "running"]

AND = "; "  # between the rules that come to one policy


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
class Beside:
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
class RuleResult:
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
    beside: tuple[Beside, ...]


@dataclass(frozen=True)
class Verdict:
    """What a search was worth.

    Attributes:
        rules: Trials that were simple rules to start from and stand on the front of these, dearest first.
        gain: Hypervolume of the search's front beyond that of the rules; None where it began with no rules.
        confirmed_gain: The same on the report split; None where the two fronts are not both confirmed there.
        outlook: Hypervolume that the next 100 trials are expected to add; None after too few.
        ties: By number of a front trial, the next dearer one that it cannot be told from by what tells how good it is.
        by_rule: What each rule that the search started from came to, the best first.
        agreement: How well the divergence ranks policies by accuracy; None where not both were measured often enough.
    """

    rules: tuple[int, ...] = ()
    gain: Estimate | None = None
    confirmed_gain: Estimate | None = None
    outlook: Estimate | None = None
    ties: Mapping[int, int] = field(default_factory=dict)
    by_rule: tuple[RuleResult, ...] = ()
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
class TrialRecord:
    """One trial.

    Attributes:
        number: Optuna's number; trial 0 is dense.
        policy: What was tried, in canonical form.
        search: Measurements that the search decided by, by metric name; accuracy is of the search split.
        report: Measurements on the report split, and times that were measured again; empty unless the trial was
            confirmed.
        violations: By metric under a constraint, how far beyond its bound (above 0 is violated).
        failure: Why it failed, in one line.
        dropped: Why it was given up on few examples; None where it was not. It can never be on the front.
        traceback: Of the exception that it failed with.
        setbacks: Why it failed each time that it was to answer more; what it had measured before is kept.
        estimates: What was measured on few examples only, by metric: of a trial that was given up, or set aside.
        predicted: Times that were not measured, since another cost tells them: see `StandIn`.
        seconds: Wall-clock seconds by part, such as `accuracy` or `apply`; `total` is all of it.
        worker: Which worker ran it.
        shared_from: The trial that measured the same policy before, where this one shares its measurements.
        continues: The trial that was set aside on few examples, where this one goes on with it.
        rule: What rules it is, as `name: setting`, where the search started from it.
        is_probe: True where the budget of trials does not count it: it was measured to find the path to begin with.
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
    continues: int | None = None
    rule: str | None = None
    is_probe: bool = False
    dropped: str | None = None
    estimates: Mapping[str, Measurement] = field(default_factory=dict)
    predicted: tuple[str, ...] = ()
    traceback: str | None = None
    setbacks: tuple[str, ...] = ()

    @property
    def rules(self) -> dict[str, str]:
        """The setting of each rule that it is, by the rule's name."""
        parts = (part.partition(": ") for part in (self.rule.split(AND) if self.rule else ()))
        return {name: setting for name, _, setting in parts}

    @property
    def in_full(self) -> bool:
        """True where nothing was measured on a part of the examples only."""
        return self.state == "complete" and self.dropped is None and not self.estimates

    @property
    def breaks_a_bound(self) -> bool:
        """True where the trial is known to break a constraint."""
        return any(excess > 0 for excess in self.violations.values())

    @property
    def feasible(self) -> bool:
        """True where the trial was measured in full and breaks no constraint."""
        return self.in_full and not self.breaks_a_bound


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
        guide: Which figure guided the search; None where accuracy did alone.
        clocks: By time, how it was measured.
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
    guide: str | None = None
    clocks: Mapping[str, Clock] = field(default_factory=dict)

    @property
    def dense(self) -> TrialRecord:
        """The dense baseline, trial 0."""
        return self.trials[0]

    def trial(self, number: int) -> TrialRecord:
        """A trial by Optuna's number."""
        return next(trial for trial in self.trials if trial.number == number)
