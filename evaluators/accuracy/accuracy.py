"""The accuracy evaluator: lm-eval's tasks, prompts, filters and metrics, with results equal to `simple_evaluate`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from ..base import Measurement, Metric, Options, Split
from ..example_options import ExampleOptions
from ..examples import EXAMPLE_PROMPTS, ExampleEvaluator, RungKey

if TYPE_CHECKING:
    from ...policies.apply import PolicyHandle
    from ..subject import Subject
    from .rungs import Example
    from .splits import Tasks
    from .tasks import Score

# lm-eval and torch are imported where an evaluator is made, so that reading the options of a space needs neither.


class TransferOptions(Options):
    """Tasks that the front is reported on, and that the search does not use.

    Attributes:
        tasks: lm-eval's names of tasks, groups or tags, or paths of task files.
        limit: Number of documents of each task; None takes as many as the report.
    """

    tasks: list[str] = Field(min_length=1)
    limit: int | None = Field(default=None, ge=1)


class AccuracyOptions(ExampleOptions):
    """Options of the accuracy evaluator; see `ExampleOptions`.

    Attributes:
        metric: lm-eval's name of the metric, or `name,filter`; None takes exact_match, acc or acc_norm, else the first
            metric of which higher is better. It applies to the tasks of both splits.
        transfer: Further tasks for the finished front, each with its own first metric; a list stands for its `tasks`.
    """

    metric: str | None = None
    transfer: Annotated[list[str], Field(min_length=1)] | TransferOptions | None = None

    @property
    def transfer_tasks(self) -> list[str]:
        """The names of the transfer tasks; empty without any."""
        return self.transfer.tasks if isinstance(self.transfer, TransferOptions) else self.transfer or []

    @property
    def transfer_limit(self) -> int | None:
        """How many documents of each transfer task are measured; None for all."""
        own = self.transfer.limit if isinstance(self.transfer, TransferOptions) else None
        return own or self.report.limit


class AccuracyEvaluator(ExampleEvaluator):
    """Measures accuracy on lm-eval's tasks."""

    name: ClassVar[str] = "accuracy"
    options: ClassVar[type[Options]] = AccuracyOptions
    metrics: ClassVar[Mapping[str, Metric]] = {
        "accuracy": Metric("fraction", "maximize", "lm-eval's metric; of several tasks the plain mean")
    }
    cost: ClassVar[int] = 20
    exclusive: ClassVar[bool] = False
    splits: ClassVar[bool] = True

    def __init__(self, options: AccuracyOptions, subject: "Subject") -> None:
        from .settled import Settled
        from .tasks import pick_metric

        super().__init__(options, subject)
        if options.transfer_tasks:
            self._shared.add_transfer(options.transfer_tasks, options.transfer_limit)
        self._metrics = {
            split: {
                name: pick_metric(task, None if split == "transfer" else options.metric) for name, task in tasks.items()
            }
            for split, tasks in self._loaded.items()
        }
        searched = self._loaded["search"]
        self._settled = {name: Settled.of(task, self._metrics["search"][name][1]) for name, task in searched.items()}
        subject.prompts = self.example_prompts(EXAMPLE_PROMPTS)

    def measure(self, handle: "PolicyHandle", split: Split) -> dict[str, Measurement]:
        """Measure as `ExampleEvaluator.measure`.

        What is only reported has in its `detail` each task's `other_metrics`, and on transfer tasks the chance level of
        each task (`floors`).
        """
        found = super().measure(handle, split)
        if split == "search":
            return found
        from .floor import task_chance
        from .other_metrics import other_metrics

        tasks = self._tasks(split)
        others = {name: other_metrics(task, *self._metrics[split][name]) for name, task in tasks.items()}
        more: dict[str, Any] = {"other_metrics": others} if any(others.values()) else {}
        if split == "transfer":
            more["floors"] = {name: task_chance(task) for name, task in tasks.items()}
        return {name: replace(entry, detail={**entry.detail, **more}) for name, entry in found.items()}

    def _chance_level(self, split: Split) -> float:
        from .floor import guessing_accuracy

        return guessing_accuracy(self._tasks(split))

    def _score_examples(self, handle: "PolicyHandle", tasks: "Tasks", rung: RungKey) -> "dict[Example, Any]":
        from .tasks import answer_requests, score_documents, seed_all

        seed_all(self._examples.seed)
        split, *_ = rung
        self._model.settled = self._settled
        answer_requests(list(tasks.values()), self._model)
        scores = {name: score_documents(task, *self._metrics[split][name]) for name, task in tasks.items()}
        return {(name, doc): item for name, items in scores.items() for doc, item in items.items()}

    def _aggregate(self, split: Split, name: str, items: Sequence[Any]) -> "Score":
        from .tasks import aggregate

        return aggregate(self._tasks(split)[name], *self._metrics[split][name], items)

    def _scores_independently(self, split: Split) -> bool:
        from .rungs import scores_independently

        return all(scores_independently(task, *self._metrics[split][name]) for name, task in self._tasks(split).items())
