"""Recording attention calls, to read the attention of one query without running eager attention."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_thread = threading.local()


@dataclass
class AttentionCall:
    """The inputs of one attention call, with positions applied and cached keys included.

    Attributes:
        query: Shape (batch, heads, queries, width).
        key: Shape (batch, key heads, keys, width).
        mask: Boolean or additive, shape (batch or 1, 1, queries, keys); None where the attention is causal.
        scaling: What the logits are multiplied by.
        softcap: Bound of the logits (Gemma 2); None where there is none.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scaling: float
    softcap: float | None

    def weights(self, query_index: Tensor | None) -> Tensor:
        """The attention weights of one query of each row over all keys, mean over the heads.

        Args:
            query_index: Which query, shape (batch,); None for the last one.

        Returns:
            Shape (batch, keys), float32.
        """
        batch, heads, _, width = self.query.shape
        groups, keys = self.key.shape[1:3]
        if query_index is None:
            query = self.query[:, :, -1]
        else:
            query = self.query[torch.arange(batch, device=query_index.device), :, query_index]
        grouped = query.float().reshape(batch, groups, -1, width)
        logits = (grouped @ self.key.float().transpose(-1, -2)).reshape(batch, heads, keys) * self.scaling
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        masked = self._masked_keys(query_index)
        if masked is not None:
            logits = logits.masked_fill(masked[:, None], float("-inf"))
        return logits.softmax(-1).mean(dim=1)

    def _masked_keys(self, query_index: Tensor | None) -> Tensor | None:
        """The keys that one query of each row does not see, shape (batch, keys); None where it sees all of them."""
        queries, keys = self.query.shape[2], self.key.shape[2]
        if self.mask is None:
            if query_index is None:
                return None
            places = torch.arange(keys, device=query_index.device)
            return places[None] > (query_index + keys - queries)[:, None]
        mask = self.mask[:, 0].expand(self.query.shape[0], -1, -1)
        if query_index is None:
            mask = mask[:, -1]
        else:
            mask = mask[torch.arange(len(query_index), device=query_index.device), query_index]
        mask = mask[:, :keys]
        return ~mask if mask.dtype == torch.bool else mask <= torch.finfo(mask.dtype).min / 2


@contextmanager
def recorded_attention(module: nn.Module) -> Iterator[list[AttentionCall]]:
    """Record the attention calls of one module in this thread."""
    calls: list[AttentionCall] = []
    before = getattr(_thread, "recording", None)
    _thread.recording = (module, calls)
    try:
        yield calls
    finally:
        _thread.recording = before


def recording_interface(original: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    """Wrap the look-up of attention functions: in a thread that records, it returns a function that records its inputs.

    Args:
        original: transformers' look-up, by name and default.
    """

    def get_interface(name: str, default: Any) -> Any:
        attend = original(name, default)
        recording = getattr(_thread, "recording", None)
        if recording is None:
            return attend
        module, calls = recording

        def attend_and_record(
            owner: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, *args: Any, **kw: Any
        ) -> Any:
            if owner is module:
                scaling = kw.get("scaling")
                scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
                calls.append(AttentionCall(query, key, mask, scale, kw.get("softcap")))
            return attend(owner, query, key, value, mask, *args, **kw)

        return attend_and_record

    return get_interface


# transformers looks up its attention function in one table at each call, so this works with any implementation. The
# table belongs to the process and is changed once: threads that changed it and changed it back would lose records.
_table: Any = ALL_ATTENTION_FUNCTIONS
_table.get_interface = recording_interface(_table.get_interface)
