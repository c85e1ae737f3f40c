"""A finished study as plain values: what the report, the command line and the exported files are made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ...evaluators.base import Measurement
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
class TrialResult:
    """One trial.

    Attributes:
        number: Optuna's number; trial 0 is dense.
        policy: What was tried, in canonical form.
        search: Measurements that the search decided by, by metric name; accuracy is of the search split.
        report: Measurements on the report split, and times that were measured again; empty unless the trial was
            confirmed.
        violations: By metric under a constraint, how far beyond its bound (above 0 is violated).
        failure: Why it failed, in one line.
        early_stopped: Why it was given up on few examples; None where it was not. It can never be on the front.
        traceback: Of the exception that it failed with.
        setbacks: Why it failed each time that it was to answer more; what it had measured before is kept.
        estimates: What was measured on few examples only, by metric: of a trial that was given up, or set aside.
        predicted: Times that were not measured, since another cost tells them: see `StandIn`.
        seconds: Wall-clock seconds by part, such as `accuracy` or `apply`; `total` is all of it.
        worker: Which worker ran it.
        duplicate_of: The trial that measured the same policy before, where this one shares its measurements.
        continues: The trial that was set aside on few examples, where this one goes on with it.
        baseline: What rules it is, as `name: setting`, where the search started from it.
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
    duplicate_of: int | None = None
    continues: int | None = None
    baseline: str | None = None
    is_probe: bool = False
    early_stopped: str | None = None
    estimates: Mapping[str, Measurement] = field(default_factory=dict)
    predicted: tuple[str, ...] = ()
    traceback: str | None = None
    setbacks: tuple[str, ...] = ()

    @property
    def rules(self) -> dict[str, str]:
        """The setting of each rule that it is, by the rule's name."""
        parts = (part.partition(": ") for part in (self.baseline.split(AND) if self.baseline else ()))
        return {name: setting for name, _, setting in parts}

    @property
    def full_fidelity(self) -> bool:
        """True where nothing was measured on a part of the examples only."""
        return self.state == "complete" and self.early_stopped is None and not self.estimates

    @property
    def breaks_a_bound(self) -> bool:
        """True where the trial is known to break a constraint."""
        return any(excess > 0 for excess in self.violations.values())

    @property
    def feasible(self) -> bool:
        """True where the trial was measured in full and breaks no constraint."""
        return self.full_fidelity and not self.breaks_a_bound
