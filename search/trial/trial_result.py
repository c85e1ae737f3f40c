"""The result of one trial as a plain value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ...evaluators.base import Measurement
from ...policies.policy import Policy

State = Literal["complete", "failed", "running"]

BASELINE_SEPARATOR = "; "  # between the baselines of one policy


@dataclass(frozen=True)
class IntervalEstimate:
    """A point estimate with its 95 % interval.

    Attributes:
        value: The estimate.
        low: Lower end of the interval; None where there is none.
        high: Upper end.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class TrialResult:
    """The result of one trial.

    Attributes:
        number: Optuna's number; trial 0 is dense.
        policy: The policy, in canonical form.
        search: Measurements that the search uses, by metric; accuracy is measured on the search split.
        report: Measurements on the report split, and times measured again; empty unless the trial was confirmed.
        transfer: Measurements on transfer tasks; empty unless the trial was on the final front.
        patches: Which image tokens two layers process, on a few examples; empty unless it was on the final front.
        violations: By metric under a constraint, how far it lies beyond its bound; above 0 is violated.
        failure: Why it failed, in one line.
        early_stopped: Why it was stopped after few examples; None where it was not. An early-stopped trial is never on
            the front.
        traceback: Traceback of the exception that it failed with.
        promotion_failures: Why each attempt to measure it on more examples failed; its earlier measurements are kept.
        estimates: By metric, measurements on few examples, of an early-stopped or paused trial.
        predicted: Times that were not measured, because a counted cost predicts them: see `StandIn`.
        seconds: Wall-clock seconds by part, such as `accuracy` or `apply`; `total` is the whole trial.
        worker: Name of the worker that ran it.
        duplicate_of: The trial that measured the same policy before and whose measurements this one shares.
        promoted_from: The paused trial that this one continues on more examples.
        baseline: The baselines that this policy is, as `name: setting`; None where the search proposed it.
        is_probe: True where it does not count towards the budget of trials: it was measured to find the initial greedy
            path.
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
    promoted_from: int | None = None
    baseline: str | None = None
    is_probe: bool = False
    early_stopped: str | None = None
    estimates: Mapping[str, Measurement] = field(default_factory=dict)
    predicted: tuple[str, ...] = ()
    traceback: str | None = None
    promotion_failures: tuple[str, ...] = ()
    transfer: Mapping[str, Measurement] = field(default_factory=dict)
    patches: Mapping[str, Measurement] = field(default_factory=dict)

    @property
    def baseline_settings(self) -> dict[str, str]:
        """Setting of each baseline that this policy is, by the baseline's name."""
        parts = (part.partition(": ") for part in (self.baseline.split(BASELINE_SEPARATOR) if self.baseline else ()))
        return {name: setting for name, _, setting in parts}

    @property
    def full_fidelity(self) -> bool:
        """True for a complete trial none of whose metrics was measured on a subset of the examples."""
        return self.state == "complete" and self.early_stopped is None and not self.estimates

    @property
    def violates_constraint(self) -> bool:
        """True where a constraint is known to be violated."""
        return any(excess > 0 for excess in self.violations.values())

    @property
    def feasible(self) -> bool:
        """True where the trial has full fidelity and violates no constraint."""
        return self.full_fidelity and not self.violates_constraint
