"""Sets of image tokens: those of a forward, and how a layer divides them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..scores.score import per_row


@dataclass(eq=False)
class ImageTokens:
    """A set of image tokens: in each row, the highest-ranked ones; of equal ranks, the first in the sequence.

    Attributes:
        ranks: The rank of every candidate, shape (batch, tokens); what stands at other places does not count.
        counts: How many tokens of each row belong to the set; on the host, so that selecting waits for no device.
        candidates: The tokens that may belong to the set, shape (batch, tokens).
        known_mask: `mask`, once it was asked for.
    """

    ranks: Tensor
    counts: list[int]
    candidates: Tensor
    known_mask: Tensor | None = None

    @classmethod
    def of(cls, mask: Tensor, counts: list[int]) -> "ImageTokens":
        """Make a set from a mask, shape (batch, tokens), and the number of tokens in each row of it."""
        return cls(mask.float(), counts, mask, mask)

    @property
    def mask(self) -> Tensor:
        """Which tokens belong to the set, shape (batch, tokens)."""
        # Not a cached property, which torch.compile cannot trace.
        if self.known_mask is None:
            self.known_mask = self._first_ranked()
        return self.known_mask

    def _first_ranked(self) -> Tensor:
        order = self.ranks.where(self.candidates, float("-inf")).argsort(dim=1, descending=True, stable=True)
        first = torch.arange(order.shape[1], device=order.device) < per_row(self.counts, order.device)
        return torch.zeros_like(self.candidates).scatter(1, order, first.expand_as(order))


@dataclass(eq=False)
class ImageSplit:
    """The image tokens of one layer.

    Attributes:
        every: The image tokens that no earlier layer has removed for good.
        kept: The image tokens of `every` that the ratio keeps; all of them where the layer has none.
        known_rest: `rest`, once it was asked for.
    """

    every: ImageTokens
    kept: ImageTokens
    known_rest: ImageTokens | None = None

    @property
    def rest(self) -> ImageTokens:
        """The image tokens that the ratio leaves out."""
        if self.known_rest is None:
            counts = [whole - kept for whole, kept in zip(self.every.counts, self.kept.counts, strict=True)]
            self.known_rest = ImageTokens.of(self.every.mask & ~self.kept.mask, counts)
        return self.known_rest

    def of(self, groups: frozenset[str]) -> ImageTokens | None:
        """The image tokens of some groups; None where there are none in these groups."""
        if "rest" not in groups or self.kept is self.every:
            return self.kept if "image" in groups else None
        return self.every if "image" in groups else self.rest
