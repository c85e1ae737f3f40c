"""How far the answers of a policy's model are from the dense model's: the divergence of what they predict.

Nothing is generated: prompt and answer go through the model in one forward, as in a request of which every answer token
is known. And it is finer than accuracy, for it tells policies apart that answer alike. EvoPress (arXiv:2410.14649)
searches by such a divergence.
"""

import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from .base import Metric, Options, Split
from .example_options import ExampleOptions
from .examples import EXAMPLE_PROMPTS, ExampleEvaluator, Part

if TYPE_CHECKING:
    from ..policies.apply import PolicyHandle
    from .accuracy.rungs import Example
    from .accuracy.splits import Tasks
    from .accuracy.tasks import Score
    from .answers import Answers, Row
    from .subject import Subject


# The dense model's so many likeliest tokens are told apart at each place.
TOP_K = 1024


class DivergenceOptions(ExampleOptions):
    """Options of the divergence evaluator; see `ExampleOptions`. With accuracy's tasks and limits it has its examples.

    Attributes:
        top_k: The dense model's so many likeliest tokens are told apart at each place; all others count as one. A
            vocabulary that is no larger is compared whole. Of a larger one the figure is a lower bound, for merging
            outcomes never increases a divergence (data-processing inequality).
    """

    top_k: int = Field(default=TOP_K, ge=1)


class DivergenceEvaluator(ExampleEvaluator):
    """Measures KL(dense || policy) of the answers; the dense model's predictions are made once.

    What is compared are the tokens of every answer that a log-likelihood task scores, those of a text that is scored
    whole, and where a task generates, the tokens of the dense model's own greedy answer, its end included.
    """

    name: ClassVar[str] = "divergence"
    options: ClassVar[type[Options]] = DivergenceOptions
    metrics: ClassVar[Mapping[str, Metric]] = {
        "divergence": Metric(
            "nats", "minimize", "KL(dense || policy) per answer token; the mean over examples, then over tasks"
        )
    }
    cost: ClassVar[int] = 15
    exclusive: ClassVar[bool] = False
    splits: ClassVar[bool] = True

    def __init__(self, options: DivergenceOptions, subject: "Subject") -> None:
        super().__init__(options, subject)
        self._top_k = options.top_k
        self._answers: dict[Part, Answers] = {}
        # What costs are measured on is the same prompt with and without this evaluator.
        subject.prompts = subject.prompts or self.example_prompts(EXAMPLE_PROMPTS)

    def _scored(self, handle: "PolicyHandle", tasks: "Tasks", part: Part) -> "dict[Example, Any]":
        """The mean divergence of each example's answer tokens, in nats."""
        answers = self._answers_of(handle, tasks, part)
        by_example: list[list[float]] = [[] for _ in answers.examples]
        for number, rows in enumerate(answers.batches):
            for row, found in zip(rows, self._places(handle, rows, (*part, number)), strict=True):
                for example in row.examples:
                    by_example[example] += found
        # An answer without tokens is none that a policy could change.
        means = [statistics.fmean(found or [0.0]) for found in by_example]
        return dict(zip(answers.examples, means, strict=True))

    def _score(self, split: Split, name: str, items: Sequence[Any]) -> "Score":
        from .accuracy.tasks import mean_score

        return mean_score("divergence", items)

    def _answers_of(self, handle: "PolicyHandle", tasks: "Tasks", part: Part) -> "Answers":
        """The answers to some examples, which the dense model gives on first use."""
        from .answers import Answers

        if part not in self._answers:
            with handle.dense():
                self._answers[part] = Answers.of(tasks, self._model)
        return self._answers[part]

    def _places(self, handle: "PolicyHandle", rows: list["Row"], batch: Hashable) -> list[list[float]]:
        """The divergence at each place of each row, in nats."""
        from .predictions import dense_predictions, divergence, merged, predicted

        tokens, dense = self._memo.get(batch, lambda: dense_predictions(handle, rows, self._model, batch, self._top_k))
        found = divergence(dense, merged(predicted(rows, self._model, batch), tokens))
        return [places.tolist() for places in found.split([row.back + len(row.fed) for row in rows])]
