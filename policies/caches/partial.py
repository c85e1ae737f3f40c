"""The key-value cache of a layer that processes fewer tokens than the sequence has.

transformers reads the length of the whole sequence, the positions and the size of the mask from the cache of one layer.
A layer that skips tokens therefore needs a cache that reports the full length and stores only the processed tokens.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from ..errors import ModelError
from ..runtime.selection import Selection

PER_ROW = ("keys", "values", "_scattered", "valid", "prompt")


class PartialLayer(DynamicLayer):
    """Counts every token of the sequence, and stores the keys and values of the processed ones.

    The stored columns are first tokens at scattered positions, then a tail of consecutive ones.

    Args:
        replaced: The cache layer in whose place this one is put; its keys and values are taken over.

    Attributes:
        seen: Tokens of the sequence so far.
        valid: Which stored columns hold a token of their row, shape (batch, stored); None where all do. Rows may store
            different numbers of tokens, and the shorter ones are padded.
        shared_places: The places of the prompt's stored tokens, shape (batch, stored), one tensor for all layers that
            store the same ones and every later token; None where that cannot be said.
        record_past: True where a sliding window drops nothing before the next `crop`, so that `crop` can go back.
        prompt: What an adapter in place of the attention keeps of the prompt, shape (batch, numbers); None before the
            prompt, and where the layer has no adapter.
    """

    supports_early_init = False

    def __init__(self, replaced: CacheLayerMixin) -> None:
        super().__init__()
        self.seen = int(replaced.get_seq_length())
        self.sliding_window: int | None = getattr(replaced, "sliding_window", None)
        self.is_sliding = bool(getattr(replaced, "is_sliding", False))
        self.valid: Tensor | None = None
        self._scattered: Tensor | None = None
        self.shared_places: Tensor | None = None
        self.prompt: Tensor | None = None
        self._tail_start = self.seen
        self._announced: tuple[int, Tensor | None, Tensor | None] | None = None
        self.record_past = bool(getattr(replaced, "record_past", False))
        self._dropped_before = 0  # A window may have dropped tokens that stand before this place.
        if replaced.keys is not None and replaced.values is not None and replaced.keys.numel():
            self.lazy_initialization(replaced.keys, replaced.values)
            self.keys, self.values = replaced.keys, replaced.values
            self._dropped_before = self._tail_start = self.seen - replaced.keys.shape[-2]

    def columns(self, batch: int, device: torch.device, ahead: int = 0) -> Tensor:
        """Absolute position of each stored column, and of so many tokens ahead, shape (batch, stored + ahead)."""
        tail = torch.arange(self._tail_start, self.seen + ahead, device=device).expand(batch, -1)
        return tail if self._scattered is None else torch.cat([self._scattered, tail], dim=1)

    def skip_tokens(self, count: int) -> None:
        """Count tokens of which the layer stores nothing."""
        self.shared_places = None
        if self.keys is not None:
            self._scattered = self.columns(self.keys.shape[0], self.keys.device)
        self.seen += count
        self._tail_start = self.seen

    def remember(self, prompt: Tensor) -> None:
        """Keep what an adapter needs of the prompt; see `prompt`."""
        self.prompt = prompt

    def announce(self, count: int, index: Tensor | None = None, valid: Tensor | None = None) -> None:
        """Say which tokens the next update stores.

        Args:
            count: Tokens of the sequence in this forward.
            index: The stored ones, shape (batch, stored), counted from the first token of the forward; None for all.
            valid: Which entries of `index` are real, shape (batch, stored); None where all are.
        """
        self._announced = (count, index, valid)

    def announce_step(self) -> bool:
        """Say that the next update stores the forward's only token, if that needs no other mask than the dense model's.

        Returns:
            False where some stored columns are not to be seen; nothing was announced then.
        """
        if self.valid is not None or self.is_sliding:
            return False
        self._announced = (1, None, None)
        return True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the keys and values of the announced tokens, shape (batch, heads, stored, width).

        Raises:
            ModelError: no update was announced, so the layer runs without the policy that filled this cache.
        """
        if self._announced is None:
            raise used_without_policy()
        count, index, valid = self._announced
        self._announced = None
        if index is not None:
            self._scatter(count, index, valid)
        elif self.valid is not None:
            self.valid = torch.nn.functional.pad(self.valid, (0, count), value=True)
        self.seen += count
        keys, values = super().update(key_states, value_states)
        if not self.record_past:
            self._drop_outside_window(keys, values)
        return keys, values

    def evict(self, gone: Tensor, counts: list[int]) -> None:
        """Remove some of the last tokens' keys and values; all tokens stay counted.

        Args:
            gone: Which of the last tokens, shape (batch, tokens).
            counts: How many of each row; on the host. A sliding window may have dropped some of them before.
        """
        if self.keys is None or self.values is None:
            return
        columns = self.columns(gone.shape[0], gone.device)
        places = columns - (self.seen - gone.shape[1])
        leaves = (places >= 0) & gone.gather(1, places.clamp_min(0))
        if self.is_sliding:
            counts = leaves.sum(dim=1).tolist()
        rows = torch.arange(len(counts), device=gone.device)[:, None]
        self.shared_places = None
        kept = Selection.of((~leaves).float(), [columns.shape[1] - count for count in counts], rows)
        valid = None if self.valid is None else kept.cut(self.valid, -1)
        self.valid = kept.valid if valid is None else valid if kept.valid is None else valid & kept.valid
        self._scattered, self._tail_start = kept.cut(columns, -1), self.seen
        self.keys, self.values = (
            kept.cut(part.transpose(1, 2), -3).transpose(1, 2) for part in (self.keys, self.values)
        )

    def activate_past_recording(self) -> None:
        """Keep what leaves a sliding window until the next `crop`."""
        self.record_past = True

    def _drop_outside_window(self, keys: Tensor, values: Tensor) -> None:
        """Drop the leading columns that lie outside the sliding window in every row."""
        if not self.is_sliding or self.sliding_window is None:
            return
        first = self.seen - self.sliding_window + 1
        old = self.columns(keys.shape[0], keys.device) < first
        if self.valid is not None:
            old |= ~self.valid
        count = int(old.all(dim=0).long().cumprod(dim=0).sum())
        if not count:
            return
        self._dropped_before = first
        scattered = 0 if self._scattered is None else self._scattered.shape[1]
        self._tail_start += max(count - scattered, 0)
        self._scattered = self._scattered[:, count:] if self._scattered is not None and count < scattered else None
        self.valid = None if self.valid is None else self.valid[:, count:]
        self.keys, self.values = keys[:, :, count:], values[:, :, count:]

    def _scatter(self, count: int, index: Tensor, valid: Tensor | None) -> None:
        """Take the positions of the stored tokens as scattered ones, and start an empty tail."""
        if not self.seen:
            self._scattered, self.valid, self._tail_start = index, valid, count
            self.shared_places = None if self.is_sliding else index
            return
        self.shared_places = None
        before = self.columns(index.shape[0], index.device)
        self._scattered = torch.cat([before, index + self.seen], dim=1)
        self._tail_start = self.seen + count
        if valid is not None or self.valid is not None:
            old = torch.ones_like(before, dtype=torch.bool) if self.valid is None else self.valid
            new = torch.ones_like(index, dtype=torch.bool) if valid is None else valid
            self.valid = torch.cat([old, new], dim=1)

    def get_seq_length(self) -> int:
        """Tokens of the sequence so far, stored or not."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the mask of a dense layer in this place."""
        window = self.sliding_window if self.is_sliding else None
        if window is None:
            return self.seen + query_length, 0
        return min(self.seen, window - 1) + query_length, max(self.seen - window + 1, 0)

    def reset(self) -> None:
        """Forget everything."""
        self.seen = self._tail_start = self._dropped_before = 0
        self.keys = self.values = self._scattered = self.valid = self.shared_places = self.prompt = None
        self.is_initialized = False

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens, given as a negative number, whether they were stored or not.

        Afterwards a sliding window that recorded its past drops what is outside of it.

        Raises:
            ModelError: more tokens than there are, or the sliding window has dropped tokens that would come back into
                it.
        """
        left, self.shared_places = self.seen + tokens_to_remove, None
        window = self.sliding_window if self.is_sliding else None
        if not 0 <= left <= self.seen:
            raise uncroppable(self.seen, tokens_to_remove, lost=False)
        if tokens_to_remove and window is not None and self._dropped_before > max(left - window + 1, 0):
            raise uncroppable(self.seen, tokens_to_remove, lost=True)
        if tokens_to_remove and self.keys is not None and self.values is not None:
            self._forget_from(left, self.keys, self.values)
        self.seen, self._tail_start = left, min(left, self._tail_start)
        self.prompt = self.prompt if left else None
        if self.keys is not None and self.values is not None:
            self._drop_outside_window(self.keys, self.values)

    def _forget_from(self, left: int, keys: Tensor, values: Tensor) -> None:
        """Remove the columns from a place on; a column that stays for another row becomes padding."""
        columns = self.columns(keys.shape[0], keys.device)
        kept = columns < left if self.valid is None else (columns < left) & self.valid
        places = kept.any(dim=0).nonzero()
        stored = int(places[-1]) + 1 if len(places) else 0
        self.keys, self.values, kept = keys[..., :stored, :], values[..., :stored, :], kept[:, :stored]
        self.valid = None if self.valid is None and bool(kept.all()) else kept
        if self._scattered is not None:
            # Padding has a place too, which must be one of the sequence.
            self._scattered = self._scattered[:, :stored].clamp_max(left - 1)

    def _map_rows(self, pick: Any) -> None:
        self.shared_places = None
        for name in PER_ROW:
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, pick(tensor))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows for beam search."""
        self._map_rows(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        self._map_rows(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only some rows."""
        self._map_rows(lambda tensor: tensor[indices.to(tensor.device)])


def uncroppable(seen: int, tokens_to_remove: int, lost: bool) -> ModelError:
    """The error for a cache that cannot remove tokens.

    Args:
        seen: Tokens in the cache.
        tokens_to_remove: What `crop` was called with.
        lost: True where a sliding window dropped tokens that would come back into it.
    """
    if lost:
        found = f"found {-tokens_to_remove} of {seen} tokens to remove, after a sliding window dropped earlier ones"
        hint = "call `cache.activate_past_recording()` before the forwards that are cut back, as `generate` does"
    else:
        found = f"found {tokens_to_remove} as what to remove from {seen} tokens, expected 0 to {-seen}"
        hint = "pass the number of tokens to remove as a negative number"
    return ModelError("a cache that was filled under a policy cannot be cut back", [found], hint)


def used_without_policy() -> ModelError:
    """The error for a cache layer without the keys and values that a dense layer needs."""
    return ModelError(
        "a cache that was filled under a policy is used without it",
        hint="generate with the same policy applied, or start from an empty cache",
    )
