"""Which tokens the image tokens of a forward see through a window, as places to gather."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..runtime.selection import Selection
from ..runtime.tokens import ForwardTokens
from .grids import Grid


@lru_cache(maxsize=256)
def in_grid(grid: Grid, window: int) -> Tensor:
    """The neighbours of each token of a grid, by their numbers in it, shape (tokens, most neighbours); -1 for none.

    Args:
        grid: The grid.
        window: How many rows and columns away a neighbour may be; the token itself is one.
    """
    down = torch.arange(-min(window, grid.rows - 1), min(window, grid.rows - 1) + 1)
    right = torch.arange(-min(window, grid.columns - 1), min(window, grid.columns - 1) + 1)
    row = torch.arange(grid.rows).view(-1, 1, 1, 1) + down.view(1, 1, -1, 1)
    column = torch.arange(grid.columns).view(1, -1, 1, 1) + right.view(1, 1, 1, -1)
    inside = (row >= 0) & (row < grid.rows) & (column >= 0) & (column < grid.columns)
    numbers = torch.where(inside, row * grid.columns + column, -1).flatten(0, 1).flatten(1)
    # Real neighbours first: a token in the middle fills its row of the table, one at an edge leaves the end empty.
    numbers = numbers.gather(1, (numbers < 0).long().argsort(dim=1, stable=True))
    return numbers[:, : most_neighbours(grid, window)].contiguous()


def most_neighbours(grid: Grid, window: int) -> int:
    """The neighbours of a token in the middle of a grid, itself included."""
    return min(2 * window + 1, grid.rows) * min(2 * window + 1, grid.columns)


@dataclass(frozen=True)
class Neighbours:
    """What the tokens of a forward see in a layer with a window.

    Attributes:
        images: The image tokens.
        others: All other tokens of the forward, padding included.
        places: The places of each image token's neighbours, shape (batch, images, neighbours).
        seen: Which entries of `places` are real, of the same shape.
        text: The places of the text that stands before the last image token, shape (batch, texts).
        text_seen: Which of it each image token sees, shape (batch, images, texts).
    """

    images: Selection
    others: Selection
    places: Tensor
    seen: Tensor
    text: Tensor
    text_seen: Tensor

    @classmethod
    def of(cls, tokens: ForwardTokens, grids: Sequence[tuple[Grid, ...]], window: int) -> "Neighbours":
        """Find what the tokens of a forward see.

        Args:
            tokens: The tokens.
            grids: The grids of each row.
            window: How many rows and columns away a neighbour may be.
        """
        image, counts, rows = tokens.masks["image"], tokens.counts["image"], tokens.rows
        images = Selection.of(image.float(), counts, rows)
        others = Selection.of((~image).float(), [image.shape[1] - count for count in counts], rows)
        numbers = numbers_by_row(grids, window, images.index.shape[1]).to(image.device)
        places = images.index.gather(1, numbers.clamp_min(0).flatten(1)).view(numbers.shape)
        real = torch.ones_like(images.index, dtype=torch.bool) if images.valid is None else images.valid
        last = torch.where(real, images.index, -1).amax(dim=1, keepdim=True)
        before = tokens.masks["text"] & (torch.arange(image.shape[1], device=image.device) < last)
        # How much text there is decides shapes; this waits for the device, once a forward.
        texts = Selection.of(before.float(), before.sum(dim=1).tolist(), rows)
        text_seen = texts.index[:, None] < images.index[:, :, None]
        text_seen = text_seen if texts.valid is None else text_seen & texts.valid[:, None]
        return cls(images, others, places, numbers >= 0, texts.index, text_seen)


def numbers_by_row(grids: Sequence[tuple[Grid, ...]], window: int, longest: int) -> Tensor:
    """The neighbours of each row's image tokens, by their column in `Neighbours.images`; -1 for none.

    Shorter rows are padded on the left, as selections are, by tokens that see themselves.

    Returns:
        Shape (batch, longest, most neighbours).
    """
    most = max((most_neighbours(grid, window) for row in grids for grid in row), default=1)
    result = torch.full((len(grids), longest, most), -1)
    result[:, :, 0] = torch.arange(longest)
    for row, members in enumerate(grids):
        start = longest - sum(grid.tokens for grid in members)
        for grid in members:
            found = in_grid(grid, window)
            part = result[row, start : start + grid.tokens]
            part.fill_(-1)
            part[:, : found.shape[1]] = torch.where(found < 0, -1, found + start)
            start += grid.tokens
    return result
