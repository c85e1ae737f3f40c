"""Answers to many prompts, greedily: a row that has ended leaves its batch at once, and the next prompts join.

`generate` computes every row of a batch until the last one has ended. Here the keys and values of a row go with its
last token, and once half of the rows are free, the next prompts are read and their caches join, as in continuous
batching. `generate` still reads the prompts, because families tell places, images and padding in ways of their own.

Answers differ from those of `generate` by rounding alone. `can_refill` proves that for a model before it is used.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from ...policies.caches.join import joined, refuse_unjoinable
from ...policies.errors import ModelError
from ..prompts import generation_options
from ..timing.scheduler import decode, forget_deltas, left_in_batch
from .packed import OTHERWISE, attends_to_images, equal_logits, plain_tokens
from .prompt import Prompt, encode

if TYPE_CHECKING:
    from ..accuracy.text_model import TextModel


@dataclass(eq=False)
class Row:
    """A prompt and its answer so far.

    Attributes:
        prompt: The prompt.
        num_prompt: Number of the prompt's tokens, those of images included.
        tokens: Token ids of the answer.
        delta: What the model adds to the places of the answer's tokens; 0 for most models.
    """

    prompt: Prompt
    num_prompt: int
    tokens: list[int] = field(default_factory=list)
    delta: int = 0

    @property
    def length(self) -> int:
        """How many of its tokens a cache holds: all but the newest, which the next step brings."""
        return self.num_prompt + len(self.tokens) - 1


class Generation:
    """Rows that are answered together.

    Args:
        model: The model, under its policy.
        is_over: Says whether a row's answer ends with its newest token.
    """

    def __init__(self, model: "TextModel", is_over: Callable[[Row], bool]) -> None:
        self._model, self._is_over = model, is_over
        self._running: list[Row] = []
        self._cache: Cache | None = None

    def run(self, groups: Sequence[Sequence[Row]]) -> None:
        """Answer all rows, in their order.

        Args:
            groups: The rows whose prompts are read together; they join when half of the first group's rows are free.
        """
        coming = deque(groups)
        with torch.no_grad():
            while coming or self._running:
                if coming and len(self._running) <= len(groups[0]) // 2:
                    self.start(coming.popleft())
                else:
                    self.step()
                self._drop()

    def start(self, rows: Sequence[Row]) -> None:
        """Read the prompts of some rows, and let them join the running ones."""
        inputs = encode([row.prompt for row in rows], self._model)
        forget_deltas(self._model.model)
        options = generation_options(
            max_new_tokens=1, pad_token_id=self._model.tokenizer.pad_token_id, return_dict_in_generate=True
        )
        with next_places(self._model.model) as places, self._model.timed():
            output: Any = self._model.model.generate(**inputs, **options)
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        following = places[0] if places else lengths
        for row, length, place, token in zip(rows, lengths, following, output.sequences[:, -1].tolist(), strict=True):
            row.num_prompt, row.delta = length, place - length
            row.tokens.append(token)
        cache = output.past_key_values
        refuse_unjoinable(cache)
        self._cache = cache if self._cache is None else joined(self._cache, cache, (len(self._running), len(rows)))
        self._running += rows

    def step(self) -> Tensor:
        """Decode one token of every running row; returns its logits, shape (rows, vocabulary)."""
        with self._model.timed():
            logits: Tensor = decode(self._model.model, self._running, self._cache).logits[:, -1]
            tokens = logits.argmax(dim=-1).tolist()
        for row, token in zip(self._running, tokens, strict=True):
            row.tokens.append(token)
        return logits

    def _drop(self) -> None:
        """Let the rows go whose answers are over."""
        left = [place for place, row in enumerate(self._running) if not self._is_over(row)]
        self._running, self._cache = left_in_batch(self._running, self._cache, left)


@contextmanager
def next_places(model: PreTrainedModel) -> Iterator[list[list[int]]]:
    """Read from the first forward in this context at which place each row goes on; empty where places count up.

    Yields:
        A list that gets one list, of the place after each row's last token.
    """
    found: list[list[int]] = []

    def read(_: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        places, ids = kwargs.get("position_ids"), kwargs.get("inputs_embeds", kwargs.get("input_ids"))
        if places is None or ids is None or found:
            return
        # Image tokens have a place in time, height and width each; some models put the place in the text before them.
        last = (places[-3:].amax(dim=0) if places.dim() == 3 else places)[:, -1] + 1
        found.append(last.expand(len(ids)).tolist())

    hook = model.get_decoder().register_forward_pre_hook(read, with_kwargs=True)
    try:
        yield found
    finally:
        hook.remove()


def can_refill(model: "TextModel") -> bool:
    """True where rows in one another's company are answered as alone, tried on three short random prompts.

    Args:
        model: The model, without a policy.
    """
    if attends_to_images(model.model):
        return False
    draw = random.Random(0)
    known = plain_tokens(model.model)
    rows = [Row(Prompt(tuple(draw.choices(known, k=size))), size) for size in (6, 3, 4)]
    forward: Any = model.model
    generation = Generation(model, lambda row: False)
    try:
        with torch.no_grad():
            generation.start(rows[:2])
            generation.step()
            generation.start(rows[2:])
            logits = generation.step()
            whole = [torch.tensor([[*row.prompt.ids, *row.tokens[:-1]]], device=model.device) for row in rows]
            alone = torch.cat([forward(ids, use_cache=False).logits[:, -1] for ids in whole])
    except (ModelError, *OTHERWISE):
        return False
    return equal_logits(logits, alone)
