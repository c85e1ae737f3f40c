"""The interface of evaluators: options, metrics with unit and direction, and a method that measures a policy."""

import functools
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from ..policies.errors import EvaluatorError
from ..policies.plugins import PluginGroup

if TYPE_CHECKING:
    from ..policies.apply import PolicyHandle
    from .subject import Subject

GROUP = "skipsearch.evaluators"
TRANSFER_PREFIX = "transfer_"  # of a transfer task among the measurements of a policy file
UNTRAINED_PREFIX = "untrained_"  # of metrics in a policy file that were measured before its training

Split = Literal["search", "report", "transfer"]
Direction = Literal["maximize", "minimize"]
MetricKind = Literal["time", "count", "bytes", "fraction", "nats", "other"]
KIND_OF_UNIT: Mapping[str, MetricKind] = {
    "ms": "time", "s": "time", "flops": "count", "bytes": "bytes", "fraction": "fraction", "nats": "nats"
}  # fmt: skip


class Options(BaseModel):
    """Base of an evaluator's options: the mapping under its name in a space's `evaluate`."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Metric:
    """A number that an evaluator measures.

    Reports format a value, compare it with dense and correct it for the drift of the machine by this declaration, and
    never by the metric's name.

    Attributes:
        unit: `fraction`, `nats`, `flops`, `ms`, `bytes`, or any other, which is printed as it is.
        direction: Whether higher or lower values are better.
        text: One sentence that says exactly what is counted.
        declared_kind: The kind, where the unit does not imply it. A `time` that was measured interleaved with dense
            (`Measurement.dense`) is compared by its ratio to the dense time.
    """

    unit: str
    direction: Direction
    text: str
    declared_kind: MetricKind | None = None

    @property
    def kind(self) -> MetricKind:
        """The kind of quantity: as declared, or as the unit implies."""
        return self.declared_kind or KIND_OF_UNIT.get(self.unit, "other")


@dataclass(frozen=True)
class Measurement:
    """One measured value of a metric: small and plain, so that it can cross processes.

    Attributes:
        value: The value, in the metric's unit.
        n: Number of examples or repeats.
        dense: The dense model's value, where it was measured together with this one (interleaved).
        stderr: Standard error, of a mean over examples or of a time that was measured in several visits.
        iqr: Interquartile range, of a latency.
        detail: Further values, such as the accuracy of each task.
    """

    value: float
    n: int = 1
    dense: float | None = None
    stderr: float | None = None
    iqr: float | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def floor(self) -> float:
        """The value of guessing, where the task says which answers are right; else 0."""
        floor: float = self.detail.get("floor", 0.0)
        return floor

    @property
    def is_partial(self) -> bool:
        """True where only some of the examples were measured."""
        return "places" in self.detail


class Evaluator(Protocol):
    """Measures a model that runs under a policy. Knows nothing of Optuna, Ray or the search space.

    A worker makes it once, with `Evaluator(options, subject)`; everything that does not depend on the policy is done
    there.

    Attributes:
        name: The key under `evaluate` in a space.
        options: The pydantic model of its options.
        metrics: The metrics that it measures, by name.
        cost: Order of execution: cheap evaluators run first, and a trial that violates a constraint stops there.
        exclusive: True where nothing else may run on the device meanwhile, as for wall-clock time.
        splits: True where it measures on examples, and therefore on the search and the report split separately.
    """

    name: ClassVar[str]
    options: ClassVar[type[Options]]
    metrics: ClassVar[Mapping[str, Metric]]
    cost: ClassVar[int]
    exclusive: ClassVar[bool]
    splits: ClassVar[bool]

    def __init__(self, options: Any, subject: "Subject") -> None: ...

    def measure(self, handle: "PolicyHandle", split: Split) -> dict[str, Measurement]:
        """Measure `handle.model`, which runs under `handle.policy`; `handle.dense()` lifts the policy for a while.

        Args:
            handle: The model under the policy.
            split: The examples: those of the search, those of the report, or other tasks (`transfer`), which only the
                accuracy has.

        Returns:
            One measurement for each name in `metrics`.

        Raises:
            EvaluatorError: the policy cannot be measured; the message says why.
        """
        ...


@runtime_checkable
class IncrementalEvaluator(Evaluator, Protocol):
    """An evaluator that measures on few examples first and then on more, and can be stopped at any rung.

    The `detail` of a partial measurement has the score of each example (`per_example`, in the order drawn), the
    `places` of these examples in the `per_example` of the whole split, and the number of all examples (`total`).
    Scores of a maximised fraction are at most 1, scores of a minimised metric at least 0.
    """

    def rungs(
        self,
        handle: "PolicyHandle",
        split: Split,
        fractions: tuple[float, ...],
        previous: Mapping[str, Measurement] = MappingProxyType({}),
    ) -> Generator[dict[str, Measurement], None, None]:
        """Measure on growing fractions of the examples; each rung includes the examples of the rungs before.

        Args:
            handle: As in `measure`.
            split: The split of the examples.
            fractions: The fraction of the examples at each rung, ascending, the last 1; a rung that would add less than
                a batch may be left out. Equal fractions give the same examples, in the same order and the same batches.
            previous: The measurements of an earlier rung with the same fractions, perhaps from another worker; only
                further examples are measured.

        Yields:
            What `measure` returns, for the examples so far; the last rung has all of them. There is only one rung where
            examples cannot be scored one by one, or are too few.

        Raises:
            EvaluatorError: the policy cannot be measured; the message says why.
        """
        ...


@runtime_checkable
class RetimingEvaluator(Evaluator, Protocol):
    """An evaluator of times that can time a policy briefly, in turns with other policies of a front."""

    def visit(self, handle: "PolicyHandle") -> dict[str, Measurement]:
        """Measure as `measure` does, with few repeats.

        Raises:
            EvaluatorError: the policy cannot be measured; the message says why.
        """
        ...


@runtime_checkable
class NumberedEvaluator(Protocol):
    """An evaluator class with metrics whose names end in numbers, which its options choose.

    Attributes:
        numbered: These metrics, by name without the number.
    """

    numbered: ClassVar[Mapping[str, Metric]]

    @staticmethod
    def numbers(options: Mapping[str, Any]) -> list[int]:
        """The numbers that options choose; the options may still have mistakes."""
        ...


BUILT_IN = {
    "accuracy": "skipsearch.evaluators.accuracy.accuracy:AccuracyEvaluator",
    "answer_loss": "skipsearch.evaluators.answer_loss:AnswerLossEvaluator",
    "divergence": "skipsearch.evaluators.divergence:DivergenceEvaluator",
    "flops": "skipsearch.evaluators.flops:FlopsEvaluator",
    "latency": "skipsearch.evaluators.latency:LatencyEvaluator",
    "memory": "skipsearch.evaluators.memory:MemoryEvaluator",
    "speculative": "skipsearch.evaluators.speculative:SpeculativeEvaluator",
}


def available() -> tuple[str, ...]:
    """The names of all evaluators, built in or from installed packages."""
    return PLUGINS.available()


def evaluator_class(name: str) -> type[Evaluator]:
    """Find an evaluator by its name under `evaluate` in a space.

    Raises:
        EvaluatorError: there is no such evaluator, several packages have one, or it lacks a part of the interface.
    """
    evaluator: type[Evaluator] = PLUGINS.find(name)
    return evaluator


def metrics_of(name: str, options: Mapping[str, Any] | None) -> Mapping[str, Metric]:
    """The metrics that an evaluator measures with some options, such as `ttft_ms_c8` for eight requests at a time.

    Args:
        name: The evaluator.
        options: Its options as in a space, which may still have mistakes.

    Raises:
        EvaluatorError: see `evaluator_class`.
    """
    found = evaluator_class(name)
    if not isinstance(found, NumberedEvaluator):
        return found.metrics
    numbers = found.numbers(options or {})
    return {**found.metrics, **{f"{key}{one}": metric for one in numbers for key, metric in found.numbered.items()}}


@functools.cache
def numbered_metrics() -> Mapping[str, Metric]:
    """The metrics of all evaluators that are followed by a number, by name without it."""
    found: dict[str, Metric] = {}
    for name in available():
        try:
            found |= getattr(evaluator_class(name), "numbered", {})
        except EvaluatorError:
            continue
    return found


@functools.cache
def declared_metrics() -> Mapping[str, Metric]:
    """The metrics of all evaluators that can be loaded, by name."""
    found: dict[str, Metric] = {}
    for name in available():
        try:
            found |= evaluator_class(name).metrics
        except EvaluatorError:
            continue
    return found


def declared_metric(name: str) -> Metric | None:
    """The declaration of a metric; None where no evaluator measures it.

    Policy files have some metrics a second time, with the prefix `search_`, or `untrained_` before a training, and the
    accuracy on each transfer task with the prefix `transfer_`.
    """
    known = declared_metrics()
    plain = name.removeprefix("search_").removeprefix(UNTRAINED_PREFIX)
    own = known.get(name) or known.get(plain) or numbered_metrics().get(plain.rstrip("0123456789"))
    return known.get("accuracy") if own is None and name.startswith(TRANSFER_PREFIX) else own


def interface_problems(found: Any, name: str) -> list[str]:
    """What an object lacks to be the evaluator of a name, one line each."""
    if not isinstance(found, type):
        return [f"found {type(found).__name__}, expected a class"]
    options, metrics = getattr(found, "options", None), getattr(found, "metrics", None)
    measured = list(metrics.values()) if isinstance(metrics, Mapping) else []
    checks: dict[str, Any] = {
        f"name: expected '{name}'": getattr(found, "name", None) == name,
        "options: expected a subclass of Options": isinstance(options, type) and issubclass(options, Options),
        "metrics: expected a mapping of names to Metric": measured
        and all(isinstance(metric, Metric) for metric in measured),
        "cost: expected a whole number": isinstance(getattr(found, "cost", None), int),
        "exclusive: expected true or false": isinstance(getattr(found, "exclusive", None), bool),
        "splits: expected true or false": isinstance(getattr(found, "splits", None), bool),
        "measure: expected a method": callable(getattr(found, "measure", None)),
    }
    return [problem for problem, holds in checks.items() if not holds]


PLUGINS = PluginGroup(GROUP, "evaluator", BUILT_IN, interface_problems, EvaluatorError)
