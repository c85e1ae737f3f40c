"""Gold answers: which choice of a document is right, or the texts that a generated answer is compared with."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from ..policies.errors import EvaluatorError
from .accuracy.rungs import Example, numbered
from .accuracy.splits import Tasks
from .accuracy.text_model import TextModel
from .answers import Request, Row, encode_continuation, in_batches, whole_text
from .predictions import divergence

Task: TypeAlias = Any  # lm-eval's Task

# The lengths by which lm-eval's metrics divide the log-likelihood of a choice.
CHOICE_LENGTHS: Mapping[str, Callable[[str], int]] = {"acc_norm": len, "acc_bytes": lambda choice: len(choice.encode())}


@dataclass(frozen=True)
class GoldAnswer:
    """A right answer, or the part of it in one row.

    Attributes:
        example: The place of its example in the list of examples.
        number: The number of the answer among the example's right answers.
        tokens: The right token ids at the compared positions of the row.
    """

    example: int
    number: int
    tokens: tuple[int, ...]


GoldRow: TypeAlias = tuple[Row, list[GoldAnswer]]
# The loss of an example's right answer, and the divergence from the dense model's predictions there; in nats.
LossAndDivergence: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class GoldAnswers:
    """The right answers to some examples.

    Attributes:
        examples: The examples.
        batches: The rows, in batches, each row with its answers.
    """

    examples: list[Example]
    batches: list[list[GoldRow]]

    @classmethod
    def of(cls, tasks: Tasks, model: TextModel, chat: bool) -> "GoldAnswers":
        """Collect the right answers of tasks without choices.

        Args:
            tasks: The tasks with their requests.
            model: Tokenizes texts.
            chat: True where prompts use the model's chat template.

        Raises:
            EvaluatorError: an example has no right answer.
        """
        numbers = numbered(tasks)
        rows: dict[Hashable, GoldRow] = {}
        for name, task in tasks.items():
            for request in task.instances:
                for number, row, tokens in right_answers(task, request, model, chat):
                    _, answers = rows.setdefault((row.prompt.key, row.fed, row.back), (row, []))
                    answers.append(GoldAnswer(numbers[name, request.doc_id], number, tokens))
        batches = in_batches(
            rows.values(),
            lambda entry: entry[0].prompt.images is None,
            lambda entry: entry[0].length,
            model,
        )
        return cls(list(numbers), batches)


def right_answers(
    task: Task, request: Request, model: TextModel, chat: bool
) -> Iterator[tuple[int, Row, tuple[int, ...]]]:
    """The right answers of one request: the number of each, its row, and the right tokens at the row's positions."""
    if request.request_type == "loglikelihood_rolling":
        ids = model.tok_encode(request.args[0])
        for start, row in zip(range(0, len(ids), model.max_length), whole_text(ids, model), strict=True):
            yield 0, row, tuple(ids[start : start + model.max_length])
        return
    context, answer, *more = request.args
    texts = [answer]
    if request.request_type == "generate_until":
        gold = require_gold(task, gold_texts(task, request.doc), request)
        texts = [delimiter(task, chat) + text for text in gold]
    for number, text in enumerate(texts):
        prompt, tokens = encode_continuation(context, text, more[0]["visual"] if more else None, model)
        if tokens:
            yield number, Row(prompt, tokens[:-1]), tokens


def delimiter(task: Task, chat: bool) -> str:
    """The text between a prompt and its answer, as lm-eval puts it before choices."""
    between, prefix = str(task.get_config("target_delimiter")), task.get_config("gen_prefix")
    return "" if chat and (not prefix or prefix[-1:].isspace()) else between


def gold_texts(task: Task, document: Mapping[str, Any]) -> list[str]:
    """The right texts for a document of a task that generates; empty where the task has none."""
    gold = task.doc_to_target(document)
    if task.get_config("doc_to_choice") is not None and isinstance(gold, int):
        choices = task.doc_to_choice(document)
        gold = choices[gold] if 0 <= gold < len(choices) else None
    listed = gold if isinstance(gold, list | tuple) else [gold]
    texts = [str(text) for text in listed if isinstance(text, str | int | float)]
    return list(dict.fromkeys(text for text in texts if text.strip()))


def gold_choices(task: Task, document: Mapping[str, Any]) -> list[int]:
    """The places of the right choices of a document; empty where the task has none."""
    # With multiple inputs the choices are prompts for one answer, and lm-eval keeps the right place in `doc_to_text`.
    gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    choices = task.doc_to_choice(document)
    listed = gold if isinstance(gold, list) else [gold]
    places = [choices.index(one) if isinstance(one, str) and one in choices else one for one in listed]
    return sorted({place for place in places if isinstance(place, int) and 0 <= place < len(choices)})


def require_gold(task: Task, gold: list[Any], request: Request) -> list[Any]:
    """The right answers of a request.

    Raises:
        EvaluatorError: there are none.
    """
    if not gold:
        details = [f"document {request.doc_id}: found {task.doc_to_target(request.doc)!r} as its target"]
        raise no_answers(task, details)
    return gold


def no_answers(task: Task, details: list[str]) -> EvaluatorError:
    """The error for a task without right answers."""
    hint = "measure `divergence` instead, which needs no right answers"
    return EvaluatorError(f"task {task.task_name} has no right answers to score", details, hint)


def has_choices(task: Task) -> bool:
    """True for a multiple-choice task."""
    return bool(task.OUTPUT_TYPE == "multiple_choice")


def has_answers(task: Task) -> bool:
    """True for a task whose documents have right answers that can be scored.

    Looks at the documents whose requests the task holds, or where none are built at the first document.
    """
    if task.OUTPUT_TYPE in ("loglikelihood", "loglikelihood_rolling"):
        return True
    gold = {"multiple_choice": gold_choices, "generate_until": gold_texts}.get(task.OUTPUT_TYPE)
    # Tasks written as Python classes have no common way to say which answers are right.
    if gold is None or not hasattr(task, "doc_to_choice"):
        return False
    documents = {request.doc_id: request.doc for request in getattr(task, "_instances", None) or []}
    return all(gold(task, document) for document in documents.values() or [task.eval_docs[0]])


def requests_by_document(task: Task) -> list[list[Request]]:
    """The requests of each document's choices, in order, without lm-eval's extra ones for acc_mutual_info."""
    by_document: dict[Any, list[Request]] = defaultdict(list)
    for request in task.instances:
        by_document[request.doc_id].append(request)
    return [
        sorted(requests, key=lambda request: request.idx)[: len(task.doc_to_choice(requests[0].doc))]
        for requests in by_document.values()
    ]


def score_choices(
    task: Task, requests: list[Request], metric: str, dense: Mapping[int, float], other: Mapping[int, float]
) -> LossAndDivergence:
    """The loss of a document's right choice, and the divergence of the choices' probabilities from the dense model's.

    Args:
        task: The task.
        requests: A request for each choice.
        metric: The metric that ranks the choices.
        dense: The dense model's log-likelihood of each choice, by the `id` of its request.
        other: The log-likelihoods under the policy, by the same ids.

    Raises:
        EvaluatorError: no choice is right.
    """
    document = requests[0].doc
    gold = require_gold(task, gold_choices(task, document), requests[0])
    length = CHOICE_LENGTHS.get(metric, lambda _: 1)
    lengths = torch.tensor([length(choice) for choice in task.doc_to_choice(document)], dtype=torch.float64)
    before, after = (
        (torch.tensor([known[id(request)] for request in requests], dtype=torch.float64) / lengths).log_softmax(0)
        for known in (dense, other)
    )
    return -float(after[gold].logsumexp(0)), float(divergence(before[None], after[None]))
