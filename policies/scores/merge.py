"""Merging image tokens that are removed for good into the ones that remain (`token_selection: {dropped: merge}`).

A layer that removes the tokens D of a row and keeps the tokens K gives each d in D to the k in K that it resembles
most, by the cosine of what enters the layer, and of equal ones to the first. Then, with s the number of tokens that a
token stands for, 1 at first:

    x_k <- (s_k x_k + sum of s_d x_d) / (s_k + sum of s_d),    s_k <- s_k + sum of s_d    over the d given to k

The images of a row are one set, as they are for a ratio: an image may keep no token at all, and nothing in the ids says
where one image ends and the next one begins. In a row that keeps no image token, the removed ones are discarded.
Merging of the removed is PruMerge's (arXiv:2403.15388) and VisionZip's (arXiv:2412.04467), the sizes are ToMe's
(arXiv:2210.09461).
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .diverse import to_steps
from .score import per_row, unit_vectors

if TYPE_CHECKING:
    from ..runtime.images import ImageTokens


def merge_removed(
    hidden: Tensor, before: "ImageTokens", kept: "ImageTokens", sizes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Average the image tokens that a layer removes into those that it keeps.

    Args:
        hidden: What enters the layer, shape (batch, tokens, width).
        before: The image tokens that earlier layers left.
        kept: The image tokens of `before` that this layer keeps; at least one row has some.
        sizes: How many tokens each token stands for, float32, shape (batch, tokens); None for one each.

    Returns:
        The hidden states with the kept tokens replaced, in the dtype of `hidden`; and the new sizes.
    """
    if sizes is None:
        sizes = torch.ones(hidden.shape[:2], device=hidden.device)
    longest = max(kept.counts)
    index = kept.mask.float().argsort(dim=1, descending=True, stable=True)[:, :longest]
    valid = torch.arange(longest, device=index.device) < per_row(kept.counts, index.device)
    wide = index[..., None].expand(-1, -1, hidden.shape[-1])
    unit = unit_vectors(hidden)
    cosines = to_steps(unit.gather(1, wide) @ unit.mT).masked_fill_(~valid[..., None], float("-inf"))
    # A product with a matrix adds in the same order at every run, which adding into places does not on a GPU.
    given = torch.zeros_like(cosines).scatter_(1, cosines.argmax(dim=1, keepdim=True), 1.0)
    given *= (sizes * (before.mask & ~kept.mask))[:, None] * valid[..., None]
    own = sizes.gather(1, index)
    total = own + given.sum(dim=2)
    mean = (own[..., None] * hidden.gather(1, wide).float() + given @ hidden.float()) / total[..., None]
    return _replaced(hidden, wide, mean.to(hidden.dtype), valid[..., None]), _replaced(sizes, index, total, valid)


def _replaced(whole: Tensor, index: Tensor, part: Tensor, valid: Tensor) -> Tensor:
    """A tensor with entries along axis 1 replaced, where they are valid; `index` has no place twice."""
    return whole.scatter(1, index, torch.where(valid, part, whole.gather(1, index)))
