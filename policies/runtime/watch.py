"""Reading the attention that one query pays to every key, at no cost of eager attention."""

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
class Attention:
    """The query, keys and mask of one attention call, after positions and cache were applied."""

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scaling: float
    softcap: float | None

    def weights(self, row: Tensor | None) -> Tensor:
        """How much one query of each row attends to every key, mean of the heads.

        Args:
            row: Which query, shape (batch,); None for the last one.

        Returns:
            Shape (batch, keys), float32.
        """
        batch, heads, _, width = self.query.shape
        groups, keys = self.key.shape[1:3]
        query = self.query[:, :, -1] if row is None else self.query[torch.arange(batch, device=row.device), :, row]
        grouped = query.float().reshape(batch, groups, -1, width)
        logits = (grouped @ self.key.float().transpose(-1, -2)).reshape(batch, heads, keys) * self.scaling
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        hidden = self._hidden(row)
        if hidden is not None:
            logits = logits.masked_fill(hidden[:, None], float("-inf"))
        return logits.softmax(-1).mean(dim=1)

    def _hidden(self, row: Tensor | None) -> Tensor | None:
        """The keys that a query of each row does not see, shape (batch, keys); None where it sees all."""
        queries, keys = self.query.shape[2], self.key.shape[2]
        if self.mask is None:
            if row is None:
                return None
            places = torch.arange(keys, device=row.device)
            return places[None] > (row + keys - queries)[:, None]
        mask = self.mask[:, 0].expand(self.query.shape[0], -1, -1)
        mask = mask[:, -1] if row is None else mask[torch.arange(len(row), device=row.device), row]
        mask = mask[:, :keys]
        return ~mask if mask.dtype == torch.bool else mask <= torch.finfo(mask.dtype).min / 2


@contextmanager
def watched(module: nn.Module) -> Iterator[list[Attention]]:
    """Record what the attention of one module is called with in this thread."""
    notes: list[Attention] = []
    before = getattr(_thread, "watching", None)
    _thread.watching = (module, notes)
    try:
        yield notes
    finally:
        _thread.watching = before


def noting_interface(original: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    """A look-up of attention functions that hands out, where a thread watches, one that takes notes before."""

    def get_interface(name: str, default: Any) -> Any:
        attend = original(name, default)
        watching = getattr(_thread, "watching", None)
        if watching is None:
            return attend
        module, notes = watching

        def noting(
            owner: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, *args: Any, **kw: Any
        ) -> Any:
            if owner is module:
                scaling = kw.get("scaling")
                scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
                notes.append(Attention(query, key, mask, scale, kw.get("softcap")))
            return attend(owner, query, key, value, mask, *args, **kw)

        return noting

    return get_interface


# transformers looks its attention function up in one table at each call, so this works with any implementation. The
# table is of the process, so it is changed once and for all: threads that took turns in changing it would lose notes.
_table: Any = ALL_ATTENTION_FUNCTIONS
_table.get_interface = noting_interface(_table.get_interface)
