"""How unlikely the right answers are to a policy's model: a graded signal for what accuracy counts as right or wrong.

Nothing is generated: the right answer is given to the model, and what it thinks of each token is read off one forward.
Where a task has choices, the log-likelihoods are those that accuracy compares.
"""

import statistics
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from .base import Measurement, Metric, Options, Split
from .divergence import TOP_K
from .example_options import ExampleOptions
from .examples import EXAMPLE_PROMPTS, ExampleEvaluator, Part

if TYPE_CHECKING:
    from ..policies.apply import PolicyHandle
    from .accuracy.rungs import Example
    from .accuracy.splits import Tasks
    from .accuracy.tasks import Score
    from .answers import Request
    from .gold import Found, GoldAnswer, GoldAnswers, GoldRow
    from .subject import Subject


class AnswerLossOptions(ExampleOptions):
    """Options of the answer loss; see `ExampleOptions`. With accuracy's options it shares its work.

    Attributes:
        metric: As accuracy's: acc_norm and acc_bytes divide the log-likelihood of a choice by its length.
    """

    metric: str | None = None


class AnswerLossEvaluator(ExampleEvaluator):
    """Measures how unlikely the right answers are, and beside it how far their predictions are from the dense model's.

    The detail of a measurement has that `divergence`, KL(dense || policy) over the choices of an example, or at each
    token of its right answers, and the `divergences` of the examples in the order of `per_example`. They cost no
    further forward: the dense model's predictions are made once.
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
        loaded = [(name, task) for tasks in self._loaded.values() for name, task in tasks.items()]
        for _, task in loaded:
            if not has_answers(task):
                raise no_answers(task, [f"its output_type is {task.OUTPUT_TYPE}"])
        self._ranked_by = {name: pick_metric(task, options.metric)[0] for name, task in loaded if has_choices(task)}
        self._gold: dict[Part, GoldAnswers] = {}
        self._dense_choices: dict[Part, dict[int, float]] = {}
        # What costs are measured on is the same prompt with and without this evaluator.
        subject.prompts = subject.prompts or self.example_prompts(EXAMPLE_PROMPTS)

    def _guessing(self, split: Split) -> float:
        from .accuracy.floor import guessing_loss

        return guessing_loss(self._tasks(split), lambda text: len(self._model.tok_encode(text)))

    def _scored(self, handle: "PolicyHandle", tasks: "Tasks", part: Part) -> "dict[Example, Any]":
        from .gold import has_choices

        chosen = {name: task for name, task in tasks.items() if has_choices(task)}
        others = {name: task for name, task in tasks.items() if name not in chosen}
        return {**self._of_choices(handle, chosen, part), **self._of_tokens(handle, others, part)}

    def _score(self, split: Split, name: str, items: Sequence[Any]) -> "Score":
        from .accuracy.tasks import mean_score

        losses, divergences = zip(*items, strict=True)
        return mean_score("answer_loss", losses, divergences)

    def _found(self, split: Split, known: Measurement | None) -> "dict[Example, Any]":
        losses, divergences = (self._kept(split, known, name) for name in ("per_example", "divergences"))
        return {example: (losses[example], divergences[example]) for example in losses if example in divergences}

    def _of_choices(self, handle: "PolicyHandle", tasks: "Tasks", part: Part) -> "dict[Example, Found]":
        """What the examples of tasks with choices score, from the log-likelihoods of the choices."""
        from .gold import by_document, compared

        documents = {name: by_document(task) for name, task in tasks.items()}
        asked = [request for requests in documents.values() for group in requests for request in group]
        if not asked:
            return {}
        if part not in self._dense_choices:
            with handle.dense():
                self._dense_choices[part] = self._likelihoods(asked)
        dense, other = self._dense_choices[part], self._likelihoods(asked)
        return {
            (name, group[0].doc_id): compared(tasks[name], group, self._ranked_by[name], dense, other)
            for name, groups in documents.items()
            for group in groups
        }

    def _likelihoods(self, requests: "list[Request]") -> dict[int, float]:
        """The log-likelihood of each choice, by the id of its request; the tasks hold the requests."""
        found = self._model.log_likelihoods(requests, disable_tqdm=True)
        return {id(request): value for request, (value, _) in zip(requests, found, strict=True)}

    def _of_tokens(self, handle: "PolicyHandle", tasks: "Tasks", part: Part) -> "dict[Example, Found]":
        """What the examples of all other tasks score, from the predictions at the tokens of their right answers."""
        from .gold import GoldAnswers

        if part not in self._gold:
            self._gold[part] = GoldAnswers.of(tasks, self._model, self._examples.apply_chat_template)
        gold = self._gold[part]
        losses: list[dict[int, list[float]]] = [defaultdict(list) for _ in gold.examples]
        apart: list[list[float]] = [[] for _ in gold.examples]
        for number, entries in enumerate(gold.batches):
            batch = ("answer_loss", *part, number)
            for answer, surprise, divergences in self._places(handle, entries, batch):
                losses[answer.example][answer.number] += surprise
                apart[answer.example] += divergences
        # The likeliest answer counts; one without tokens is none that could be unlikely.
        return {
            example: (
                min(map(statistics.fmean, by_answer.values()), default=0.0),
                statistics.fmean(divergences or [0.0]),
            )
            for example, by_answer, divergences in zip(gold.examples, losses, apart, strict=True)
        }

    def _places(
        self, handle: "PolicyHandle", entries: "list[GoldRow]", batch: Hashable
    ) -> "Iterator[tuple[GoldAnswer, list[float], list[float]]]":
        """Each answer of a batch, with how unlikely each of its tokens is, and the divergence at its place."""
        import torch

        from .predictions import dense_predictions, divergence, merged, predicted

        rows = [row for row, _ in entries]
        tokens, dense = self._memo.get(batch, lambda: dense_predictions(handle, rows, self._model, batch, TOP_K))
        found = predicted(rows, self._model, batch)
        sizes = [row.back + len(row.fed) for row in rows]
        apart = divergence(dense, merged(found, tokens)).split(sizes)
        for (_, answers), likely, divergences in zip(entries, found.split(sizes), apart, strict=True):
            for answer in answers:
                right = torch.tensor(answer.tokens, device=likely.device)
                yield answer, likely.gather(1, right[:, None]).neg()[:, 0].tolist(), divergences.tolist()
