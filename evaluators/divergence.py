"""The divergence evaluator: KL divergence of a policy's predictions from the dense model's, at the answer tokens.

Nothing is generated: prompt and answer go through the model in one forward. The metric is finer than accuracy, because
it differs between policies with the same answers. EvoPress (arXiv:2410.14649) searches by such a divergence.
"""

import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from .base import Metric, Options, Split
from .example_options import ExampleOptions
from .examples import EXAMPLE_PROMPTS, ExampleEvaluator, RungKey

if TYPE_CHECKING:
    from ..policies.apply import PolicyHandle
    from .accuracy.rungs import Example
    from .accuracy.splits import Tasks
    from .accuracy.tasks import Score
    from .answers import Answers, Row
    from .subject import Subject


# Number of the dense model's likeliest tokens that are compared one by one at each position.
TOP_K = 1024


class DivergenceOptions(ExampleOptions):
    """Options of the divergence evaluator; see `ExampleOptions`. Equal tasks and limits give accuracy's examples.

    Attributes:
        top_k: Number of the dense model's likeliest tokens that are compared one by one at each position; all others
            count as one outcome. A smaller vocabulary is compared whole. For a larger one the value is a lower bound,
            because merging outcomes never increases a divergence (data-processing inequality).
    """

    top_k: int = Field(default=TOP_K, ge=1)


class DivergenceEvaluator(ExampleEvaluator):
    """Measures KL(dense || policy) at the answer tokens; the dense model's predictions are made once.

    The answers are those that a log-likelihood task scores, a whole text where a task scores one, and for a task that
    generates the dense model's own greedy answer, its end token included.
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
        self._answers: dict[RungKey, Answers] = {}
        # Cost evaluators use these prompts; accuracy, where present, sets the same ones.
        subject.prompts = subject.prompts or self.example_prompts(EXAMPLE_PROMPTS)

    def _score_examples(self, handle: "PolicyHandle", tasks: "Tasks", rung: RungKey) -> "dict[Example, Any]":
        """The mean divergence of each example's answer tokens, in nats."""
        answers = self._answers_of(handle, tasks, rung)
        by_example: list[list[float]] = [[] for _ in answers.examples]
        for number, rows in enumerate(answers.batches):
            by_row = self._divergences(handle, rows, (*rung, number))
            for row, divergences in zip(rows, by_row, strict=True):
                for example in row.examples:
                    by_example[example] += divergences
        # No policy can change an answer without tokens.
        means = [statistics.fmean(divergences or [0.0]) for divergences in by_example]
        return dict(zip(answers.examples, means, strict=True))

    def _aggregate(self, split: Split, name: str, items: Sequence[Any]) -> "Score":
        from .accuracy.tasks import mean_score

        return mean_score("divergence", items)

    def _answers_of(self, handle: "PolicyHandle", tasks: "Tasks", rung: RungKey) -> "Answers":
        """The answers to some examples, which are collected from the dense model on first use."""
        from .answers import Answers

        if rung not in self._answers:
            with handle.dense():
                self._answers[rung] = Answers.of(tasks, self._model)
        return self._answers[rung]

    def _divergences(self, handle: "PolicyHandle", rows: list["Row"], batch: Hashable) -> list[list[float]]:
        """The divergence at each position of each row, in nats."""
        from .predictions import dense_predictions, divergence, merge_others, predict

        tokens, dense = self._memo.get(batch, lambda: dense_predictions(handle, rows, self._model, batch, self._top_k))
        by_position = divergence(dense, merge_others(predict(rows, self._model, batch), tokens))
        return [of_row.tolist() for of_row in by_position.split([row.num_predicted for row in rows])]
