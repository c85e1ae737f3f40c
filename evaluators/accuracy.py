"""Accuracy on lm-eval's tasks: the same prompts, filters and metric code, and equal to `simple_evaluate`.

Examples that guide a search and examples that are reported are never the same: where both splits use the same data,
the search takes the first documents and the report those after them.
"""

import gc
import math
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from .base import Measurement, Metric, Options, Split

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from torch import Tensor

    from ..policies.apply import PolicyHandle
    from .accuracy_tasks import Score
    from .subject import Subject

# lm-eval and torch are imported where an evaluator is made: reading the options of a space stays light.

EXAMPLE_PROMPTS = 4


class SplitOptions(Options):
    """Which examples one split has.

    Attributes:
        tasks: Tasks of its own; None takes those of the evaluator.
        limit: Documents of each task. None takes all; of data that both splits use, the search takes the first half
            and the report the rest. Documents are taken in the order of the data, so data sorted by label or kind
            should be shuffled by its task (`process_docs`).
    """

    tasks: list[str] | None = Field(default=None, min_length=1)
    limit: int | None = Field(default=None, ge=1)


class AccuracyOptions(Options):
    """Options of the accuracy evaluator.

    Attributes:
        tasks: lm-eval's names of tasks, groups or tags, or paths of task files.
        search: The examples that guide the search.
        report: The examples that the front is confirmed on.
        metric: lm-eval's name, or `name,filter`; None takes exact_match, acc or acc_norm, else the
            first of which more is better.
        batch_size: Requests at a time.
        num_fewshot: Examples in each prompt; None leaves it to the task.
        apply_chat_template: Put prompts into the model's chat template.
        seed: Of few-shot examples and of sampled answers.
        memory_bytes: How much may be kept of tokens, pixels and image features, on the model's device.
    """

    tasks: list[str] = []
    search: SplitOptions = SplitOptions()
    report: SplitOptions = SplitOptions()
    metric: str | None = None
    batch_size: int = Field(default=16, ge=1)
    num_fewshot: int | None = Field(default=None, ge=0)
    apply_chat_template: bool = False
    seed: int = Field(default=1234, ge=0, lt=2**32)
    memory_bytes: int = Field(default=2 << 30, ge=0)

    @model_validator(mode="after")
    def _has_tasks(self) -> "AccuracyOptions":
        missing = [split for split in ("search", "report") if not self.tasks_of(split)]
        if missing:
            raise ValueError(f"found no tasks for the {' and the '.join(missing)} split, expected `tasks: [...]`")
        return self

    def tasks_of(self, split: str) -> list[str]:
        """The tasks of a split."""
        own: SplitOptions = getattr(self, split)
        return own.tasks or self.tasks


class AccuracyEvaluator:
    """Measures accuracy; tasks, prompts, token ids and image features are made once."""

    name: ClassVar[str] = "accuracy"
    options: ClassVar[type[Options]] = AccuracyOptions
    metrics: ClassVar[Mapping[str, Metric]] = {
        "accuracy": Metric("fraction", "maximize", "lm-eval's metric; of several tasks the plain mean")
    }
    cost: ClassVar[int] = 20
    exclusive: ClassVar[bool] = False
    splits: ClassVar[bool] = True

    def __init__(self, options: AccuracyOptions, subject: "Subject") -> None:
        from .accuracy_model import live_model
        from .accuracy_splits import divide
        from .accuracy_tasks import load_tasks, pick_metric, quiet, refuse_unusable
        from .memo import Memo

        self._options = options
        self._memo = Memo(options.memory_bytes)
        with quiet():
            self._model = live_model(subject, options.batch_size, self._memo)
        # Both splits are loaded at once: what is wrong with the report should show before the search, not after.
        names = {split: options.tasks_of(split) for split in ("search", "report")}
        search = load_tasks(names["search"], options.num_fewshot, options.seed)
        is_same = names["report"] == names["search"]
        report = search if is_same else load_tasks(names["report"], options.num_fewshot, options.seed)
        loaded = {"search": search, "report": report}
        for task in (task for tasks in loaded.values() for task in tasks.values()):
            refuse_unusable(task, subject.is_multimodal)
        self._metrics = {
            split: {name: pick_metric(task, options.metric) for name, task in tasks.items()}
            for split, tasks in loaded.items()
        }
        self._loaded = loaded
        self._windows = divide(search, report, options.search.limit, options.report.limit)
        self._ready: dict[str, dict[str, Task]] = {}
        subject.prompts = self.example_prompts(EXAMPLE_PROMPTS)

    def measure(self, handle: "PolicyHandle", split: Split) -> dict[str, Measurement]:
        """Answer the examples of a split under a policy.

        Returns:
            `accuracy`; `detail` has the figures of each `tasks`, the metric of each example in the order of tasks and
            documents (`per_example`, for paired differences) and the seconds spent in the model (`forward_seconds`).

        Raises:
            EvaluatorError: the prompts cannot be built, or the metric is no fraction.
        """
        from .accuracy_tasks import answer, score, seed_all
        from .memo import remembered_features

        tasks = self._tasks(split)
        self._model.handle, self._model.forward_seconds = handle, 0.0
        seed_all(self._options.seed)
        try:
            with remembered_features(handle.model, self._memo), cheap_collection():
                answer(list(tasks.values()), self._model)
        finally:
            self._model.handle = None
        scores = {name: score(task, *self._metrics[split][name]) for name, task in tasks.items()}
        return {"accuracy": summary(scores, self._model.forward_seconds)}

    def example_prompts(self, count: int) -> list[dict[str, "Tensor"]]:
        """Inputs of the search split, batch 1, on the CPU; the first has the median number of text tokens."""
        first = {(name, r.doc_id): r for name, task in self._tasks("search").items() for r in reversed(task.instances)}
        lengths = [(len(self._model.tok_encode(request.args[0])), request) for request in reversed(first.values())]
        usable = [(length, request) for length, request in lengths if length]
        if not usable:
            return []
        median = statistics.median_low([length for length, _ in usable])
        nearest = sorted(usable, key=lambda entry: abs(entry[0] - median))[:count]
        prompts = [self._model.encode_prompt(request.args) for _, request in nearest]
        return [{key: value.cpu() for key, value in prompt.items()} for prompt in prompts]

    def _tasks(self, split: str) -> dict[str, "Task"]:
        """The tasks of a split with their requests, which are built on first use."""
        from .accuracy_tasks import with_requests

        options, windows = self._options, self._windows[split]
        if split not in self._ready:
            self._ready[split] = {
                name: with_requests(task, windows[name], self._model, options.apply_chat_template, options.seed)
                for name, task in self._loaded[split].items()
            }
        return self._ready[split]


def summary(scores: Mapping[str, "Score"], forward_seconds: float) -> Measurement:
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
