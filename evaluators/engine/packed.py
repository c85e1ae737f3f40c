"""Scoring all answers to a prompt in one row: the answers follow the prompt, and none of them sees another.

A question with choices asks for the log-likelihood of each choice after the same prompt. lm-eval feeds every choice
with its prompt, so a prompt with four choices runs four times. A packed row holds the prompt once. Its attention mask
lets each answer see the prompt and itself, and its position ids let each answer begin where the prompt ends. So the
prompt runs once, no answer is padded to the length of another one, and one forward does it all.

Values differ from those of lm-eval's rows by rounding alone. `can_pack` proves that for a model before it is used.
"""

import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from ...policies.families.layers import argument_names
from ...policies.runtime.answers import with_answers
from ...policies.runtime.narrow import additive_mask
from ...policies.runtime.tokens import image_token_ids
from ..timing.scheduler import forget_deltas
from .prompt import Prompt

if TYPE_CHECKING:
    from ..accuracy.text_model import LogLikelihood, TextModel

Fed = tuple[int, ...]
PADDING = -1  # the segment of a token that pads a row


@dataclass
class Question:
    """A prompt with the answers to it.

    Attributes:
        prompt: The prompt.
        length: Number of the prompt's tokens, those of images included.
        answers: By what is fed of an answer, all but its last token: the answers, each with the place of its request.
    """

    prompt: Prompt
    length: int
    answers: dict[Fed, list[tuple[int, Sequence[int]]]] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Number of tokens of its row."""
        return self.length + sum(map(len, self.answers))

    @property
    def longest(self) -> int:
        """Number of tokens up to the end of the longest answer."""
        return self.length + max(map(len, self.answers))


@dataclass(frozen=True)
class PackedBatch:
    """Some questions as one input of the model.

    Attributes:
        inputs: The model's input: prompts with all of their answers behind them, padded on the right.
        segments: 0 for a token of the prompt, n for one of the nth answer, -1 for padding, shape (batch, tokens).
        offsets: The place of an answer's token within its answer, shape (batch, tokens).
        ends: Number of tokens of each prompt, shape (batch,).
        reads: Rows and columns of the hidden states from which tokens are predicted, shape (2, predictions).
        answers: For each request its place, the predictions of its tokens as a range of `chosen`, and nothing else.
        chosen: For each token of each answer, the number of its prediction and its id, shape (2, tokens).
        key: Identifies the batch.
    """

    inputs: Mapping[str, Tensor]
    segments: Tensor
    offsets: Tensor
    ends: Tensor
    reads: Tensor
    answers: Sequence[tuple[int, int, int]]
    chosen: Tensor
    key: Hashable

    @classmethod
    def of(cls, questions: Sequence[Question], prompts: Mapping[str, Tensor], pad_id: int) -> "PackedBatch":
        """Pack questions.

        Args:
            questions: The questions.
            prompts: The model's input for their prompts, padded.
            pad_id: The token to pad with.
        """
        ends = prompts["attention_mask"].sum(dim=1)
        fed = [[token for ids in question.answers for token in ids] for question in questions]
        inputs = with_answers(prompts, fed, pad_id)
        segments = torch.full_like(inputs["input_ids"], PADDING)
        offsets = torch.zeros_like(segments)
        reads: list[tuple[int, int]] = []
        answers: list[tuple[int, int, int]] = []
        chosen: list[tuple[int, int]] = []
        for row, (question, end) in enumerate(zip(questions, ends.tolist(), strict=True)):
            segments[row, :end], start, first = 0, end, len(reads)
            reads.append((row, end - 1))
            for number, (ids, of_answer) in enumerate(question.answers.items(), 1):
                segments[row, start : start + len(ids)] = number
                offsets[row, start : start + len(ids)] = torch.arange(len(ids))
                predictions = [first, *range(len(reads), len(reads) + len(ids))]
                reads += [(row, start + offset) for offset in range(len(ids))]
                start += len(ids)
                for place, answer in of_answer:
                    answers.append((place, len(chosen), len(chosen) + len(answer)))
                    chosen += zip(predictions, answer, strict=True)
        key = "packed", tuple((question.prompt.key, tuple(question.answers)) for question in questions)
        device = segments.device
        as_columns = [torch.tensor(pairs, device=device).T.contiguous() for pairs in (reads, chosen)]
        return cls(inputs, segments, offsets, ends, as_columns[0], answers, as_columns[1], key)

    @property
    def sees(self) -> Tensor:
        """Which token may see which one by their segments, whatever their order, shape (batch, queries, keys)."""
        asking, seen = self.segments[:, :, None], self.segments[:, None, :]
        return (seen == 0) | (seen == asking)


def questions_of(
    requests: Iterable[tuple[int, Prompt, Sequence[int]]],
    length: Callable[[Prompt], int],
    longest: int,
    window: int | None,
    most: int,
) -> list[Question]:
    """Requests as questions, those with most tokens first; requests that fit in no row are left out.

    Args:
        requests: The place of each, its prompt, and its answer's token ids, at least one.
        length: The number of a prompt's tokens, those of images included.
        longest: The largest number of tokens of a prompt with one of its answers.
        window: Tokens that the shortest sliding window of a layer holds; None where all layers see all tokens.
        most: Tokens of a row; a question with more of them becomes several, each with some of the answers.
    """
    found: dict[Hashable, Question] = {}
    for place, prompt, answer in requests:
        if prompt.key not in found:
            found[prompt.key] = Question(prompt, length(prompt))
        found[prompt.key].answers.setdefault(tuple(answer[:-1]), []).append((place, answer))
    usable = [part for question in found.values() if question.longest <= longest for part in divided(question, most)]
    # A window counts columns of the mask, of which a packed row has more than there are places.
    usable = [question for question in usable if window is None or question.tokens <= window]
    return sorted(usable, key=lambda question: -question.tokens)


def divided(question: Question, most: int) -> Iterator[Question]:
    """A question as several of at most so many tokens, or of one answer."""
    part = Question(question.prompt, question.length)
    for fed, answers in question.answers.items():
        if part.answers and part.tokens + len(fed) > most:
            yield part
            part = Question(question.prompt, question.length)
        part.answers[fed] = answers
    yield part


def score(model: "TextModel", batch: PackedBatch) -> Iterator[tuple[int, "LogLikelihood"]]:
    """Score the answers of a batch.

    Args:
        model: The model, under its policy.
        batch: The batch.

    Yields:
        The place of each request, with the log-likelihood of its answer and whether greedy decoding would give it.
    """
    forget_deltas(model.model)
    with torch.no_grad(), model.timed(), model.scoring(batch.key, batch.ends), packed_rows(model.model, batch):
        logits = model.model(**batch.inputs, use_cache=False).logits[0]
    predicted = logits.log_softmax(dim=-1, dtype=model.softmax_dtype)
    rows, tokens = batch.chosen
    values = predicted[rows, tokens].tolist()
    greedy = (predicted.argmax(dim=-1)[rows] == tokens).tolist()
    for place, start, stop in batch.answers:
        yield place, (sum(values[start:stop]), all(greedy[start:stop]))


@contextmanager
def packed_rows(model: PreTrainedModel, batch: PackedBatch) -> Iterator[None]:
    """Let the forwards in this context read a packed batch; their logits have shape (1, predictions, vocabulary)."""
    head: nn.Module = model.get_output_embeddings()

    def pack(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask = packed_mask(kwargs.get("attention_mask"), batch, model)
        return args, {**kwargs, "attention_mask": mask, "position_ids": positions(kwargs.get("position_ids"), batch)}

    def select(_: nn.Module, args: tuple[Any, ...]) -> Any:
        # A large vocabulary makes the logits of a prompt's tokens as expensive as several layers.
        return args[0][batch.reads[0], batch.reads[1]][None], *args[1:]

    hooks = [
        model.get_decoder().register_forward_pre_hook(pack, with_kwargs=True),
        head.register_forward_pre_hook(select),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def packed_mask(mask: Any, batch: PackedBatch, model: PreTrainedModel) -> Any:
    """A decoder's mask over packed rows, shape (batch, 1, tokens, tokens).

    Args:
        mask: What the model gives to its decoder: None or a padding mask, shape (batch, tokens), where the decoder is
            causal; or finished masks, where image tokens see each other, perhaps one for each kind of layer.
        batch: The packed rows.
        model: The model.
    """
    if isinstance(mask, Mapping):
        return {kind: packed_mask(one, batch, model) for kind, one in mask.items()}
    sees = batch.sees[:, None]
    if mask is not None and mask.dim() == 4:
        return mask & sees if mask.dtype == torch.bool else mask.masked_fill(~sees, torch.finfo(mask.dtype).min)
    allowed = sees.tril()
    is_sdpa = model.config.get_text_config()._attn_implementation == "sdpa"
    return allowed if is_sdpa else additive_mask(allowed, model.dtype)


def positions(given: Tensor | None, batch: PackedBatch) -> Tensor:
    """Position ids of packed rows: every answer begins at the place of the first one.

    Args:
        given: The position ids of the model for tokens in a row, shape (..., batch, tokens); None where they count up.
        batch: The packed rows.
    """
    if given is None:
        given = torch.arange(batch.segments.shape[1], device=batch.segments.device).expand_as(batch.segments)
    after = batch.ends.clamp_max(batch.segments.shape[1] - 1)[:, None].expand_as(batch.segments)
    first = given.gather(-1, after.expand(given.shape))
    return torch.where(batch.segments > 0, first + batch.offsets, given)


def shortest_window(model: PreTrainedModel) -> int | None:
    """Tokens that the shortest sliding window of a layer holds; None where all layers see all tokens."""
    windows = (getattr(layer, "sliding_window", None) for layer in DynamicCache(config=model.config).layers)
    return min((window for window in windows if window is not None), default=None)


# What a model raises that has its mask, positions or head in another way.
OTHERWISE = (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError)
# The largest difference of logits as a share of the largest logit. Rounding stays below it; a token at another
# place, or one that sees another answer, does not.
FLOAT32_TOLERANCE, TOLERANCE = 1e-3, 2e-2


def attends_to_images(model: PreTrainedModel) -> bool:
    """True where images are not among the tokens, so that a prompt of text does not show how they are read."""
    return "cross_attention_states" in argument_names(model.get_decoder())


def plain_tokens(model: PreTrainedModel) -> list[int]:
    """The ids of all tokens that stand for no image."""
    embeddings: Any = model.get_input_embeddings()
    images = {*image_token_ids(model)}
    return [number for number in range(len(embeddings.weight)) if number not in images]


def can_pack(model: PreTrainedModel) -> bool:
    """True where packed rows have the logits of rows one by one, tried on a short random prompt.

    Args:
        model: The model, without a policy.
    """
    if attends_to_images(model) or model.config.get_text_config()._attn_implementation not in ("sdpa", "eager"):
        return False
    draw = random.Random(0)
    known = plain_tokens(model)
    prompt, *answers = (draw.choices(known, k=size) for size in (5, 3, 4, 2))
    question = Question(Prompt(tuple(prompt)), len(prompt), {tuple(answer[:-1]): [(0, answer)] for answer in answers})
    try:
        return _has_equal_logits(model, question)
    except OTHERWISE:
        return False


def _has_equal_logits(model: PreTrainedModel, question: Question) -> bool:
    ids = torch.tensor([question.prompt.ids], device=model.device)
    batch = PackedBatch.of([question], {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 0)
    forward: Any = model
    with torch.no_grad():
        with packed_rows(model, batch):
            packed = forward(**batch.inputs, use_cache=False).logits[0]
        rows = [torch.cat([ids, ids.new_tensor([fed])], dim=1) for fed in question.answers]
        alone = [forward(row, use_cache=False).logits[0, question.length - 1 :] for row in rows]
    return equal_logits(packed, torch.cat([alone[0][:1], *(logits[1:] for logits in alone)]))


def equal_logits(found: Tensor, expected: Tensor) -> bool:
    """True where logits are equal but for rounding."""
    largest = (FLOAT32_TOLERANCE if expected.dtype == torch.float32 else TOLERANCE) * expected.abs().max()
    return found.shape == expected.shape and bool((found - expected).abs().max() <= largest)
