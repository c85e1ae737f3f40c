"""The ways of running a model: each option of `generate` and `forward`, by a way that uses it or by why none does.

A way runs one model on a batch and returns what it found: for some rows with their answers, the logits at some places,
or the score of a beam. Whether a policy is applied is not its business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers as t
from tokenizers import Tokenizer
from tokenizers import models as words
from torch import Tensor
from transformers import DynamicCache
from transformers.generation import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from families import FAMILIES, Batch, forget

ANSWER = 3


@dataclass(frozen=True)
class Found:
    """What a way gave for one row.

    Attributes:
        batch: The batch.
        row: Its number in the batch.
        ids: Its tokens, the answer among them, without padding.
        end: How many of them are the prompt.
        first: The place of the first token whose logits these are.
        logits: Shape (places, vocabulary); None where there is a score instead.
        score: The sum of the log-probabilities of the answer.
        answer: The places of answer tokens, where more of a prompt follows them.
        chances: True where the logits are log-probabilities, and some may be missing.
    """

    batch: Batch
    row: int
    ids: tuple[int, ...]
    end: int
    first: int
    logits: Tensor | None = None
    score: float | None = None
    answer: tuple[int, ...] | None = None
    chances: bool = False


@dataclass
class Case:
    """A model with its inputs, and the handle of its policy; None where it is dense."""

    name: str
    model: Any
    batch: Batch
    handle: Any = None

    def found(self, *where: Any, **what: Any) -> Found:
        """What a way gave for a row of this batch; see `Found`."""
        return Found(self.batch, *where, **what)

    @property
    def inputs(self) -> dict[str, Tensor]:
        return self.batch.padded()

    @property
    def alone(self) -> Case:
        """The first row without the others."""
        family = self.batch.family
        return replace(self, batch=Batch.of(family, [(2, "image", 3) if family.image_tokens else (9,)], seed=1))


Way = Callable[[Case], list[Found]]


def generated(case: Case, per_row: int = 1, **options: Any) -> list[Found]:
    """What `generate` gives: the raw logits of every step."""
    inputs = case.inputs
    length = inputs["input_ids"].shape[1]
    forget(case.model)
    told = {"max_new_tokens": ANSWER, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    torch.manual_seed(0)
    out = case.model.generate(**{**inputs, **told, **options})
    return answers(case, out.sequences[:, -(out.sequences.shape[1] - length) :], out.logits, per_row)


def answers(case: Case, tokens: Tensor, logits: Any, per_row: int = 1) -> list[Found]:
    """One row for each answer, shape (rows, answer), with the logits of its steps."""
    found, stacked = [], torch.stack(tuple(logits), dim=1)
    for number, answer in enumerate(tokens.tolist()):
        ids = case.batch.ids[number // per_row]
        found.append(
            case.found(number // per_row, (*ids, *answer), len(ids), len(ids) - 1, stacked[number, : len(answer)])
        )
    return found


def with_options(alone: bool = False, per_row: int = 1, **options: Any) -> Way:
    return lambda case: generated(case.alone if alone else case, per_row, **options)


def beams(**options: Any) -> Way:
    def way(case: Case) -> list[Found]:
        forget(case.model)
        inputs, length = case.inputs, case.inputs["input_ids"].shape[1]
        told = {"max_new_tokens": ANSWER, "num_beams": 2, "length_penalty": 0.0, "return_dict_in_generate": True}
        torch.manual_seed(0)
        out = case.model.generate(**{**inputs, **told, "do_sample": False, "output_scores": True, **options})
        return [
            case.found(row, (*ids, *answer), len(ids), len(ids) - 1, score=float(score))
            for row, (ids, answer, score) in enumerate(
                zip(case.batch.ids, out.sequences[:, length:].tolist(), out.sequences_scores, strict=True)
            )
        ]

    return way


def tokenizer() -> Any:
    # transformers asks for this word when it looks for stop strings.
    vocabulary = {f"t{index}": index for index in range(97)} | {"abcdef": 97}
    special = {"pad_token": "t0", "bos_token": "t1", "eos_token": "t4"}
    return t.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words.WordLevel(vocabulary, unk_token="t3")), **special)


class Favour(LogitsProcessor):
    """Makes one token likely."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores + 2.0 * torch.nn.functional.one_hot(torch.tensor(7), scores.shape[-1])


class Never(StoppingCriteria):
    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Silent(BaseStreamer):
    def put(self, value: Any) -> None:
        pass

    def end(self) -> None:
        pass


def assisted(**options: Any) -> Way:
    """Another model of the same tokens, or for images a copy of the model itself, guesses ahead."""

    def way(case: Case) -> list[Found]:
        case = case.alone
        helper = FAMILIES[case.name].build("sdpa")
        for weight in helper.get_decoder().layers[3].parameters():
            weight.data *= 0.9
        helper.generation_config.update(num_assistant_tokens=2, num_assistant_tokens_schedule="constant")
        return generated(case, assistant_model=helper, **options)

    return way


def by_hand(case: Case) -> list[Found]:
    """A loop over forwards with one cache."""
    cache, inputs, found, logits = DynamicCache(config=case.model.config), case.inputs, [], []
    forget(case.model)
    with torch.no_grad():
        for _ in range(ANSWER):
            out = case.model(**inputs, past_key_values=cache, use_cache=True)
            logits.append(out.logits[:, -1])
            found.append(logits[-1].argmax(-1)[:, None])
            mask = inputs["attention_mask"]
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            inputs = {"input_ids": found[-1], "attention_mask": mask}
    return answers(case, torch.cat(found, dim=1), logits)


def by_hand_in_pieces(case: Case) -> list[Found]:
    """The same with a prompt in two forwards, the second of one token; a policy is told where it ends."""
    case = case.alone
    inputs, ids = case.inputs, case.inputs["input_ids"]
    cut = ids.shape[1] - 1
    per_token = {key: value for key, value in inputs.items() if value.shape == ids.shape}
    first = {**inputs, **{key: value[:, :cut] for key, value in per_token.items()}}
    second = {"input_ids": ids[:, cut:], "attention_mask": inputs["attention_mask"]}
    cache = DynamicCache(config=case.model.config)
    forget(case.model)
    if case.handle is not None:
        case.handle.prompt_ends = torch.tensor([cut + 1])
    try:
        with torch.no_grad():
            parts = [case.model(**part, past_key_values=cache, use_cache=True).logits for part in (first, second)]
            token = parts[1][:, -1].argmax(-1)[:, None]
            mask = torch.ones(1, cut + 2, dtype=torch.long)
            parts.append(case.model(input_ids=token, attention_mask=mask, past_key_values=cache).logits)
    finally:
        if case.handle is not None:
            case.handle.prompt_ends = None
    row = (*case.batch.ids[0], int(token))
    return [case.found(0, row, cut + 1, 0, torch.cat(parts, dim=1)[0])]


def one_forward(side: str = "left", **options: Any) -> Way:
    """One forward over prompts."""

    def way(case: Case) -> list[Found]:
        forget(case.model)
        more = {name: value(case) if callable(value) else value for name, value in options.items()}
        with torch.no_grad():
            logits = case.model(**{**case.batch.padded(side), **more}, return_dict=True).logits
        rows = enumerate(case.batch.ids)
        last = more.get("logits_to_keep", 0)
        return [
            case.found(row, tuple(ids), len(ids), len(ids) - (last or len(ids)), kept(case, logits, row, side, last))
            for row, ids in rows
        ]

    return way


def kept(case: Case, logits: Tensor, row: int, side: str, last: int) -> Tensor:
    return logits[row] if last else case.batch.real(logits, row, side)


def scored(case: Case) -> list[Found]:
    """Prompt and answer in one forward, of which a policy is told where the prompts end."""
    ids = [[*row, 5, 9] for row in case.batch.ids]
    longer = replace(case.batch, ids=ids)
    if case.handle is not None:
        case.handle.prompt_ends = torch.tensor([len(row) - 2 for row in ids])
    forget(case.model)
    try:
        with torch.no_grad():
            logits = case.model(**longer.padded("right"), use_cache=False).logits
    finally:
        if case.handle is not None:
            case.handle.prompt_ends = None
    return [
        case.found(row, tuple(one), len(one) - 2, 0, longer.real(logits, row, "right")) for row, one in enumerate(ids)
    ]


def embeddings(case: Case) -> Tensor:
    return case.model.get_input_embeddings()(case.inputs["input_ids"]).detach()


def from_embeddings(case: Case) -> list[Found]:
    """`generate` from embeddings, of text alone."""
    case = replace(case, batch=Batch.of(case.batch.family, [(9,), (6,)]))
    inputs = case.inputs
    forget(case.model)
    out = case.model.generate(
        inputs_embeds=embeddings(case), attention_mask=inputs["attention_mask"], max_new_tokens=ANSWER,
        do_sample=False, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    return answers(case, out.sequences[:, -ANSWER:], out.logits)


def next_turn(case: Case) -> list[Found]:
    """A second `generate` that goes on with the cache of the first; its text is prompt, the answer before it is not."""
    case = case.alone
    forget(case.model)
    told = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True, "max_new_tokens": ANSWER}
    first = case.model.generate(**case.inputs, **told)
    ids = torch.cat([first.sequences, torch.tensor([[11, 12]])], dim=1)
    more = {"attention_mask": torch.ones_like(ids), "past_key_values": first.past_key_values}
    out = case.model.generate(input_ids=ids, **more, **told)
    (turn,) = answers(case, first.sequences[:, -ANSWER:], first.logits)
    # The last token of the answer was not fed yet, so it begins the new turn.
    answer = tuple(range(turn.end, turn.end + ANSWER - 1))
    length = ids.shape[1]
    return [turn, case.found(0, tuple(ids[0].tolist()), turn.end, length - 1, out.logits[0], answer=answer)]
