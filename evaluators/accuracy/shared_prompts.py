"""Answers to one prompt, scored together: the prompt runs once, and each answer goes on from its keys and values.

A question with choices asks for the log-likelihood of each of them after the same prompt. lm-eval feeds every choice
together with its prompt, so a prompt with four choices runs four times. Scored together the values differ by rounding
alone.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

if TYPE_CHECKING:
    from .text_model import LogLikelihood, TextModel, TokenRequest

# Prompts are shared where that spares so much: rows that are fed whole can reuse the states of earlier policies, which
# spares about as much.
LEAST_GAIN = 1.5
NEEDED = {"position_ids", "attention_mask", "logits_to_keep"}
CACHE_NAMES = ("cache", "past_key_values")  # what releases of transformers call it, the latest first


@dataclass
class Prompt:
    """A prompt and the answers to it.

    Attributes:
        ids: Its token ids.
        answers: By what is fed of an answer, all but its last token: the answers, each with the place of its request.
    """

    ids: tuple[int, ...]
    answers: dict[tuple[int, ...], list[tuple[int, list[int]]]] = field(default_factory=dict)

    @property
    def gain(self) -> float:
        """How many times fewer tokens run where the answers share the prompt."""
        fed = sum(map(len, self.answers))
        return (len(self.answers) * len(self.ids) + fed) / (len(self.ids) + fed)


def can_share(model: PreTrainedModel) -> bool:
    """True where the rows of the model's cache can be repeated, and its positions can be told."""
    if not inspect.signature(model.forward).parameters.keys() >= NEEDED or cache_name(model) is None:
        return False
    layers = DynamicCache(config=model.config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def cache_name(model: PreTrainedModel) -> str | None:
    """What the model's forward calls the cache; None where it takes none."""
    parameters = inspect.signature(model.forward).parameters
    return next((name for name in CACHE_NAMES if name in parameters), None)


def prompts_to_share(requests: Sequence["TokenRequest"], max_length: int, most_answers: int) -> list[Prompt]:
    """The prompts with several answers that are worth sharing, the longest first.

    Args:
        requests: Log-likelihoods that are asked for.
        max_length: Tokens of a row that the model can take; longer rows are left to lm-eval, which cuts them.
        most_answers: Answers that may run together; a prompt with more of them runs several times.
    """
    found: dict[tuple[int, ...], Prompt] = {}
    for place, (_, context, answer) in enumerate(requests):
        prompt = found.setdefault(tuple(context), Prompt(tuple(context)))
        prompt.answers.setdefault(tuple(answer[:-1]), []).append((place, answer))
    usable = [
        prompt
        for prompt in found.values()
        if prompt.gain >= LEAST_GAIN and len(prompt.ids) + max(map(len, prompt.answers)) <= max_length
    ]
    parts = [part for prompt in usable for part in divided(prompt, most_answers)]
    return sorted(parts, key=lambda prompt: -len(prompt.ids))


def divided(prompt: Prompt, most_answers: int) -> list[Prompt]:
    """A prompt as several, each with at most so many answers."""
    answers = [*prompt.answers.items()]
    starts = range(0, len(answers), most_answers)
    return [Prompt(prompt.ids, dict(answers[start : start + most_answers])) for start in starts]


def score(model: "TextModel", prompts: Sequence[Prompt]) -> Iterator[tuple[int, "LogLikelihood"]]:
    """Score the answers to some prompts.

    Args:
        model: The model, under its policy.
        prompts: As many at a time as give a batch of answers run together.

    Yields:
        The place of each request, with the log-likelihood of its answer and whether greedy decoding would give it.
    """
    batch: list[Prompt] = []
    for prompt in prompts:
        if batch and sum(len(one.answers) for one in (*batch, prompt)) > model.batch_size:
            yield from _score_batch(model, batch)
            batch = []
        batch.append(prompt)
    if batch:
        yield from _score_batch(model, batch)


def _score_batch(model: "TextModel", prompts: list[Prompt]) -> Iterator[tuple[int, "LogLikelihood"]]:
    ids, mask = padded([prompt.ids for prompt in prompts], "left", model.device)
    first, cache = _forward(model, ids, mask)
    rows = [(number, fed) for number, prompt in enumerate(prompts) for fed in prompt.answers if fed]
    after: dict[tuple[int, tuple[int, ...]], Tensor] = {}
    if rows:
        of_prompt = torch.tensor([number for number, _ in rows], device=model.device)
        fed_ids, fed_mask = padded([fed for _, fed in rows], "right", model.device)
        cache.batch_select_indices(of_prompt)
        logits, _ = _forward(model, fed_ids, torch.cat([mask[of_prompt], fed_mask], dim=1), cache)
        after = dict(zip(rows, logits, strict=True))
    for number, prompt in enumerate(prompts):
        for fed, answers in prompt.answers.items():
            parts = [first[number], *([after[number, fed][: len(fed)]] if fed else [])]
            predicted = torch.cat(parts).log_softmax(dim=-1, dtype=model.softmax_dtype)
            greedy = predicted.argmax(dim=-1).tolist()
            for place, answer in answers:
                chosen = predicted.gather(1, torch.tensor(answer, device=predicted.device)[:, None])
                yield place, (float(chosen.sum()), greedy == answer)


def _forward(model: "TextModel", ids: Tensor, mask: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
    """One forward of the model.

    Args:
        model: The model, under its policy.
        ids: Token ids, shape (batch, tokens).
        mask: Which tokens are real, those in the cache before them, shape (batch, cached + tokens).
        cache: The keys and values of the prompts, where the tokens are of answers.

    Returns:
        Logits, shape (batch, tokens, vocabulary), of prompts those after their last token alone; and the cache.
    """
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    handle = model.handle
    if handle is not None and cache is not None:
        handle.prompt_ends = torch.full((len(ids),), mask.shape[1] - ids.shape[1])
    known = {} if cache is None else {str(cache_name(model.model)): cache}
    try:
        with torch.no_grad(), model.timed():
            out = model.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                **known,
                use_cache=True,
                logits_to_keep=1 if cache is None else 0,
            )
    finally:
        if handle is not None:
            handle.prompt_ends = None
    return out.logits, out.past_key_values


def padded(rows: Sequence[tuple[int, ...]], side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids of equal length, and which of them are real, each of shape (batch, tokens)."""
    longest = max(map(len, rows))
    fill = [longest - len(row) for row in rows]
    left = [count if side == "left" else 0 for count in fill]
    ids = [[0] * before + [*row] + [0] * (count - before) for row, count, before in zip(rows, fill, left, strict=True)]
    real = [
        [0] * before + [1] * len(row) + [0] * (count - before)
        for row, count, before in zip(rows, fill, left, strict=True)
    ]
    return torch.tensor(ids, device=device), torch.tensor(real, device=device)
