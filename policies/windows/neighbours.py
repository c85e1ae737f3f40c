"""Which tokens the image tokens of a forward see through a window, as places to gather.

A grid is cut into blocks of tokens. The tokens of a block share the keys of all their neighbours, so that these are
gathered once for the block and multiplied as matrices; a mask leaves each token its own neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import torch
from torch import Tensor

from ..runtime.selection import Selection
from ..runtime.tokens import ForwardTokens
from .grids import Grid

SIDE: Final = 4  # rows and columns of a block, at most


class Blocks(NamedTuple):
    """The blocks of a grid, or of all grids of a row.

    Attributes:
        queries: The tokens of each block, by their numbers in the grid, shape (blocks, queries); -1 for none.
        keys: The tokens that some of them see, shape (blocks, keys); -1 for none.
        seen: Which of these each one sees, shape (blocks, queries, keys).
    """

    queries: Tensor
    keys: Tensor
    seen: Tensor


def spans(length: int, window: int) -> tuple[Tensor, Tensor]:
    """Cut an axis of a grid into blocks: the coordinates of their tokens and of the keys of these.

    Returns:
        Shape (blocks, tokens), where coordinates beyond the axis stand for none; and shape (blocks, keys).
    """
    count = -(-length // SIDE)
    size = -(-length // count)
    starts = torch.arange(count)[:, None] * size
    reach = min(size + 2 * window, length)
    first = (starts - window).clamp(0, length - reach)
    return starts + torch.arange(size), first + torch.arange(reach)


@lru_cache(maxsize=256)
def blocks_of(grid: Grid, window: int) -> Blocks:
    """The blocks of a grid.

    Args:
        grid: The grid.
        window: How many rows and columns away a neighbour may be; the token itself is one.
    """
    (rows, key_rows), (columns, key_columns) = (spans(length, window) for length in grid)

    def crossed(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """The rows and columns of all tokens of all blocks, shape (blocks, tokens)."""
        shape = (len(one), len(other), one.shape[1], other.shape[1])
        row, column = one[:, None, :, None].expand(shape), other[None, :, None, :].expand(shape)
        return row.flatten(2).flatten(0, 1), column.flatten(2).flatten(0, 1)

    (row, column), (key_row, key_column) = crossed(rows, columns), crossed(key_rows, key_columns)
    real = (row < grid.rows) & (column < grid.columns)
    near_rows = (row[:, :, None] - key_row[:, None]).abs() <= window
    near_columns = (column[:, :, None] - key_column[:, None]).abs() <= window
    queries = torch.where(real, row * grid.columns + column, -1)
    return Blocks(queries, key_row * grid.columns + key_column, near_rows & near_columns & real[..., None])


@dataclass(frozen=True)
class Neighbours:
    """What the tokens of a forward see in a layer with a window.

    Attributes:
        images: The image tokens.
        others: All other tokens of the forward, padding included.
        queries: The image tokens of each block, by their column in `images`, shape (batch, blocks, queries).
        slots: Where each image token stands in `queries`, of which the last two axes are one, shape (batch, images).
        places: The places of the keys of each block, shape (batch, blocks, keys).
        seen: Which of these each token of the block sees, shape (batch, blocks, queries, keys).
        text: The places of the text that stands before the last image token, shape (batch, texts).
        text_seen: Which of it each token of a block sees, shape (batch, blocks, queries, texts).
    """

    images: Selection
    others: Selection
    queries: Tensor
    slots: Tensor
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
        blocks = Blocks(*(part.to(image.device) for part in blocks_by_row(grids, window, images.index.shape[1])))
        queries, real = blocks.queries.clamp_min(0), blocks.queries >= 0
        places = images.index.gather(1, blocks.keys.clamp_min(0).flatten(1)).view(blocks.keys.shape)
        asking = images.index.gather(1, queries.flatten(1)).view(queries.shape)
        slots = slots_of(blocks.queries.flatten(1), images.index.shape[1])
        last = torch.where(real, asking, -1).flatten(1).amax(dim=1, keepdim=True)
        before = tokens.masks["text"] & (torch.arange(image.shape[1], device=image.device) < last)
        # How much text there is decides shapes; this waits for the device, once a forward.
        texts = Selection.of(before.float(), before.sum(dim=1).tolist(), rows)
        text_seen = texts.index[:, None, None] < asking[..., None]
        text_seen = text_seen if texts.valid is None else text_seen & texts.valid[:, None, None]
        # A query that is padding sees the first key: its output is discarded, but it has to stay finite.
        seen = blocks.seen.clone()
        seen[..., 0] |= ~real
        return cls(images, others, queries, slots, places, seen, texts.index, text_seen)


def slots_of(queries: Tensor, count: int) -> Tensor:
    """The index of each token among the queries, shape (batch, count); 0 for a token that is no query.

    Args:
        queries: Indices of tokens, shape (batch, queries); -1 is padding.
        count: How many tokens there are.
    """
    slots = torch.zeros(len(queries), count + 1, dtype=torch.long, device=queries.device)
    numbers = torch.arange(queries.shape[1], device=queries.device).expand_as(queries)
    # Padding is scattered into an extra column, which is then dropped.
    return slots.scatter(1, torch.where(queries < 0, count, queries), numbers)[:, :count]


def blocks_by_row(grids: Sequence[tuple[Grid, ...]], window: int, longest: int) -> Blocks:
    """The blocks of each row of a batch, by columns of `Neighbours.images`; the first axis is that of the rows.

    Rows with fewer image tokens are padded on the left, as selections are.
    """
    found = [[blocks_of(grid, window) for grid in row] for row in grids]
    every = [blocks for row in found for blocks in row]
    most = max(sum(len(blocks.queries) for blocks in row) for row in found)
    sizes = max(blocks.queries.shape[1] for blocks in every), max(blocks.keys.shape[1] for blocks in every)
    queries, keys = (torch.full((len(grids), most, size), -1) for size in sizes)
    seen = torch.zeros(len(grids), most, *sizes, dtype=torch.bool)
    for row, members in enumerate(grids):
        start, block = longest - sum(grid.tokens for grid in members), 0
        for grid, one in zip(members, found[row], strict=True):
            these = slice(block, block + len(one.queries))
            queries[row, these, : one.queries.shape[1]] = torch.where(one.queries < 0, -1, one.queries + start)
            keys[row, these, : one.keys.shape[1]] = one.keys + start
            seen[row, these, : one.queries.shape[1], : one.keys.shape[1]] = one.seen
            start, block = start + grid.tokens, these.stop
    return Blocks(queries, keys, seen)
