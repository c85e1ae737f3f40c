"""The answer-loss evaluator: cross-entropy of the right answers, a graded signal where accuracy is right or wrong.

Nothing is generated: the right answer is fed to the model, and one forward gives the probability of each of its tokens.
Where a task has choices, the log-likelihoods are those that accuracy compares.
"""

import statistics
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from .base import Measurement, Metric, Options, Split
from .divergence import TOP_K
from .example_options import ExampleOptions
from .examples import EXAMPLE_PROMPTS, ExampleEvaluator, RungKey

if TYPE_CHECKING:
    from ..policies.apply import PolicyHandle
    from .accuracy.rungs import Example
    from .accuracy.splits import Tasks
    from .accuracy.tasks import Score
    from .answers import Request
    from .gold import GoldAnswer, GoldAnswers, GoldRow, LossAndDivergence
    from .subject import Subject


class AnswerLossOptions(ExampleOptions):
    """Options of the answer loss; see `ExampleOptions`. Equal options let it share accuracy's forwards.

    Attributes:
        metric: Accuracy's metric: acc_norm and acc_bytes divide the log-likelihood of a choice by its length.
    """

    metric: str | None = None


class AnswerLossEvaluator(ExampleEvaluator):
    """Measures the cross-entropy of the right answers, and the divergence of its predictions from the dense model's.

    The `detail` of a measurement has the `divergence`, KL(dense || policy) over the choices of an example or at each
    token of its right answers, and the `divergences` of the examples in the order of `per_example`. They cost no
    further forward, because the dense model's predictions are made once.
    """

    name: ClassVar[str] = "answer_loss"
    options: ClassVar[type[Options]] = AnswerLossOptions
    metrics: ClassVar[Mapping[str, Metric]] = {
        "answer_loss": Metric(
            "nats",
            "minimize",
            "-log of the right choice's share of the choices' likelihood, or of the right answer's likelihood, per "
            "token; the mean over examples, then over tasks",
        )
    }
    cost: ClassVar[int] = 12
    exclusive: ClassVar[bool] = False
    splits: ClassVar[bool] = True

    def __init__(self, options: AnswerLossOptions, subject: "Subject") -> None:
        from .accuracy.tasks import pick_metric
        from .gold import has_answers, has_choices, no_answers

        super().__init__(options, subject)
        splits = [self._loaded[split] for split in ("search", "report")]
        loaded = [(name, task) for tasks in splits for name, task in tasks.items()]
        for _, task in loaded:
            if not has_answers(task):
                raise no_answers(task, [f"its output_type is {task.OUTPUT_TYPE}"])
        self._choice_metric = {name: pick_metric(task, options.metric)[0] for name, task in loaded if has_choices(task)}
        self._gold: dict[RungKey, GoldAnswers] = {}
        self._dense_choices: dict[RungKey, dict[int, float]] = {}
        # Cost evaluators use these prompts; accuracy, where present, sets the same ones.
        subject.prompts = subject.prompts or self.example_prompts(EXAMPLE_PROMPTS)

    def _chance_level(self, split: Split) -> float:
        from .accuracy.floor import guessing_loss

        return guessing_loss(self._tasks(split), lambda text: len(self._model.tok_encode(text)))

    def _score_examples(self, handle: "PolicyHandle", tasks: "Tasks", rung: RungKey) -> "dict[Example, Any]":
        from .gold import has_choices

        with_choices = {name: task for name, task in tasks.items() if has_choices(task)}
        others = {name: task for name, task in tasks.items() if name not in with_choices}
        return {**self._score_choices(handle, with_choices, rung), **self._score_tokens(handle, others, rung)}

    def _aggregate(self, split: Split, name: str, items: Sequence[Any]) -> "Score":
        from .accuracy.tasks import mean_score

        losses, divergences = zip(*items, strict=True)
        return mean_score("answer_loss", losses, divergences)

    def _previous_scores(self, split: Split, previous: Measurement | None) -> "dict[Example, Any]":
        losses, divergences = (self._per_example(split, previous, name) for name in ("per_example", "divergences"))
        return {example: (losses[example], divergences[example]) for example in losses if example in divergences}

    def _score_choices(
        self, handle: "PolicyHandle", tasks: "Tasks", rung: RungKey
    ) -> "dict[Example, LossAndDivergence]":
        """Score the examples of tasks with choices, by the log-likelihoods of the choices."""
        from .gold import requests_by_document, score_choices

        documents = {name: requests_by_document(task) for name, task in tasks.items()}
        requests = [request for groups in documents.values() for group in groups for request in group]
        if not requests:
            return {}
        if rung not in self._dense_choices:
            with handle.dense():
                self._dense_choices[rung] = self._likelihoods(requests)
        dense, other = self._dense_choices[rung], self._likelihoods(requests)
        return {
            (name, group[0].doc_id): score_choices(tasks[name], group, self._choice_metric[name], dense, other)
            for name, groups in documents.items()
            for group in groups
        }

    def _likelihoods(self, requests: "list[Request]") -> dict[int, float]:
        """The log-likelihood of each choice, by the `id` of its request; the tasks keep the requests alive."""
        found = self._model.log_likelihoods(requests, disable_tqdm=True)
        return {id(request): value for request, (value, _) in zip(requests, found, strict=True)}

    def _score_tokens(
        self, handle: "PolicyHandle", tasks: "Tasks", rung: RungKey
    ) -> "dict[Example, LossAndDivergence]":
        """Score the examples of all other tasks, by the predictions at the tokens of their right answers."""
        from .gold import GoldAnswers

        if rung not in self._gold:
            self._gold[rung] = GoldAnswers.of(tasks, self._model, self._examples.apply_chat_template)
        gold = self._gold[rung]
        losses: list[dict[int, list[float]]] = [defaultdict(list) for _ in gold.examples]
        divergences: list[list[float]] = [[] for _ in gold.examples]
        for number, entries in enumerate(gold.batches):
            batch = ("answer_loss", *rung, number)
            for answer, answer_losses, answer_divergences in self._score_answers(handle, entries, batch):
                losses[answer.example][answer.number] += answer_losses
                divergences[answer.example] += answer_divergences
        # Of several right answers the likeliest counts. An example whose answers have no tokens has loss 0.
        return {
            example: (
                min(map(statistics.fmean, by_answer.values()), default=0.0),
                statistics.fmean(of_example or [0.0]),
            )
            for example, by_answer, of_example in zip(gold.examples, losses, divergences, strict=True)
        }

    def _score_answers(
        self, handle: "PolicyHandle", entries: "list[GoldRow]", batch: Hashable
    ) -> "Iterator[tuple[GoldAnswer, list[float], list[float]]]":
        """Each answer of a batch, with the loss and the divergence at each of its tokens, in nats."""
        import torch

        from .predictions import dense_predictions, divergence, merge_others, predict

        rows = [row for row, _ in entries]
        tokens, dense = self._memo.get(batch, lambda: dense_predictions(handle, rows, self._model, batch, TOP_K))
        predictions = predict(rows, self._model, batch)
        sizes = [row.num_predicted for row in rows]
        divergences = divergence(dense, merge_others(predictions, tokens)).split(sizes)
        for (_, answers), of_row, row_divergences in zip(entries, predictions.split(sizes), divergences, strict=True):
            for answer in answers:
                right = torch.tensor(answer.tokens, device=of_row.device)
                yield answer, of_row.gather(1, right[:, None]).neg()[:, 0].tolist(), row_divergences.tolist()
