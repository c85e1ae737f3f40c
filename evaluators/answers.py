"""Collecting the answers whose tokens are predicted: those that a task scores, or the dense model's own."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from ..policies.runtime.tokens import image_token_ids
from .accuracy.answering import prompt_of
from .accuracy.rungs import Example, numbered
from .accuracy.splits import Tasks
from .accuracy.text_model import TextModel
from .engine.prompt import Prompt, encode
from .prompts import generation_options

T = TypeVar("T")
Request: TypeAlias = Any  # lm-eval's Instance

# lm-eval's names for the number of tokens to generate; the first one that is set counts.
MAX_TOKENS_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass
class Row:
    """A prompt and the answer after it, as one row of a batch.

    Attributes:
        prompt: The prompt.
        fed: Token ids of the answer without its last one, which is only predicted.
        back: Number of the prompt's last positions whose predictions are compared: 1, or all of them for a whole text.
        examples: The numbers of the examples with this answer. An example occurs several times if several of its
            answers differ in their last token only.
    """

    prompt: Prompt
    fed: tuple[int, ...]
    back: int = 1
    examples: list[int] = field(default_factory=list)

    @property
    def num_predicted(self) -> int:
        """Number of positions whose predictions are compared."""
        return self.back + len(self.fed)

    @property
    def length(self) -> int:
        """Number of text tokens in the row."""
        return len(self.prompt.ids) + len(self.fed)


@dataclass(frozen=True)
class Answers:
    """The answers to some examples.

    Attributes:
        examples: The examples; rows refer to them by their places in this list.
        batches: The rows, in batches.
    """

    examples: list[Example]
    batches: list[list[Row]]

    @classmethod
    def of(cls, tasks: Tasks, model: TextModel) -> "Answers":
        """Collect the answers.

        Args:
            tasks: The tasks with their requests.
            model: The model; it has to be dense, because it answers the tasks that generate.
        """
        requests = [(name, request) for name, task in tasks.items() for request in task.instances]
        numbers = numbered(tasks)
        rows: dict[Hashable, Row] = {}
        generated = generated_rows([request for _, request in requests if is_generation(request)], model)
        for name, request in requests:
            for row in [generated[id(request)]] if id(request) in generated else scored_rows(request, model):
                same = rows.setdefault((row.prompt.key, row.fed, row.back), row)
                same.examples.append(numbers[name, request.doc_id])
        batches = in_batches(rows.values(), lambda row: row.prompt.images is None, lambda row: row.length, model)
        return cls(list(numbers), batches)


def is_generation(request: Request) -> bool:
    """True for a request that generates its answer."""
    return bool(request.request_type == "generate_until")


def in_batches(
    items: Iterable[T], group: Callable[[T], Hashable], length: Callable[[T], int], model: TextModel
) -> list[list[T]]:
    """Divide items into batches of the model's batch size, each from one group, the longest items first."""
    groups: dict[Hashable, list[T]] = defaultdict(list)
    for item in sorted(items, key=length, reverse=True):
        groups[group(item)].append(item)
    size: int = model.batch_size
    return [members[start : start + size] for members in groups.values() for start in range(0, len(members), size)]


def scored_rows(request: Request, model: TextModel) -> Iterator[Row]:
    """The answer that a log-likelihood request scores, tokenized as in lm-eval."""
    if request.request_type == "loglikelihood_rolling":
        yield from whole_text(model.tok_encode(request.args[0]), model)
        return
    context, continuation, *more = request.args
    prompt, answer = encode_continuation(context, continuation, more[0]["visual"] if more else None, model)
    if answer:
        yield Row(prompt, answer[:-1])


def encode_continuation(
    context: str, continuation: str, images: Sequence[Any] | None, model: TextModel
) -> tuple[Prompt, tuple[int, ...]]:
    """A prompt and the token ids of its continuation, tokenized as in lm-eval."""
    if context:
        before, answer = model._encode_pair(context, continuation)
    else:
        before, answer = [model.prefix_token_id], model.tok_encode(continuation, add_special_tokens=False)
    if images is not None:
        # `_encode_pair` moves spaces at the end of the prompt to the answer.
        return Prompt(tuple(before), context.rstrip(), tuple(images)), tuple(answer)
    return Prompt(tuple(before[-max(1, model.max_length + 1 - len(answer)) :])), tuple(answer)


def whole_text(ids: list[int], model: TextModel) -> Iterator[Row]:
    """A text without a prompt, in parts that fit the model; every token of it is prompt and is predicted."""
    for start in range(0, len(ids), model.max_length):
        before = ids[start - 1 : start] or [model.prefix_token_id]
        fed = (*before, *ids[start : start + model.max_length][:-1])
        yield Row(Prompt(fed), (), back=len(fed))


def generated_rows(requests: list[Request], model: TextModel) -> dict[int, Row]:
    """The model's greedy answers, by the `id` of each request; a task's sampling options are ignored."""
    prompts = {id(request): prompt_of(request, generation_limits(request, model)[0], model) for request in requests}
    batches = in_batches(
        requests,
        lambda request: (*generation_limits(request, model), prompts[id(request)].images is None),
        lambda request: len(prompts[id(request)].ids),
        model,
    )
    rows = {}
    for batch in batches:
        answers = greedy([prompts[id(request)] for request in batch], *generation_limits(batch[0], model), model)
        for request, answer in zip(batch, answers, strict=True):
            rows[id(request)] = Row(prompts[id(request)], answer[:-1])
    return rows


def generation_limits(request: Request, model: TextModel) -> tuple[int, tuple[str, ...]]:
    """The largest number of tokens to generate, and the texts that end an answer."""
    options = request.args[1]
    maxima = [options[key] for key in MAX_TOKENS_KEYS if options.get(key) is not None]
    until = options.get("until") or ()
    return int([*maxima, model.max_gen_toks][0]), (until,) if isinstance(until, str) else tuple(until)


def greedy(prompts: list[Prompt], max_tokens: int, until: tuple[str, ...], model: TextModel) -> list[tuple[int, ...]]:
    """Generate answers greedily, up to and including the token that ends each.

    Args:
        prompts: The prompts, all with images or all without.
        max_tokens: The largest number of tokens.
        until: Texts that end an answer.
        model: The dense model.
    """
    inputs = encode(prompts, model)
    ends = model.model.generation_config.eos_token_id
    ends = {model.eot_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    options = generation_options(
        max_new_tokens=max_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=model.tokenizer.pad_token_id,
        # When the answer is fed again, a generated image token would need an image.
        suppress_tokens=list(image_token_ids(model.model)) or None,
    )
    start = inputs["input_ids"].shape[1]
    stop = StopAtText(until, model, start)
    with torch.no_grad(), model.timed():
        out = model.model.generate(**inputs, **options, stopping_criteria=StoppingCriteriaList([stop]))
    return [
        next((tuple(row[:n]) for n in range(1, len(row)) if row[n - 1] in ends or stop.is_end(row[:n])), tuple(row))
        for row in out[:, start:].tolist()
    ]


class StopAtText(StoppingCriteria):
    """Ends an answer after one of some texts.

    Args:
        until: The texts.
        model: Decodes tokens.
        start: The position where the answers begin.
    """

    def __init__(self, until: tuple[str, ...], model: TextModel, start: int) -> None:
        self._until = [text for text in until if text]
        # A token has at least one byte, so this many last tokens contain any text that ends the answer.
        self._num_decoded = 1 + max((len(text.encode()) for text in self._until), default=0)
        self._model = model
        self._start = start

    def is_end(self, answer: list[int]) -> bool:
        """True where an answer ends with its last token."""
        tail = self._model.tok_decode(answer[-self._num_decoded :], skip_special_tokens=False)
        return any(text in tail for text in self._until)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Which rows have ended, shape (batch,)."""
        ended = [self.is_end(row) for row in input_ids[:, self._start :].tolist()]
        return torch.tensor(ended, device=input_ids.device)
