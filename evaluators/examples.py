"""The examples that evaluators measure on: lm-eval's tasks, apart for the search and the report.

Examples that guide a search and examples that are reported are never the same: where both splits use the same data,
the search takes the first documents and the report those after them.
"""

import gc
import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from skipsearch.evaluators.example_options import ExampleOptions

from .base import Measurement, Metric, Split

if TYPE_CHECKING:
    from torch import Tensor

    from ..policies.apply import PolicyHandle
    from .accuracy.rungs import Example, Rung
    from .accuracy.splits import Tasks
    from .accuracy.tasks import Score
    from .subject import Subject

# lm-eval and torch are imported where an evaluator is made: reading the options of a space stays light.

EXAMPLE_PROMPTS = 4

# Which examples: the split, the shares that are measured after each other, and the number of the share.
Part: TypeAlias = tuple[Split, tuple[float, ...], int]


class ExampleEvaluator(ABC):
    """Base of the evaluators on examples; tasks, prompts, token ids and image features are made once.

    Args:
        options: Which examples.
        subject: The loaded model.

    Raises:
        EvaluatorError: a task does not load or cannot be used, or the splits have examples in common.
    """

    metrics: ClassVar[Mapping[str, Metric]]

    def __init__(self, options: ExampleOptions, subject: "Subject") -> None:
        from .loaded_examples import LoadedExamples

        self._examples = options
        self._live = LoadedExamples.of(options, subject)
        self._memo, self._states, self._model = self._live.memo, self._live.states, self._live.model
        self._loaded, self._windows = self._live.loaded, self._live.windows
        self._rungs: dict[tuple[Split, tuple[float, ...]], list[Rung]] = {}
        self._floors: dict[Split, float] = {}

    def refuse_overlap(self, other: "ExampleEvaluator") -> None:
        """See that what this evaluator searches with is not what another one reports.

        Raises:
            EvaluatorError: they have examples in common.
        """
        from .accuracy.splits import refuse_common_examples

        windows = {"search": self._windows["search"], "report": other._windows["report"]}
        names = [next(iter(kind.metrics)) for kind in (self, other)]
        hint = f"what {names[0]} searches with {names[1]} reports: give both the same tasks and limits"
        refuse_common_examples(self._loaded["search"], other._loaded["report"], windows, hint)

    def examples(self, split: Split) -> int:
        """How many examples a split has."""
        return sum(map(len, self._windows[split].values()))

    def example_prompts(self, count: int) -> list[dict[str, "Tensor"]]:
        """Inputs of the search split, batch 1, on the CPU; the first has the median number of text tokens."""
        with self._told(self._tasks("search"), None):
            return self._prompts(count)

    def _told(self, tasks: "Tasks", handle: "PolicyHandle | None") -> AbstractContextManager[None]:
        """A mistake of a task is told with its document."""
        from .accuracy.task_mistakes import told_by_document

        return told_by_document(tasks, self._model, handle)

    def _prompts(self, count: int) -> list[dict[str, "Tensor"]]:
        first = {(name, r.doc_id): r for name, task in self._tasks("search").items() for r in reversed(task.instances)}
        lengths = [(len(self._model.tok_encode(request.args[0])), request) for request in reversed(first.values())]
        usable = [(length, request) for length, request in lengths if length]
        if not usable:
            return []
        median = statistics.median_low([length for length, _ in usable])
        nearest = sorted(usable, key=lambda entry: abs(entry[0] - median))[:count]
        prompts = [self._model.encode_prompt(request.args) for _, request in nearest]
        return [{key: value.cpu() for key, value in prompt.items()} for prompt in prompts]

    def measure(self, handle: "PolicyHandle", split: Split) -> dict[str, Measurement]:
        """Measure a policy on the examples of a split.

        Returns:
            The one metric; `detail` has the figures of each of the `tasks`, the score of each example in the order of
            tasks and documents (`per_example`, for paired differences), the seconds spent in the model
            (`forward_seconds`), and, where given answers were scored, how many `layers` that `asked` for and how many
            were `run`, the others being known from earlier policies.

        Raises:
            EvaluatorError: the prompts cannot be built, or an example's score is not what it must be.
        """
        (whole,) = self.rungs(handle, split, (1.0,))
        return whole

    def rungs(
        self,
        handle: "PolicyHandle",
        split: Split,
        shares: tuple[float, ...],
        known: Mapping[str, Measurement] = MappingProxyType({}),
    ) -> Generator[dict[str, Measurement], None, None]:
        """Measure on the examples of a split a share at a time; see `IncrementalEvaluator.rungs`."""
        (metric,) = self.metrics
        before = known.get(metric)
        self._live.begin(split)
        found = self._found(split, before)
        layers = {"asked": 0, "run": 0, **(before.detail.get("layers", {}) if before else {})}
        seconds = 0.0
        for number, rung in enumerate(self._drawn(split, shares)):
            if len(rung.places) <= len(found):
                continue
            # Counted from here: another evaluator may use the same model between two rungs.
            self._model.forward_seconds, self._states.asked, self._states.run = 0.0, 0, 0
            with self._answering(handle), self._told(rung.new, handle):
                found |= self._scored(handle, rung.new, (split, shares, number))
            seconds += self._model.forward_seconds
            layers = {"asked": layers["asked"] + self._states.asked, "run": layers["run"] + self._states.run}
            scores = {
                name: self._score(split, name, [found[example] for example in examples if example in found])
                for name, examples in rung.known.items()
            }
            yield {metric: rung.told(self._with_floor(summary(scores, seconds, layers), split))}

    def _with_floor(self, measured: Measurement, split: Split) -> Measurement:
        """A measurement whose `detail` has what guessing comes to, where that is known."""
        if split not in self._floors:
            self._floors[split] = self._guessing(split)
        floor = self._floors[split]
        return replace(measured, detail={**measured.detail, "floor": floor}) if floor else measured

    def _guessing(self, split: Split) -> float:
        """What guessing measures on a split; 0 where that is not known."""
        return 0.0

    @contextmanager
    def _answering(self, handle: "PolicyHandle") -> Iterator[None]:
        """Let the model answer under a policy, image features remembered."""
        from .accuracy.memo import cached_image_features

        self._model.handle = handle
        try:
            with cached_image_features(handle.model, self._memo), cheap_collection():
                yield
        finally:
            self._model.handle = None

    @abstractmethod
    def _scored(self, handle: "PolicyHandle", tasks: "Tasks", part: Part) -> "dict[Example, Any]":
        """What each of some examples scores; one that has no score is left out."""

    @abstractmethod
    def _score(self, split: Split, name: str, items: Sequence[Any]) -> "Score":
        """The figure of a task from the scores of its examples."""

    def _found(self, split: Split, known: Measurement | None) -> "dict[Example, Any]":
        """What each example scored that was measured before; nothing where that was not kept."""
        return self._kept(split, known, "per_example")

    def _kept(self, split: Split, known: Measurement | None, name: str) -> "dict[Example, Any]":
        """Something that was kept of each example that was measured before."""
        from .accuracy.rungs import numbered

        if known is None:
            return {}
        scores = dict(zip(known.detail.get("places", []), known.detail.get(name, []), strict=False))
        numbers = numbered(self._tasks(split))
        return {example: scores[number] for example, number in numbers.items() if number in scores}

    def _tasks(self, split: str) -> "Tasks":
        """The tasks of a split with their requests."""
        return self._live.tasks(split)

    def _drawn(self, split: Split, shares: tuple[float, ...]) -> "list[Rung]":
        """The rungs of a split, which are drawn on first use; a single one where the examples must stay together."""
        from .accuracy.rungs import draw

        if (split, shares) not in self._rungs:
            usable = shares if len(shares) > 1 and self._can_part(split) else (1.0,)
            self._rungs[split, shares] = draw(
                self._tasks(split), usable, self._examples.batch_size, self._examples.seed
            )
        return self._rungs[split, shares]

    def _can_part(self, split: Split) -> bool:
        """True where what is measured on some examples does not depend on the others."""
        return True


def summary(scores: Mapping[str, "Score"], forward_seconds: float, layers: Mapping[str, int]) -> Measurement:
    """The plain mean over tasks, with its standard error where every task has one."""
    values = [score.value for score in scores.values()]
    stderrs = [score.stderr for score in scores.values() if score.stderr is not None]
    stderr = math.hypot(*stderrs) / len(values) if len(stderrs) == len(values) else None
    items = [item for score in scores.values() for item in score.items]
    tasks = {
        name: {"metric": score.metric, "value": score.value, "stderr": score.stderr, "n": len(score.items)}
        for name, score in scores.items()
    }
    detail: dict[str, Any] = {"tasks": tasks, "forward_seconds": forward_seconds}
    divergences = [score.divergences for score in scores.values() if score.divergences]
    if divergences:
        detail["divergence"] = statistics.fmean(map(statistics.fmean, divergences))
        detail["divergences"] = [item for items in divergences for item in items]
    if layers["asked"]:
        detail["layers"] = dict(layers)
    try:
        detail["per_example"] = [float(item) for item in items]
    except TypeError:
        # Metrics such as f1 keep pairs for their aggregation, which has no value of one example.
        detail["per_example"] = []
    return Measurement(sum(values) / len(values), len(items), stderr=stderr, detail=detail)


@contextmanager
def cheap_collection() -> Iterator[None]:
    """Spare the garbage collector what lives anyway: lm-eval calls it after every batch, at some 100 ms each."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
