"""The base of evaluators that measure on lm-eval's tasks, with separate examples for the search and the report.

Examples that guide a search are never reported: where both splits use the same data, the search takes the first
documents and the report those after them.
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

from .base import Measurement, Metric, Split
from .example_options import ExampleOptions

if TYPE_CHECKING:
    from torch import Tensor

    from ..policies.apply import PolicyHandle
    from .accuracy.rungs import Example, Rung
    from .accuracy.splits import Tasks
    from .accuracy.tasks import Score
    from .answers import Request
    from .subject import Subject

# lm-eval and torch are imported where an evaluator is made, so that reading the options of a space needs neither.

EXAMPLE_PROMPTS = 4

# A set of examples: the split, the fractions of its rungs, and the number of the rung.
RungKey: TypeAlias = tuple[Split, tuple[float, ...], int]


class ExampleEvaluator(ABC):
    """Base of evaluators that measure on examples; tasks, prompts, token ids and image features are made once.

    Args:
        options: The examples.
        subject: The loaded model.

    Raises:
        EvaluatorError: a task does not load or cannot be used, or the splits share examples.

    Attributes:
        exact_splits: The splits whose numbers are lm-eval's to the last bit; the others are measured faster.
    """

    metrics: ClassVar[Mapping[str, Metric]]
    exact_splits: tuple[str, ...] = ("report", "transfer")

    def __init__(self, options: ExampleOptions, subject: "Subject") -> None:
        from .loaded_examples import LoadedExamples

        self._examples = options
        self._shared = LoadedExamples.of(options, subject)
        self._memo, self._states, self._model = self._shared.memo, self._shared.states, self._shared.model
        self._loaded, self._ranges = self._shared.loaded, self._shared.ranges
        self._rungs: dict[tuple[Split, tuple[float, ...]], list[Rung]] = {}
        self._floors: dict[Split, float] = {}

    def refuse_overlap(self, other: "ExampleEvaluator") -> None:
        """Check that this evaluator's search split shares no examples with what another one reports.

        Raises:
            EvaluatorError: they share examples.
        """
        from .accuracy.splits import refuse_common_examples

        own, others = (next(iter(kind.metrics)) for kind in (self, other))
        for split in {*other._loaded} - {"search"}:
            ranges = {"search": self._ranges["search"], split: other._ranges[split]}
            hint = f"give {own}.search and {others}.{split} the same tasks and limits, or tasks of different data"
            refuse_common_examples(self._loaded["search"], other._loaded[split], ranges, hint, split)

    @property
    def loaded_splits(self) -> list[str]:
        """The splits that have examples."""
        return [*self._ranges]

    def num_examples(self, split: str) -> int:
        """The number of examples of a split."""
        return sum(map(len, self._ranges[split].values()))

    def example_prompts(self, count: int) -> list[dict[str, "Tensor"]]:
        """Inputs of the search split, batch 1, on the CPU; the first has the median number of text tokens."""
        with self._naming_document(self._tasks("search"), None):
            return self._prompts(count)

    def calibration_prompts(self, count: int) -> "Iterator[dict[str, Tensor]]":
        """Prompts of examples of the search split; see `LoadedExamples.calibration_prompts`."""
        return self._shared.calibration_prompts(count)

    def with_one_picture(self, count: int) -> "list[tuple[str, str, Request]]":
        """Some examples of the search split with one picture each, evenly spaced: task, question and request."""
        found = {
            (name, request.doc_id): (name, question(task, request.doc), request)
            for name, task in self._tasks("search").items()
            for request in task.instances
            if len(request.args) > 2 and len(request.args[2]["visual"]) == 1
        }
        usable = [*found.values()]
        return [usable[place * len(usable) // count] for place in range(min(count, len(usable)))]

    def prompt_of(self, request: "Request") -> dict[str, "Tensor"]:
        """The model's input for the prompt of a request, batch 1, on the CPU."""
        return {key: value.cpu() for key, value in self._model.encode_prompt(request.args).items()}

    def _naming_document(self, tasks: "Tasks", handle: "PolicyHandle | None") -> AbstractContextManager[None]:
        """Turn an error in a task into one that names the document."""
        from .accuracy.task_mistakes import naming_document

        return naming_document(tasks, self._model, handle)

    def _prompts(self, count: int) -> list[dict[str, "Tensor"]]:
        first = {(name, r.doc_id): r for name, task in self._tasks("search").items() for r in reversed(task.instances)}
        lengths = [(len(self._model.tok_encode(request.args[0])), request) for request in reversed(first.values())]
        usable = [(length, request) for length, request in lengths if length]
        if not usable:
            return []
        median = statistics.median_low([length for length, _ in usable])
        nearest = sorted(usable, key=lambda entry: abs(entry[0] - median))[:count]
        return [self.prompt_of(request) for _, request in nearest]

    def measure(self, handle: "PolicyHandle", split: Split) -> dict[str, Measurement]:
        """Measure a policy on the examples of a split.

        Returns:
            The one metric. Its `detail` has the result of each of the `tasks`, the score of each example in the order
            of tasks and documents (`per_example`, for paired differences), the seconds inside the model
            (`forward_seconds`) and, where given answers were scored, the number of `layers` that were `asked` for and
            the number that were `run`; the others were known from earlier policies.

        Raises:
            EvaluatorError: the prompts cannot be built, or the score of an example is not valid.
        """
        (measured,) = self.rungs(handle, split, (1.0,))
        return measured

    def rungs(
        self,
        handle: "PolicyHandle",
        split: Split,
        fractions: tuple[float, ...],
        previous: Mapping[str, Measurement] = MappingProxyType({}),
    ) -> Generator[dict[str, Measurement], None, None]:
        """Measure on growing fractions of a split; see `IncrementalEvaluator.rungs`."""
        (metric,) = self.metrics
        before = previous.get(metric)
        self._shared.begin(split)
        found = self._previous_scores(split, before)
        layers = {"asked": 0, "run": 0, **(before.detail.get("layers", {}) if before else {})}
        seconds = 0.0
        for number, rung in enumerate(self._rungs_of(split, fractions)):
            if len(rung.places) <= len(found):
                continue
            # Reset here, because another evaluator may use the same model between two rungs.
            self._model.forward_seconds, self._states.asked, self._states.run = 0.0, 0, 0
            # What is reported is lm-eval's own number to the last bit; a search may round differently.
            self._model.is_exact = split in self.exact_splits
            with self.under_policy(handle), self._naming_document(rung.new, handle):
                found |= self._score_examples(handle, rung.new, (split, fractions, number))
            seconds += self._model.forward_seconds
            layers = {"asked": layers["asked"] + self._states.asked, "run": layers["run"] + self._states.run}
            scores = {
                name: self._aggregate(split, name, [found[example] for example in examples if example in found])
                for name, examples in rung.examples.items()
            }
            yield {metric: rung.with_places(self._with_floor(summary(scores, seconds, layers), split))}

    def _with_floor(self, measured: Measurement, split: Split) -> Measurement:
        """A measurement with the value of guessing in its `detail`, where that is known."""
        if split not in self._floors:
            self._floors[split] = self._chance_level(split)
        floor = self._floors[split]
        return replace(measured, detail={**measured.detail, "floor": floor}) if floor else measured

    def _chance_level(self, split: Split) -> float:
        """The value of guessing on a split; 0 where it is not known."""
        return 0.0

    @contextmanager
    def under_policy(self, handle: "PolicyHandle") -> Iterator[None]:
        """Let the model answer under a policy, with cached image features."""
        from .accuracy.memo import cached_image_features

        self._model.handle = handle
        try:
            with cached_image_features(handle.model, self._memo, lambda: handle.weights), frozen_garbage():
                yield
        finally:
            self._model.handle = None

    @abstractmethod
    def _score_examples(self, handle: "PolicyHandle", tasks: "Tasks", rung: RungKey) -> "dict[Example, Any]":
        """The score of each example of some tasks; an example without a score is left out."""

    @abstractmethod
    def _aggregate(self, split: Split, name: str, items: Sequence[Any]) -> "Score":
        """The result of a task from the scores of its examples."""

    def _previous_scores(self, split: Split, previous: Measurement | None) -> "dict[Example, Any]":
        """The scores in an earlier measurement, by example; empty where it has none."""
        return self._per_example(split, previous, "per_example")

    def _per_example(self, split: Split, previous: Measurement | None, name: str) -> "dict[Example, Any]":
        """A list in the detail of an earlier measurement, by example."""
        from .accuracy.rungs import numbered

        if previous is None:
            return {}
        values = dict(zip(previous.detail.get("places", []), previous.detail.get(name, []), strict=False))
        numbers = numbered(self._tasks(split))
        return {example: values[number] for example, number in numbers.items() if number in values}

    def _tasks(self, split: str) -> "Tasks":
        """The tasks of a split with their requests."""
        return self._shared.tasks(split)

    def _rungs_of(self, split: Split, fractions: tuple[float, ...]) -> "list[Rung]":
        """The rungs of a split, drawn on first use; a single one where examples cannot be scored one by one."""
        from .accuracy.rungs import draw

        if (split, fractions) not in self._rungs:
            usable = fractions if len(fractions) > 1 and self._scores_independently(split) else (1.0,)
            self._rungs[split, fractions] = draw(
                self._tasks(split), usable, self._examples.batch_size, self._examples.seed
            )
        return self._rungs[split, fractions]

    def _scores_independently(self, split: Split) -> bool:
        """True where the score of an example does not depend on the other examples."""
        return True


def question(task: Any, document: Mapping[str, Any]) -> str:
    """The question of a document in one line, or the text of its prompt where it has none."""
    asked = document.get("question")
    text = asked if isinstance(asked, str) else str(task.doc_to_text(document)).replace("<image>", "")
    return " ".join(text.split())


def summary(scores: Mapping[str, "Score"], forward_seconds: float, layers: Mapping[str, int]) -> Measurement:
    """The plain mean over tasks, with a standard error where every task has one.

    Args:
        scores: The result of each task.
        forward_seconds: Seconds inside the model.
        layers: Numbers of layers `asked` for and `run`.
    """
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
        # Corpus metrics such as f1 keep pairs for their aggregation, so a single example has no value.
        detail["per_example"] = []
    return Measurement(sum(values) / len(values), len(items), stderr=stderr, detail=detail)


@contextmanager
def frozen_garbage() -> Iterator[None]:
    """Exclude all present objects from garbage collection, which lm-eval runs after every batch (about 100 ms each)."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
