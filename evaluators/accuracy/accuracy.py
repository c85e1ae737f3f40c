"""The accuracy evaluator: lm-eval's tasks, prompts, filters and metrics, with results equal to `simple_evaluate`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..base import Metric, Options, Split
from ..example_options import ExampleOptions
from ..examples import EXAMPLE_PROMPTS, ExampleEvaluator, RungKey

if TYPE_CHECKING:
    from ...policies.apply import PolicyHandle
    from ..subject import Subject
    from .rungs import Example
    from .splits import Tasks
    from .tasks import Score

# lm-eval and torch are imported where an evaluator is made, so that reading the options of a space needs neither.


class AccuracyOptions(ExampleOptions):
    """Options of the accuracy evaluator; see `ExampleOptions`.

    Attributes:
        metric: lm-eval's name of the metric, or `name,filter`; None takes exact_match, acc or acc_norm, else the first
            metric of which higher is better.
    """

    metric: str | None = None


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
        from .tasks import pick_metric

        super().__init__(options, subject)
        self._metrics = {
            split: {name: pick_metric(task, options.metric) for name, task in tasks.items()}
            for split, tasks in self._loaded.items()
        }
        subject.prompts = self.example_prompts(EXAMPLE_PROMPTS)

    def _chance_level(self, split: Split) -> float:
        from .floor import guessing_accuracy

        return guessing_accuracy(self._tasks(split))

    def _score_examples(self, handle: "PolicyHandle", tasks: "Tasks", rung: RungKey) -> "dict[Example, Any]":
        from .tasks import answer_requests, score_documents, seed_all

        seed_all(self._examples.seed)
        answer_requests(list(tasks.values()), self._model)
        split, *_ = rung
        scores = {name: score_documents(task, *self._metrics[split][name]) for name, task in tasks.items()}
        return {(name, doc): item for name, items in scores.items() for doc, item in items.items()}

    def _aggregate(self, split: Split, name: str, items: Sequence[Any]) -> "Score":
        from .tasks import aggregate

        return aggregate(self._tasks(split)[name], *self._metrics[split][name], items)

    def _scores_independently(self, split: Split) -> bool:
        from .rungs import scores_independently

        return all(scores_independently(task, *self._metrics[split][name]) for name, task in self._tasks(split).items())
