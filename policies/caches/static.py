"""Static caches of layers that store fewer tokens than the sequence has: of fixed size, for CUDA graphs."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, StaticLayer, StaticSlidingWindowLayer

from ..errors import ModelError
from ..runtime.selection import Selection
from .partial import used_without_policy


class SkippedStaticLayer(StaticLayer):
    """The static cache of a layer that skips every token: it counts tokens and allocates nothing.

    Args:
        replaced: The cache layer in whose place this one is put.
        device: Where the model runs; the count lives there, because CUDA graphs need it.

    Attributes:
        prompt: What an adapter in place of the attention keeps of the prompt, shape (batch, numbers); None before the
            prompt, and where the layer has no adapter.
    """

    def __init__(self, replaced: StaticLayer, device: torch.device) -> None:
        CacheLayerMixin.__init__(self)
        self.prompt: Tensor | None = None
        self._room: Tensor | None = None
        self.max_cache_len = replaced.max_cache_len
        self.cumulative_length = torch.zeros((), dtype=torch.long, device=device)
        self.cumulative_length_int = 0
        # Mllama looks at the keys, to see whether a layer stored something.
        self.keys = self.values = torch.empty(0, device=device)
        self.is_initialized = True
        mark_static(self.cumulative_length)

    def skip_tokens(self, count: int) -> None:
        """Count tokens."""
        self.cumulative_length.add_(count)
        if self.is_sliding:
            self.cumulative_length_int += count

    def remember(self, prompt: Tensor) -> None:
        """Keep what an adapter needs of the prompt, in the same memory for each prompt, which a CUDA graph reads."""
        if self._room is None or self._room.shape != prompt.shape:
            self._room = prompt.clone()
            mark_static(self._room)
        else:
            self._room.copy_(prompt)
        self.prompt = self._room

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Refuse to store: the layer runs without the policy that made this cache.

        Raises:
            ModelError: always.
        """
        raise used_without_policy()

    def reset(self) -> None:
        """Set the count to 0, and forget the prompt."""
        self.cumulative_length.zero_()
        self.cumulative_length_int = 0
        self.prompt = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder what is kept of the prompt."""
        if self.prompt is not None:
            self.remember(self.prompt.index_select(0, beam_idx.to(self.prompt.device)))

    def offload(self) -> None:
        """Nothing to move."""

    def prefetch(self) -> None:
        """Nothing to move."""


class SkippedStaticSlidingLayer(SkippedStaticLayer, StaticSlidingWindowLayer):
    """A `SkippedStaticLayer` for a layer with a sliding window."""


class ShortStaticLayer(StaticLayer):
    """The static cache of a layer that stores some tokens of the prompt, as many in each row, and later ones.

    It has room for these alone, and reports the length of the whole sequence. Which columns a token sees is a matter of
    `places`, so that a CUDA graph of a step holds for every step.

    Args:
        replaced: The empty cache layer in whose place this one is put.
        device: Where the model runs.

    Attributes:
        places: The place in the sequence of each column, those to come included, shape (rows or 1, room); None before
            the first token.
    """

    def __init__(self, replaced: StaticLayer, device: torch.device) -> None:
        super().__init__(replaced.max_cache_len)
        self.cumulative_length = torch.zeros((), dtype=torch.long, device=device)
        self.places: Tensor | None = None
        self._columns = torch.zeros((), dtype=torch.long, device=device)
        self._seen = 0  # Tokens before the first that was stored.
        self._stores = False
        self._skips_later = False
        self._announced: int | None = None
        mark_static(self.cumulative_length, self._columns)

    def skip_tokens(self, count: int) -> None:
        """Count tokens of which the layer stores nothing."""
        self.cumulative_length.add_(count)
        self._skips_later = self._stores
        if not self._stores:
            self._seen += count
            self.places = torch.arange(self._seen, self.max_cache_len, device=self.cumulative_length.device)[None]

    def announce(self, count: int, chosen: Selection | None) -> None:
        """Say which tokens the next update stores.

        Args:
            count: Tokens of the forward.
            chosen: The stored ones; None for all.

        Raises:
            ModelError: rows store different numbers of tokens, or more than the first forward leaves some out.
        """
        if chosen is not None:
            if chosen.valid is not None:
                raise unfit(
                    "rows keep different numbers of tokens, and the static cache has one length for all of them"
                )
            if self._seen or self._stores:
                raise unfit("a prompt that comes in several forwards leaves tokens out of a later one")
            if chosen.static_places is None:
                later = torch.arange(count, self.max_cache_len, device=chosen.index.device)
                chosen.static_places = torch.cat([chosen.index, later.expand(len(chosen.index), -1)], dim=1)
            self.places = chosen.static_places
        elif self._skips_later:
            raise unfit("tokens are stored after others that were left out")
        elif self.places is None:
            self.places = torch.arange(self.max_cache_len, device=self.cumulative_length.device)[None]
        self._announced = count

    def mask(self, mask: Tensor | None, count: int, chosen: Selection | None) -> Tensor | None:
        """The attention mask of the announced tokens over the columns.

        Args:
            mask: The model's mask: None (causal) or of shape (batch, 1, tokens of the forward, whole length).
            count: Tokens of the forward.
            chosen: The announced ones; None for all.

        Returns:
            Shape (batch, 1, announced tokens, room), boolean or additive as the model's; None where the announced
            tokens are the first ones, and see each other as they come.
        """
        if self.places is None:
            raise used_without_policy()
        if mask is None and not self._stores and (self._seen == 0 or chosen is None) and count > 1:
            return None
        device = self.places.device
        if mask is None:
            now = torch.arange(count, device=device) + self.cumulative_length
            queries = now[None] if chosen is None else self.cumulative_length + chosen.index
            return (self.places[:, None, :] <= queries[:, :, None])[:, None]
        rows = mask
        if chosen is not None:
            index = chosen.index[:, None, :, None].expand(-1, -1, -1, mask.shape[-1])
            rows = mask.expand(len(chosen.index), -1, -1, -1).gather(2, index)
        if len(self.places) == 1:
            return rows.index_select(-1, self.places[0])
        columns = self.places[:, None, None, :].expand(-1, -1, rows.shape[2], -1)
        return rows.expand(len(self.places), -1, -1, -1).gather(3, columns)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the room for the tokens that are stored."""
        if self.places is None:
            raise used_without_policy()
        count, length, whole = self._columns, self.cumulative_length, self.max_cache_len
        self.max_cache_len = self.places.shape[1]
        super().lazy_initialization(key_states, value_states)
        self._columns, self.cumulative_length, self.max_cache_len = count, length, whole

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the keys and values of the announced tokens, shape (batch, heads, stored, width).

        Raises:
            ModelError: no update was announced, so the layer runs without the policy that filled this cache.
        """
        if self._announced is None:
            raise used_without_policy()
        whole, self.cumulative_length = self.cumulative_length, self._columns
        keys, values = super().update(key_states, value_states)
        self.cumulative_length = whole
        self.cumulative_length.add_(self._announced)
        self._announced, self._stores = None, True
        return keys, values

    def get_seq_length(self) -> Any:
        """Tokens of the sequence so far, stored or not."""
        return self.cumulative_length

    def reset(self) -> None:
        """Forget everything."""
        self.cumulative_length.zero_()
        self._columns.zero_()
        self.keys = self.values = self.places = self._announced = None
        self.is_initialized = self._stores = self._skips_later = False
        self._seen = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows for beam search."""
        if self.places is not None and len(self.places) > 1:
            self.places = self.places.index_select(0, beam_idx.to(self.places.device))
        if self.keys is not None and self.values is not None:
            self.keys = self.keys.index_select(0, beam_idx.to(self.keys.device))
            self.values = self.values.index_select(0, beam_idx.to(self.values.device))


def mark_static(*tensors: Tensor) -> None:
    """Tell torch.compile that tensors stay where they are, as transformers' static caches do."""
    if not torch.compiler.is_compiling():
        for tensor in tensors:
            torch._dynamo.mark_static_address(tensor)


def unfit(reason: str) -> ModelError:
    """The error for a static cache that cannot store what a policy leaves."""
    return ModelError(
        "a StaticCache cannot be used under this policy",
        [reason],
        "leave out `cache_implementation`, or give one prompt at a time, whole",
    )
