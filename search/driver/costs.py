"""What a measurement costs in seconds, by evaluator: from the dense trial, or as `skipsearch plan` measured it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ...evaluators.base import Evaluator, Measurement, evaluator_class

# Measured on searches of a vision-language model of 12 layers and of a text model of 30 layers. They count until
# `skipsearch plan` or the first steps of a phase have measured what they stand for.
SHARE_ON_EXAMPLES = 0.6  # seconds of a policy on examples over those of dense: it computes less
SHARE_WITH_STATES = 0.4  # the same where hidden states of earlier policies serve it, as they do to score given answers
SHARE_TIMED = 0.85  # the same for times, which are measured interleaved with those of dense
SHARE_OF_VISIT = 0.4  # seconds of a brief second timing over those of a whole one
CONTENTION = 1.3  # how much longer a measurement takes while other workers use the same device
ASK_SECONDS, TELL_SECONDS = 0.1, 0.05  # of the driver, to propose a policy and to store a result


@dataclass(frozen=True)
class JobSeconds:
    """The seconds of one measurement of a policy.

    Attributes:
        beside: What a worker can do beside other workers.
        alone: What needs the device for itself.
        driver: What the driver does while the workers wait.
    """

    beside: float = 0.0
    alone: float = 0.0
    driver: float = 0.0

    def __add__(self, other: "JobSeconds") -> "JobSeconds":
        return JobSeconds(self.beside + other.beside, self.alone + other.alone, self.driver + other.driver)

    def __mul__(self, factor: float) -> "JobSeconds":
        return JobSeconds(self.beside * factor, self.alone * factor, self.driver * factor)


@dataclass(frozen=True)
class EvaluatorCost:
    """The seconds of one evaluator.

    Attributes:
        fixed: Of a measurement of dense, whatever the number of examples.
        each: Of dense, for each example.
        share: Seconds of a policy of the space, as a share of those of dense.
        visit: Seconds of a second timing at the end of a search, as a share of those of a measurement.
        is_alone: True where the device must do nothing else meanwhile.
    """

    fixed: float
    each: float = 0.0
    share: float = 1.0
    visit: float = 1.0
    is_alone: bool = False

    def seconds(self, examples: int) -> JobSeconds:
        """Seconds of a policy of the space on so many examples."""
        seconds = (self.fixed + self.each * examples) * self.share
        return JobSeconds(alone=seconds) if self.is_alone else JobSeconds(beside=seconds)


@dataclass(frozen=True)
class Costs:
    """What the measurements of a search cost.

    Attributes:
        evaluators: By name.
        contention: How much longer a measurement takes while other workers use the same device.
        forward: The share of a worker's seconds that it spends in forward passes of the model.
        training_step: Seconds of an optimiser step of `search.recover`, measured with the dense model; 0 without one.
        measured: By phase, what a step of it was measured to cost; it counts in place of the sum of its evaluators.
    """

    evaluators: Mapping[str, EvaluatorCost] = field(default_factory=dict)
    contention: float = CONTENTION
    forward: float = 0.0
    training_step: float = 0.0
    measured: Mapping[str, JobSeconds] = field(default_factory=dict)

    def job(self, examples: Mapping[str, int]) -> JobSeconds:
        """The seconds of one measurement of a policy.

        Args:
            examples: The evaluators that run, each with the number of examples that it answers.
        """
        parts = [self.evaluators[name].seconds(number) for name, number in examples.items() if name in self.evaluators]
        return sum(parts, JobSeconds())

    def visits(self) -> JobSeconds:
        """The seconds of one second timing of a policy."""
        parts = [one.seconds(0) * one.visit for one in self.evaluators.values() if one.is_alone]
        return sum(parts, JobSeconds())


def dense_costs(
    seconds: Mapping[str, float], measurements: Mapping[str, Measurement], guide: str | None = None
) -> Costs:
    """What measurements cost by the dense trial, with assumed shares of the policies.

    Args:
        seconds: Wall-clock seconds of the dense trial by evaluator, and in `forward` and `total`.
        measurements: What it measured.
        guide: The evaluator whose loss guides the search, which ran first; None where none does.
    """
    names = [name for name in seconds if name not in ("apply", "forward", "total")]
    costs = {name: evaluator_cost(evaluator_class(name), seconds[name], measurements) for name in names}
    if guide in costs:
        # Another evaluator that scores given answers took the answers of the same examples from the guide.
        least = costs[guide].each
        costs = {name: replace(cost, each=max(cost.each, least)) if cost.share == SHARE_WITH_STATES else cost
                 for name, cost in costs.items()}  # fmt: skip
    total = seconds.get("total", 0.0)
    return Costs(costs, CONTENTION, seconds.get("forward", 0.0) / total if total else 0.0)


def evaluator_cost(
    evaluator: type[Evaluator], seconds: float, measurements: Mapping[str, Measurement]
) -> EvaluatorCost:
    """The cost of one evaluator by what dense took.

    Args:
        evaluator: Its class.
        seconds: What dense took, on all examples that its measurement counts.
        measurements: What was measured of dense.
    """
    if evaluator.splits:
        found = [measurements[name] for name in evaluator.metrics if name in measurements]
        examples = max((entry.n for entry in found), default=1)
        reuses = any("layers" in entry.detail for entry in found)
        share = SHARE_WITH_STATES if reuses else SHARE_ON_EXAMPLES
        return EvaluatorCost(0.0, seconds / max(examples, 1), share)
    visit = SHARE_OF_VISIT if hasattr(evaluator, "visit") else 1.0
    share = SHARE_TIMED if evaluator.exclusive else 1.0
    return EvaluatorCost(seconds, 0.0, share, visit, evaluator.exclusive)
