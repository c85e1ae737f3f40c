"""A finished study as plain values: the input of the report, the command line and the exported files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...evaluators.base import Direction, Measurement, Metric, Split
from ...policies.metadata import ModelRef
from ...policies.policy import Policy
from ..times.smoothed import PredictionError
from ..trial.pareto import objective_value
from ..trial.recovery import Recovery
from ..trial.trial_result import IntervalEstimate, TrialResult
from .transfer import Transfer


@dataclass(frozen=True)
class BaselineComparison:
    """A baseline's policy beside the best policy of the front that costs no more.

    Attributes:
        trial: The baseline's trial.
        best: The trial of the front; the same where none on the front is better.
        search: How much better that one is on the search split; None where both are the same.
        report: The same on the report split; None unless both are confirmed.
    """

    trial: int
    best: int
    search: IntervalEstimate | None
    report: IntervalEstimate | None


@dataclass(frozen=True)
class BaselineResult:
    """What the trials of one baseline achieve alone.

    Attributes:
        name: Of the baseline.
        settings: How many of its policies were tried.
        front: Trials on the front that they form together with dense, most expensive first. A trial that answered only
            some of the examples counts with its expected result.
        hypervolume: Of that front, on the search split.
        confirmed: How many trials of that front are confirmed.
        report: Hypervolume of the confirmed ones on the report split; None without any.
        beside: Some trials of that front, each beside one of the search's front.
    """

    name: str
    settings: int
    front: tuple[int, ...]
    hypervolume: float
    confirmed: int
    report: float | None
    beside: tuple[BaselineComparison, ...]


@dataclass(frozen=True)
class RandomBaseline:
    """Policies of the front beside the same ratios of image tokens that are chosen at random, on the report split.

    Attributes:
        gains: By trial, how much better in quality the policy is than its random twin.
    """

    gains: Mapping[int, IntervalEstimate]

    @property
    def as_well(self) -> list[int]:
        """The trials whose random twin did as well: the gain is not significantly above 0."""
        return [number for number, gain in self.gains.items() if (gain.value if gain.low is None else gain.low) <= 0]


@dataclass(frozen=True)
class Assessment:
    """What a search achieved.

    Attributes:
        best_baselines: Trials on the common front of all baselines, most expensive first.
        gain: Hypervolume of the search's front minus that of the baselines; None where it started from no baselines.
        confirmed_gain: The same on the report split; None unless both fronts are confirmed there.
        forecast: Hypervolume that further trials are expected to add; None with too few trials.
        ties: By front trial, the next more expensive one that does not differ significantly from it in quality.
        baseline_results: What each baseline achieves alone, best first.
        agreement: Kendall's tau of the guide's loss with accuracy; None with too few trials that measured both.
        transfer: How the front does on tasks that the search did not use; None where there are none.
        random: The front beside random choices of image tokens; None where none was measured.
    """

    best_baselines: tuple[int, ...] = ()
    gain: IntervalEstimate | None = None
    confirmed_gain: IntervalEstimate | None = None
    forecast: IntervalEstimate | None = None
    ties: Mapping[int, int] = field(default_factory=dict)
    baseline_results: tuple[BaselineResult, ...] = ()
    agreement: IntervalEstimate | None = None
    transfer: Transfer | None = None
    random: RandomBaseline | None = None


@dataclass(frozen=True)
class RecoveryOutcome:
    """What the trainings of the best policies achieved, once a search had ended.

    Attributes:
        recoveries: The trainings, by trial.
        settings: `search.recover` of the space.
        ranks: Kendall's tau of the quality before a training with that after it, on the search split; None with too
            few policies, or where all are equal.
        report_ranks: The same on the report split, of the policies that are confirmed with trained weights and without.
        hypervolume: Of the front before the trainings, and of that after them, on the search split.
        report_hypervolume: The same on the report split; None unless both fronts are confirmed there.
        searched: The study before the trainings.
    """

    recoveries: tuple[Recovery, ...]
    settings: Mapping[str, Any]
    ranks: IntervalEstimate | None
    report_ranks: IntervalEstimate | None
    hypervolume: tuple[float, float]
    report_hypervolume: tuple[float, float] | None
    searched: "StudyRecord"


@dataclass(frozen=True)
class Clock:
    """How a time was measured; ratios are to dense.

    Attributes:
        noise: Standard error of one measured ratio, from dense against dense; None where that was not measured.
        blocks: How often dense was measured against itself.
        spread: Standard deviation of the ratios of all measured policies, without the noise; None with few policies.
        cost: The counted cost that predicts the time; None where the time was measured in every trial.
        text: What the search said about that prediction.
        again: How many policies of the front were timed again.
        within: How many of them lie within the 95 % interval of the difference.
        gap: Mean ratio when timed again minus the ratio that the search estimated.
        raw_gap: Mean ratio when timed again minus the ratio that the search measured, before smoothing.
        model: How well the model of times, by layer and choice, predicts a policy; None where none was timed.
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
    model: PredictionError | None = None


@dataclass(frozen=True)
class StudyRecord:
    """A study as read from its database.

    Attributes:
        name: The study's name, and that of its folder.
        model_id: The model that was searched.
        num_layers: Its number of decoder layers.
        objectives: Direction by metric, in the space's order.
        constraints: Bound by metric, as written in the space, such as `>= 0.9 * dense`.
        metrics: Unit and meaning of every measured metric.
        trials: All trials by number; the first is dense.
        front: Numbers of the Pareto-optimal feasible trials, by falling first cost objective (dense first).
        in_gaps: Numbers of the trials that fill wide gaps of the front, in that order; see `guide.wide_gaps`.
        hypervolume: After each finished trial, in the order of numbers.
        reference: The reference point of the hypervolume, by objective.
        space_text: The space file, verbatim.
        environment: Versions, hardware, seed.
        summary: What the trials cost, such as seconds per trial against seconds of their forward passes.
        ended: Why the search ended; None where it was interrupted.
        assessment: What the search achieved.
        guide: The metric that guided the search; None where accuracy did.
        clocks: By time, how it was measured.
        random: By trial of the front, the report measurements of its random twin; see `baselines.random_twin`.
        recovery: What trainings of the best policies achieved; trials and front are then those after the trainings.
            None where none was done.
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
    in_gaps: tuple[int, ...] = ()
    clocks: Mapping[str, Clock] = field(default_factory=dict)
    random: Mapping[int, Mapping[str, Measurement]] = field(default_factory=dict)
    recovery: RecoveryOutcome | None = None

    @property
    def searched(self) -> "StudyRecord":
        """The study as the search left it, before any policy was trained."""
        return self if self.recovery is None else self.recovery.searched

    @property
    def dense(self) -> TrialResult:
        """The dense baseline, which is the first trial."""
        return self.trials[0]

    def model_of(self, policy: Policy) -> ModelRef:
        """The model that a policy of the study runs on, with what its weights are quantised to."""
        kind = self.environment.get("quantization") or policy.model.quantization
        return ModelRef(
            id=self.model_id,
            revision=self.environment.get("revision"),
            num_layers=self.num_layers,
            quantization=kind,
        )

    def trial(self, number: int) -> TrialResult:
        """A trial by Optuna's number."""
        return next(trial for trial in self.trials if trial.number == number)


def percent_of_dense(record: StudyRecord, trial: TrialResult, name: str, split: Split = "search") -> float:
    """A metric in percent of the dense model's on the same examples; NaN where either is missing."""
    ours, dense = (getattr(one, split).get(name) for one in (trial, record.dense))
    if ours is None or dense is None or not dense.value:
        return math.nan
    return 100 * objective_value(name, ours, dense) / float(dense.value)


def policy_files(record: StudyRecord) -> dict[int, str]:
    """File name of each front policy by trial number, in the order of the front; dense needs no file."""
    numbers = [number for number in record.front if number != record.dense.number]
    return {number: f"pareto-{place:02d}.yaml" for place, number in enumerate(numbers, start=1)}


def all_files(record: StudyRecord) -> dict[int, str]:
    """File name of each policy that is reported, by trial number: those of the front, then those in its wide gaps."""
    return policy_files(record) | {
        number: f"gap-{place:02d}.yaml" for place, number in enumerate(record.in_gaps, start=1)
    }


def accuracy_objective(record: StudyRecord) -> str | None:
    """The first maximised objective that is a fraction; None without any."""
    fractions = [name for name in record.objectives if record.metrics[name].unit == "fraction"]
    return next((name for name in fractions if record.objectives[name] == "maximize"), None)
