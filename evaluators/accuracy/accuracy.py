"""Accuracy on lm-eval's tasks: the same prompts, filters and metric code, and equal to `simple_evaluate`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..base import Metric, Options, Split
from ..example_options import ExampleOptions
from ..examples import EXAMPLE_PROMPTS, ExampleEvaluator, Part

if TYPE_CHECKING:
    from ...policies.apply import PolicyHandle
    from ..subject import Subject
    from .rungs import Example
    from .splits import Tasks
    from .tasks import Score

# lm-eval and torch are imported where an evaluator is made: reading the options of a space stays light.


class AccuracyOptions(ExampleOptions):
    """Options of the accuracy evaluator; see `ExampleOptions`.

    Attributes:
        metric: lm-eval's name, or `name,filter`; None takes exact_match, acc or acc_norm, else the
            first of which more is better.
    """

    metric: str | None = None


class AccuracyEvaluator(ExampleEvaluator):
    """Measures accuracy."""

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

    def _guessing(self, split: Split) -> float:
        from .floor import guessing_accuracy

        return guessing_accuracy(self._tasks(split))

    def _scored(self, handle: "PolicyHandle", tasks: "Tasks", part: Part) -> "dict[Example, Any]":
        from .tasks import answer, items_of, seed_all

        seed_all(self._examples.seed)
        answer(list(tasks.values()), self._model)
        found = {name: items_of(task, *self._metrics[part[0]][name]) for name, task in tasks.items()}
        return {(name, doc): item for name, items in found.items() for doc, item in items.items()}

    def _score(self, split: Split, name: str, items: Sequence[Any]) -> "Score":
        from .tasks import aggregated

        return aggregated(self._tasks(split)[name], *self._metrics[split][name], items)

    def _can_part(self, split: Split) -> bool:
        from .rungs import by_example

        return all(by_example(task, *self._metrics[split][name]) for name, task in self._tasks(split).items())
