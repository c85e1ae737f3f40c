"""The examples that evaluators measure on: lm-eval's tasks, apart for the search and the report.

Examples that guide a search and examples that are reported are never the same: where both splits use the same data,
the search takes the first documents and the report those after them.
"""

import math
import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from .base import Measurement, Options, Split

if TYPE_CHECKING:
    from torch import Tensor

    from .accuracy_splits import Tasks
    from .accuracy_tasks import Score
    from .rungs import Rung
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


class ExampleOptions(Options):
    """Options of every evaluator that measures on examples.

    Attributes:
        tasks: lm-eval's names of tasks, groups or tags, or paths of task files.
        search: The examples that guide the search.
        report: The examples that the front is confirmed on.
        batch_size: Requests at a time.
        num_fewshot: Examples in each prompt; None leaves it to the task.
        apply_chat_template: Put prompts into the model's chat template.
        seed: Of few-shot examples and of sampled answers.
        memory_bytes: How much may be kept of what does not depend on the policy, such as tokens, pixels and image
            features, on the model's device.
    """

    tasks: list[str] = []
    search: SplitOptions = SplitOptions()
    report: SplitOptions = SplitOptions()
    batch_size: int = Field(default=16, ge=1)
    num_fewshot: int | None = Field(default=None, ge=0)
    apply_chat_template: bool = False
    seed: int = Field(default=1234, ge=0, lt=2**32)
    memory_bytes: int = Field(default=2 << 30, ge=0)

    @model_validator(mode="after")
    def _has_tasks(self) -> "ExampleOptions":
        missing = [split for split in ("search", "report") if not self.tasks_of(split)]
        if missing:
            raise ValueError(f"found no tasks for the {' and the '.join(missing)} split, expected `tasks: [...]`")
        return self

    def tasks_of(self, split: str) -> list[str]:
        """The tasks of a split."""
        own: SplitOptions = getattr(self, split)
        return own.tasks or self.tasks


class ExampleEvaluator:
    """Base of the evaluators on examples; tasks, prompts, token ids and image features are made once.

    Args:
        options: Which examples.
        subject: The loaded model.

    Raises:
        EvaluatorError: a task does not load or cannot be used, or the splits have examples in common.
    """

    def __init__(self, options: ExampleOptions, subject: "Subject") -> None:
        from .accuracy_model import live_model
        from .accuracy_splits import divide
        from .accuracy_tasks import load_tasks, quiet, refuse_unusable
        from .memo import Memo

        self._examples = options
        self._memo = Memo(options.memory_bytes)
        with quiet():
            self._model = live_model(subject, options.batch_size, self._memo)
        # Both splits are loaded at once: what is wrong with the report should show before the search, not after.
        names = {split: options.tasks_of(split) for split in ("search", "report")}
        search = load_tasks(names["search"], options.num_fewshot, options.seed)
        is_same = names["report"] == names["search"]
        report = search if is_same else load_tasks(names["report"], options.num_fewshot, options.seed)
        self._loaded: dict[str, Tasks] = {"search": search, "report": report}
        for task in (task for tasks in self._loaded.values() for task in tasks.values()):
            refuse_unusable(task, subject.is_multimodal)
        self._windows = divide(search, report, options.search.limit, options.report.limit)
        self._ready: dict[str, Tasks] = {}
        self._rungs: dict[tuple[Split, tuple[float, ...]], list[Rung]] = {}

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

    def _tasks(self, split: str) -> "Tasks":
        """The tasks of a split with their requests, which are built on first use."""
        from .accuracy_tasks import with_requests

        options, windows = self._examples, self._windows[split]
        if split not in self._ready:
            self._ready[split] = {
                name: with_requests(task, windows[name], self._model, options.apply_chat_template, options.seed)
                for name, task in self._loaded[split].items()
            }
        return self._ready[split]

    def _drawn(self, split: Split, shares: tuple[float, ...]) -> "list[Rung]":
        """The rungs of a split, which are drawn on first use; a single one where the examples must stay together."""
        from .rungs import draw

        if (split, shares) not in self._rungs:
            usable = shares if len(shares) > 1 and self._can_part(split) else (1.0,)
            self._rungs[split, shares] = draw(
                self._tasks(split), usable, self._examples.batch_size, self._examples.seed
            )
        return self._rungs[split, shares]

    def _can_part(self, split: Split) -> bool:
        """True where what is measured on some examples does not depend on the others."""
        return True


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
