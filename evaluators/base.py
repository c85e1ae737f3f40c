"""What every evaluator is: options, metrics with unit and direction, and one method that measures a patched model."""

import functools
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from ..policies.errors import EvaluatorError
from ..policies.wording import nearest

if TYPE_CHECKING:
    from ..policies.apply import PolicyHandle
    from .subject import Subject

GROUP = "skipsearch.evaluators"

Split = Literal["search", "report"]
Direction = Literal["maximize", "minimize"]
Kind = Literal["time", "count", "bytes", "fraction", "nats", "other"]
KINDS: Mapping[str, Kind] = {
    "ms": "time", "s": "time", "flops": "count", "bytes": "bytes", "fraction": "fraction", "nats": "nats"
}  # fmt: skip


class Options(BaseModel):
    """Base of an evaluator's options: the mapping under its name in a space's `evaluate`."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Metric:
    """A number that an evaluator measures.

    Reports format a figure, compare it with dense and correct it for the drift of the machine by what is declared here,
    and never by the metric's name.

    Attributes:
        unit: `fraction`, `nats`, `flops`, `ms`, `bytes`, or any other, which is printed as it stands.
        direction: Which way is better.
        text: One sentence that says exactly what is counted.
        declared_metrics: The kind, where the unit does not tell it. A `time` that was measured interleaved with dense
            (`Measurement.dense`) is compared by its ratio to that.
    """

    unit: str
    direction: Direction
    text: str
    declared_metrics: Kind | None = None

    @property
    def kind(self) -> Kind:
        """What is measured: as declared, or as the unit tells."""
        return self.declared_metrics or KINDS.get(self.unit, "other")


@dataclass(frozen=True)
class Measurement:
    """One measured figure, a small plain value that crosses processes.

    Attributes:
        value: The figure, in the metric's unit.
        n: Examples or repeats behind it.
        dense: The dense model's figure, where it was measured together with this one (interleaved).
        stderr: Standard error, of a mean over examples, or of a time that was measured in several visits.
        iqr: Interquartile range, of a latency.
        detail: What else a reader may want to know, such as the accuracy of each task.
    """

    value: float
    n: int = 1
    dense: float | None = None
    stderr: float | None = None
    iqr: float | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def floor(self) -> float:
        """What guessing measures, of an accuracy whose task tells; else 0."""
        found: float = self.detail.get("floor", 0.0)
        return found

    @property
    def is_partial(self) -> bool:
        """True of a figure of some of the examples only."""
        return "places" in self.detail


class Evaluator(Protocol):
    """Measures a model that runs under a policy. Knows nothing of Optuna, Ray or the search space.

    It is made once a worker, with `Evaluator(options, subject)`, and does there what does not depend on the policy.

    Attributes:
        name: The key under `evaluate` in a space.
        options: The pydantic model of its options.
        metrics: What it measures, by name.
        cost: Rank by expense; cheap evaluators run first, and a trial that breaks a constraint stops there.
        exclusive: True where nothing else may run on the device meanwhile, as for wall-clock time.
        splits: True where it measures on examples, hence apart on the search and the report split.
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

        Returns:
            One measurement for each name in `metrics`.

        Raises:
            EvaluatorError: it cannot be measured, and why.
        """
        ...


@runtime_checkable
class IncrementalEvaluator(Evaluator, Protocol):
    """An evaluator that can measure on few examples first and on more after that, and be left at any time.

    What it measures on a part has, in `detail`, the score of each example (`per_example`, in the order in which they
    are drawn), the `places` of these examples in the `per_example` of the whole, and how many there are (`total`).
    Scores of a maximised fraction are at most 1, those of a minimised metric at least 0.
    """

    def rungs(
        self,
        handle: "PolicyHandle",
        split: Split,
        shares: tuple[float, ...],
        known: Mapping[str, Measurement] = MappingProxyType({}),
    ) -> Generator[dict[str, Measurement], None, None]:
        """Measure on a share of the examples after the other, each time with those before.

        Args:
            handle: As in `measure`.
            split: The examples.
            shares: The share of the examples at each rung, ascending, the last 1; a rung that would add less than a
                batch may be left out. Whoever measures in the same shares has the same examples, in the same order
                and the same batches.
            known: What it yielded on the first of these shares before, perhaps elsewhere; only what is beyond is
                measured.

        Yields:
            What `measure` returns, of the examples so far; at last of all. Only that, where examples cannot be told
            apart, or are too few.

        Raises:
            EvaluatorError: it cannot be measured, and why.
        """
        ...


@runtime_checkable
class RetimingEvaluator(Evaluator, Protocol):
    """An evaluator of times that can visit a policy shortly, in turns with others, when a front is timed again."""

    def visit(self, handle: "PolicyHandle") -> dict[str, Measurement]:
        """What `measure` returns, of few repeats.

        Raises:
            EvaluatorError: it cannot be measured, and why.
        """
        ...


BUILT_IN = {
    "accuracy": "skipsearch.evaluators.accuracy.accuracy:AccuracyEvaluator",
    "answer_loss": "skipsearch.evaluators.answer_loss:AnswerLossEvaluator",
    "divergence": "skipsearch.evaluators.divergence:DivergenceEvaluator",
    "flops": "skipsearch.evaluators.flops:FlopsEvaluator",
    "latency": "skipsearch.evaluators.latency:LatencyEvaluator",
    "memory": "skipsearch.evaluators.memory:MemoryEvaluator",
}


def available() -> tuple[str, ...]:
    """Names of all evaluators: the built-in ones and those of installed packages."""
    return tuple(sorted({*BUILT_IN, *(entry.name for entry in entry_points(group=GROUP))}))


def evaluator_class(name: str) -> type[Evaluator]:
    """Find an evaluator by the name it has under `evaluate` in a space.

    Raises:
        EvaluatorError: there is none, two packages bring one each, or what they bring is none.
    """
    found = {entry.value: entry for entry in entry_points(group=GROUP) if entry.name == name}
    if name in BUILT_IN:
        found[BUILT_IN[name]] = EntryPoint(name, BUILT_IN[name], GROUP)
    if not found:
        names = available()
        hint = f"available: {', '.join(names)}"
        raise EvaluatorError(f"there is no evaluator '{name}'", [nearest(name, list(names))], hint)
    if len(found) > 1:
        origins = [f"{value}, {origin(entry)}" for value, entry in sorted(found.items())]
        hint = "uninstall one of the packages, or rename its entry point"
        raise EvaluatorError(f"the evaluator '{name}' exists {len(found)} times", origins, hint)
    return loaded(*found.values())


@functools.cache
def declared_metrics() -> Mapping[str, Metric]:
    """Every metric that an evaluator which can be loaded declares."""
    found: dict[str, Metric] = {}
    for name in available():
        try:
            found |= evaluator_class(name).metrics
        except EvaluatorError:
            continue
    return found


def declared_metric(name: str) -> Metric | None:
    """What was declared of a metric; None where nobody here measures it. Policies call some `search_…` as well."""
    known = declared_metrics()
    return known.get(name) or known.get(name.removeprefix("search_"))


def origin(entry: EntryPoint) -> str:
    """Which package brings an evaluator."""
    return f"from {entry.dist.name} {entry.dist.version}" if entry.dist else "built in"


def loaded(entry: EntryPoint) -> type[Evaluator]:
    """Import an evaluator and check that it is one.

    Raises:
        EvaluatorError: it cannot be imported, or lacks something.
    """
    try:
        found = entry.load()
    except (ImportError, AttributeError) as cause:
        where = [f"{entry.value}, {origin(entry)}", str(cause)]
        raise EvaluatorError(f"the evaluator '{entry.name}' cannot be imported", where) from cause
    problems = faults(found, entry.name)
    if problems:
        raise EvaluatorError(f"{entry.value}, {origin(entry)}, is no evaluator", problems)
    evaluator: type[Evaluator] = found
    return evaluator


def faults(found: Any, name: str) -> list[str]:
    """What keeps an object from being the evaluator of that name, one line each."""
    if not isinstance(found, type):
        return [f"found {type(found).__name__}, expected a class"]
    options, metrics = getattr(found, "options", None), getattr(found, "metrics", None)
    measured = list(metrics.values()) if isinstance(metrics, Mapping) else []
    checks: dict[str, Any] = {
        f"name: expected '{name}'": getattr(found, "name", None) == name,
        "options: expected a subclass of Options": isinstance(options, type) and issubclass(options, Options),
        "metrics: expected Metric by name": measured and all(isinstance(metric, Metric) for metric in measured),
        "cost: expected a whole number": isinstance(getattr(found, "cost", None), int),
        "exclusive: expected true or false": isinstance(getattr(found, "exclusive", None), bool),
        "splits: expected true or false": isinstance(getattr(found, "splits", None), bool),
        "measure: expected a method": callable(getattr(found, "measure", None)),
    }
    return [problem for problem, holds in checks.items() if not holds]
