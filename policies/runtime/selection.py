"""A selection of tokens: gathering them from a tensor, and scattering them back."""

from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

import torch
from torch import Tensor

from ..scores.score import per_row


class AllOrNone(Enum):
    """All tokens of a forward, padding included, or none of them: nothing has to be gathered."""

    ALL = "all"
    NONE = "none"


@dataclass(frozen=True, eq=False)
class Selection:
    """Some of the tokens of a forward.

    Attributes:
        index: Their places in the input, ascending, shape (batch, kept); shorter rows are padded on the left.
        valid: Which entries of `index` are real, shape (batch, kept); None where all are.
        rows: The row of each entry, shape (batch, 1).
        narrowed: Layer arguments cut to these tokens, by the `id` of the whole argument, which is kept beside its cut.
        masks: The same for attention masks, by the `id` of the whole mask and that of the tokens which are its keys.
    """

    index: Tensor
    valid: Tensor | None
    rows: Tensor
    narrowed: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    masks: dict[tuple[int, int], tuple[Tensor | None, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, ranks: Tensor, counts: list[int], rows: Tensor) -> "Selection":
        """Select the highest-ranked tokens of each row; of equal ranks, the first in the sequence.

        Where all rows keep the same number, nothing here waits for the device.

        Args:
            ranks: Shape (batch, tokens).
            counts: How many tokens each row keeps.
            rows: The number of each row, shape (batch, 1).
        """
        longest, tokens = max(counts), ranks.shape[1]
        index = ranks.argsort(dim=1, descending=True, stable=True)[:, :longest]
        if longest == min(counts):
            return cls(index.sort(dim=1).values, None, rows)
        kept = torch.arange(longest, device=ranks.device) < per_row(counts, ranks.device)
        # Padding becomes negative: it sorts to the left, and modulo `tokens` it names a token that is not selected.
        index = torch.where(kept, index, index - tokens).sort(dim=1).values
        return cls(index % tokens, index >= 0, rows)

    @cached_property
    def only(self) -> Tensor | None:
        """The places in a batch of one, shape (kept,), where a copy along one axis is faster; else None."""
        return self.index[0] if len(self.index) == 1 else None

    def cut(self, tensor: Tensor, dim: int) -> Tensor:
        """Gather the selected tokens of a tensor; axis `dim` (negative) runs over tokens, the one before it over rows.

        Position ids of several kinds (Qwen-VL) have further axes in front of these two.
        """
        if self.only is not None:
            return tensor.index_select(dim, self.only)
        if tensor.dim() + dim > 1:
            front = tensor.movedim((dim - 1, dim), (0, 1))
            return self.cut(front, 1 - tensor.dim()).movedim((0, 1), (dim - 1, dim))
        # Indexing copies whole tokens; `take_along_dim` and `gather` look at every number and take ten times as long.
        return tensor.expand(len(self.index), *tensor.shape[1:])[self.rows, self.index]

    def cut_once(self, tensor: Tensor, dim: int) -> Tensor:
        """Gather as `cut` does, once for an argument that many layers are called with."""
        if id(tensor) not in self.narrowed:
            # The tensor is kept beside its cut, so that no other tensor takes its id.
            self.narrowed[id(tensor)] = (tensor, self.cut(tensor, dim))
        return self.narrowed[id(tensor)][1]

    def put_back(self, whole: Tensor, part: Tensor) -> Tensor:
        """Scatter `part` (batch, kept, width) into a copy of `whole` (batch, tokens, width)."""
        if self.only is not None:
            return whole.index_copy(-2, self.only, part.to(whole.dtype))
        if self.valid is not None:
            part = torch.where(self.valid[..., None], part, self.cut(whole, -2))
        return whole.index_put((self.rows, self.index), part.to(whole.dtype))
