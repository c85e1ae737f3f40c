"""The answers whose tokens are predicted: those that a task scores, and the dense model's own where it generates."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from ..policies.runtime.tokens import image_token_ids
from .accuracy.model import TextModel
from .accuracy.rungs import Example, numbered
from .accuracy.splits import Tasks
from .prompts import generation_options

T = TypeVar("T")
Request: TypeAlias = Any  # lm-eval's Instance

# lm-eval's names for how many tokens to generate; the first that is given counts.
MOST_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class Prompt:
    """What an answer follows: token ids, or a text with images.

    Attributes:
        ids: Token ids; with images those of the text alone, to know its length.
        text: The text, where there are images.
        images: The images, or None.
    """

    ids: tuple[int, ...]
    text: str = ""
    images: tuple[Any, ...] | None = None

    @property
    def key(self) -> Hashable:
        """Equal for prompts that are fed alike; pictures have no hash, and a task hands out the same ones again."""
        return self.ids, self.text, self.images and tuple(map(id, self.images))


@dataclass
class Row:
    """A prompt with an answer after it, as one row of a batch.

    Attributes:
        prompt: The prompt.
        fed: Token ids of the answer without its last one, which is only predicted.
        back: The last so many places of the prompt predict tokens that are compared: 1, or all of a whole text.
        examples: The numbers of the examples that have this answer, one more than once if several of its answers
            differ in their last token alone.
    """

    prompt: Prompt
    fed: tuple[int, ...]
    back: int = 1
    examples: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Answers:
    """The answers to some examples.

    Attributes:
        examples: The examples, by whose places in this list the rows know them.
        batches: The rows to be predicted, some at a time.
    """

    examples: list[Example]
    batches: list[list[Row]]

    @classmethod
    def of(cls, tasks: Tasks, model: TextModel) -> "Answers":
        """Collect them; the model has to be dense, for where a task generates, it answers itself."""
        requests = [(name, request) for name, task in tasks.items() for request in task.instances]
        numbers = numbered(tasks)
        rows: dict[Hashable, Row] = {}
        written = generated([request for _, request in requests if request.request_type == "generate_until"], model)
        for name, request in requests:
            for row in [written[id(request)]] if id(request) in written else scored(request, model):
                same = rows.setdefault((row.prompt.key, row.fed, row.back), row)
                same.examples.append(numbers[name, request.doc_id])
        batches = in_batches(
            rows.values(), lambda row: row.prompt.images is None, lambda row: len(row.prompt.ids + row.fed), model
        )
        return cls(list(numbers), batches)


def in_batches(
    items: Iterable[T], alike: Callable[[T], Hashable], length: Callable[[T], int], model: TextModel
) -> list[list[T]]:
    """As many at a time as the model takes, only such as are alike, the longest first."""
    groups: dict[Hashable, list[T]] = defaultdict(list)
    for item in sorted(items, key=length, reverse=True):
        groups[alike(item)].append(item)
    size: int = model.batch_size
    return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]


def scored(request: Request, model: TextModel) -> Iterator[Row]:
    """The answer that a log-likelihood request scores, as lm-eval cuts it into tokens."""
    if request.request_type == "loglikelihood_rolling":
        yield from whole_text(model.tok_encode(request.args[0]), model)
        return
    context, continuation, *more = request.args
    prompt, answer = continued(context, continuation, more[0]["visual"] if more else None, model)
    if answer:
        yield Row(prompt, answer[:-1])


def continued(
    context: str, continuation: str, images: Sequence[Any] | None, model: TextModel
) -> tuple[Prompt, tuple[int, ...]]:
    """A prompt and the token ids of what follows it, as lm-eval cuts them into tokens."""
    if context:
        before, answer = model._encode_pair(context, continuation)
    else:
        before, answer = [model.prefix_token_id], model.tok_encode(continuation, add_special_tokens=False)
    if images is not None:
        # Spaces at the end of the prompt belong to the answer.
        return Prompt(tuple(before), context.rstrip(), tuple(images)), tuple(answer)
    return Prompt(tuple(before[-max(1, model.max_length + 1 - len(answer)) :])), tuple(answer)


def whole_text(ids: list[int], model: TextModel) -> Iterator[Row]:
    """A text without a prompt, in parts that fit the model: all of it is prompt, and all of it is predicted."""
    for start in range(0, len(ids), model.max_length):
        before = ids[start - 1 : start] or [model.prefix_token_id]
        fed = (*before, *ids[start : start + model.max_length][:-1])
        yield Row(Prompt(fed), (), back=len(fed))


def generated(requests: list[Request], model: TextModel) -> dict[int, Row]:
    """The model's own greedy answers, by the id of each request; sampling, where a task asks for it, is left out."""

    def limits(request: Request) -> tuple[int, tuple[str, ...]]:
        given = [request.args[1][key] for key in MOST_TOKENS if request.args[1].get(key) is not None]
        until = request.args[1].get("until") or ()
        return int([*given, model.max_gen_toks][0]), (until,) if isinstance(until, str) else tuple(until)

    prompts = {id(request): prompt_of(request, limits(request)[0], model) for request in requests}
    batches = in_batches(
        requests,
        lambda request: (*limits(request), prompts[id(request)].images is None),
        lambda request: len(prompts[id(request)].ids),
        model,
    )
    found = {}
    for batch in batches:
        written = greedy([prompts[id(request)] for request in batch], *limits(batch[0]), model)
        for request, answer in zip(batch, written, strict=True):
            found[id(request)] = Row(prompts[id(request)], answer[:-1])
    return found


def prompt_of(request: Request, most: int, model: TextModel) -> Prompt:
    """The prompt of a request to generate, cut on its left where the answer would not fit behind it."""
    context = request.args[0]
    if len(request.args) > 2:
        return Prompt(tuple(model.tok_encode(context)), context, tuple(request.args[2]["visual"]))
    ids, _ = model.tok_batch_encode([context])
    return Prompt(tuple(ids[0].tolist()[-max(1, model.max_length - most) :]))


def encoded(prompts: list[Prompt], model: TextModel) -> dict[str, Tensor]:
    """The model's input for some prompts, padded on the left."""
    if prompts[0].images is not None:
        texts, images = [prompt.text for prompt in prompts], [list(prompt.images or ()) for prompt in prompts]
        return dict(model.tok_batch_multimodal_encode(texts, images))
    longest = max(len(prompt.ids) for prompt in prompts)
    padding = [longest - len(prompt.ids) for prompt in prompts]
    ids = [[model.tokenizer.pad_token_id] * n + list(prompt.ids) for n, prompt in zip(padding, prompts, strict=True)]
    mask = [[0] * n + [1] * (longest - n) for n in padding]
    return {
        "input_ids": torch.tensor(ids, device=model.device),
        "attention_mask": torch.tensor(mask, device=model.device),
    }


def greedy(prompts: list[Prompt], most: int, until: tuple[str, ...], model: TextModel) -> list[tuple[int, ...]]:
    """What the model answers, token by token, up to and with what ends the answer.

    Args:
        prompts: The prompts, all with images or all without.
        most: How many tokens at most.
        until: Texts that end an answer.
        model: The model, dense.
    """
    inputs = encoded(prompts, model)
    ends = model.model.generation_config.eos_token_id
    ends = {model.eot_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    options = generation_options(
        max_new_tokens=most,
        eos_token_id=sorted(ends),
        pad_token_id=model.tokenizer.pad_token_id,
        # Fed again, such a token would ask for an image.
        suppress_tokens=list(image_token_ids(model.model)) or None,
    )
    start = inputs["input_ids"].shape[1]
    stop = Stop(until, model, start)
    with torch.no_grad(), model.timed():
        out = model.model.generate(**inputs, **options, stopping_criteria=StoppingCriteriaList([stop]))
    return [
        next((tuple(row[:n]) for n in range(1, len(row)) if row[n - 1] in ends or stop.met(row[:n])), tuple(row))
        for row in out[:, start:].tolist()
    ]


class Stop(StoppingCriteria):
    """Ends an answer behind a text.

    Args:
        until: The texts, each of which ends it.
        model: Decodes tokens.
        start: Where the answers begin.
    """

    def __init__(self, until: tuple[str, ...], model: TextModel, start: int) -> None:
        self._until = [text for text in until if text]
        # No token is shorter than a byte, so the text that ends an answer lies within so many of its last ones.
        self._reach = 1 + max((len(text.encode()) for text in self._until), default=0)
        self._model = model
        self._start = start

    def met(self, answer: list[int]) -> bool:
        """True where an answer ends with its last token."""
        tail = self._model.tok_decode(answer[-self._reach :], skip_special_tokens=False)
        return any(text in tail for text in self._until)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Which rows are at their end, shape (batch,)."""
        met = [self.met(row) for row in input_ids[:, self._start :].tolist()]
        return torch.tensor(met, device=input_ids.device)
