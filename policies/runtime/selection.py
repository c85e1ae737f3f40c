"""A selection of tokens: gathering them from a tensor, and scattering them back."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..scores.score import per_row

Stacks: TypeAlias = list[tuple[Tensor, Tensor]]


class AllOrNone(Enum):
    """All tokens of a forward, padding included, or none of them: nothing has to be gathered."""

    ALL = "all"
    NONE = "none"


@dataclass(eq=False)
class Selection:
    """Some of the tokens of a forward.

    Attributes:
        index: Their places in the input, ascending, shape (batch, kept); shorter rows are padded on the left.
        valid: Which entries of `index` are real, shape (batch, kept); None where all are.
        rows: The row of each entry, shape (batch, 1).
        stacks: Layer arguments of several tensors with these tensors stacked, for all selections of one forward.
        narrowed: Layer arguments, and what was cut from them; layers are called with the same ones.
        masks: The same for attention masks, with the tokens that are the keys.
        static_places: The places of these tokens and all later ones in static caches, shape (batch, columns).
    """

    index: Tensor
    valid: Tensor | None
    rows: Tensor
    stacks: Stacks = field(default_factory=list)
    narrowed: list[tuple[Tensor, Any]] = field(default_factory=list)
    masks: list[tuple[Tensor | None, Any, Tensor]] = field(default_factory=list)
    static_places: Tensor | None = None

    @classmethod
    def of(cls, ranks: Tensor, counts: list[int], rows: Tensor, stacks: Stacks | None = None) -> "Selection":
        """Select the highest-ranked tokens of each row; of equal ranks, the first in the sequence.

        Where all rows keep the same number, nothing here waits for the device.

        Args:
            ranks: Shape (batch, tokens).
            counts: How many tokens each row keeps.
            rows: The number of each row, shape (batch, 1).
            stacks: See `Selection`.
        """
        stacks = [] if stacks is None else stacks
        longest, tokens = max(counts), ranks.shape[1]
        index = ranks.argsort(dim=1, descending=True, stable=True)[:, :longest]
        if longest == min(counts):
            return cls(index.sort(dim=1).values, None, rows, stacks)
        kept = torch.arange(longest, device=ranks.device) < per_row(counts, ranks.device)
        # Padding becomes negative: it sorts to the left, and modulo `tokens` it names a token that is not selected.
        index = torch.where(kept, index, index - tokens).sort(dim=1).values
        return cls(index % tokens, index >= 0, rows, stacks)

    @property
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

    def cut_once(self, value: Tensor | tuple[Tensor, ...], dim: int) -> Any:
        """Gather as `cut` does, once for an argument that many layers are called with.

        The tensors of a tuple are gathered together; they are stacked once for all selections.
        """
        key = value if isinstance(value, Tensor) else value[0]
        part = remembered(self.narrowed, key)
        if part is None:
            if not isinstance(value, Tensor):
                stack = remembered(self.stacks, key)
                if stack is None:
                    self.stacks.append((key, stack := torch.stack(tuple(value))))
                part = self.cut(stack, dim).unbind()
            else:
                part = self.cut(value, dim)
            self.narrowed.append((key, part))
        return part

    def put_back(self, whole: Tensor, part: Tensor) -> Tensor:
        """Scatter `part` (batch, kept, width) into a copy of `whole` (batch, tokens, width)."""
        if self.only is not None:
            return whole.index_copy(-2, self.only, part.to(whole.dtype))
        if self.valid is not None:
            part = torch.where(self.valid[..., None], part, self.cut(whole, -2))
        return whole.index_put((self.rows, self.index), part.to(whole.dtype))


@dataclass(eq=False)
class ShorterStates:
    """Hidden states that stay cut on their way from layer to layer; see `shorter`.

    Attributes:
        whole: The states of all tokens when they were cut, shape (batch, tokens, width).
        selection: The tokens that stayed.
        restored: The last shorter states that were put back, and the states of all tokens that this gave.
    """

    whole: Tensor
    selection: Selection
    restored: tuple[Tensor, Tensor] | None = None

    def put_back(self, hidden: Tensor) -> Tensor:
        """The states of all tokens; those that were cut off have the state they were cut with.

        Args:
            hidden: The shorter states, shape (batch, kept, width).
        """
        if self.restored is None or self.restored[0] is not hidden:
            self.restored = hidden, self.selection.put_back(self.whole, hidden)
        return self.restored[1]


def remembered(entries: Sequence[tuple[Any, ...]], key: Any, *equal: Any) -> Any:
    """The last item of the entry that begins with an object and with equal values after it; None where none does.

    A list of few entries, because torch.compile traces no dictionary whose keys are objects.
    """
    return next((entry[-1] for entry in entries if entry[0] is key and entry[1:-1] == equal), None)
