"""A share of the heads of a layer's attention."""

import torch
from torch import Tensor, nn

from ..choice import Ranking
from .heads import find_heads, head_norms, narrow_attention
from .sublayers import Sublayers
from .widths import NarrowSublayer


class NarrowHeads(NarrowSublayer):
    """A share of the heads of a layer's attention.

    Args:
        sublayers: The sublayers of the layer, whose attention can be narrow; see `why_not_fewer_heads`.
        ratio: The share: the trunc(ratio * groups) best groups run.
        ranking: How groups are ranked; see `choice.WidthSelection`.

    Attributes:
        kept: The attention over these groups. Its output has the bias of the output projection.
        others: The attention over the other groups.
        stored: The heads of keys that `kept` stores.

    Raises:
        PolicyError: see `NarrowSublayer`.
    """

    noun = "heads"

    def __init__(self, sublayers: Sublayers, ratio: float, ranking: Ranking) -> None:
        self._sublayers = sublayers
        found = find_heads(sublayers.attention)
        super().__init__([list(found.layers)], ratio, ranking)
        self._heads, count = found, int(self._ratio * found.groups)
        self.kept = narrow_attention(sublayers.attention, found, 0, count)
        self.others = narrow_attention(sublayers.attention, found, count, found.groups)
        self.stored = 1 if found.shares_keys else count
        if getattr(sublayers.attention, "new_decoder_architecture", False):
            # Falcon stores a copy for each query head.
            self.stored = count * found.heads

    @property
    def parent(self) -> nn.Module:
        """See `NarrowSublayer`."""
        return self._sublayers.attention

    def best(self) -> list[Tensor]:
        """See `NarrowSublayer`; the one group of layers has all groups of heads."""
        count = int(self._ratio * self._heads.groups)
        if self.ranking == "first":
            return [torch.arange(count)]
        scores = head_norms(self._heads) if self.scores is None else self.scores
        return [scores.argsort(descending=True, stable=True)[:count].sort().values]

    def check_current(self) -> None:
        """See `NarrowSublayer`; both parts follow the attention into training and evaluation.

        Raises:
            ModelError: see `NarrowSublayer`.
        """
        super().check_current()
        for part in (self.kept, self.others):
            if part.training is not self.parent.training:
                part.training = self.parent.training
