"""Choosing the image tokens that a layer processes: where they are, their ranks, and tensors cut to them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# What configurations call the tokens that stand for visual input.
IMAGE_TOKEN_KEYS = ("image_token_id", "image_token_index", "video_token_id")


def image_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """The ids of the tokens that stand for image (or video) features; empty for a text model."""
    found = (getattr(model.config, key, None) for key in IMAGE_TOKEN_KEYS)
    return tuple(sorted({int(value) for value in found if value is not None}))


@dataclass(frozen=True)
class Selection:
    """The tokens of one forward that a layer processes.

    Attributes:
        index: Their places in the input, in order, shape (batch, kept); the shorter rows are filled up on the left.
        valid: Which entries are real; None where all are.
        rows: The row of each entry, shape (batch, 1).
    """

    index: Tensor
    valid: Tensor | None
    rows: Tensor

    @classmethod
    def of(cls, keep: Tensor, counts: list[int]) -> "Selection":
        """From a mask over the tokens, shape (batch, tokens), and the number of tokens that it keeps of each row."""
        longest, shortest = max(counts), min(counts)
        # A stable sort of 0s and 1s puts what is kept last and leaves the order alone.
        index = keep.int().argsort(dim=1, stable=True)[:, keep.shape[1] - longest :]
        rows = torch.arange(len(counts), device=index.device)[:, None]
        return cls(index, None if longest == shortest else keep.gather(1, index), rows)

    def cut(self, tensor: Tensor, dim: int) -> Tensor:
        """The chosen tokens of a tensor whose axis `dim` (negative) runs over tokens and the one before over rows."""
        rows = tensor.movedim((dim - 1, dim), (0, 1))
        # Indexing copies whole tokens, where `take_along_dim` and `gather` look at every number: ten times as fast.
        chosen = rows.expand(self.index.shape[0], *rows.shape[1:])[self.rows, self.index]
        return chosen.movedim((0, 1), (dim - 1, dim))

    def put_back(self, whole: Tensor, part: Tensor) -> Tensor:
        """`whole` (batch, tokens, width) with the chosen tokens replaced by `part` (batch, kept, width)."""
        if self.valid is not None:
            part = torch.where(self.valid[..., None], part, self.cut(whole, -2))
        return whole.index_put((self.rows, self.index), part.to(whole.dtype))


@dataclass
class Prompt:
    """What one forward of the model is about.

    Attributes:
        image: Which tokens stand for image features, shape (batch, tokens).
        real: Which tokens are no padding, shape (batch, tokens).
        last: Place of each row's last prompt token, shape (batch,).
        images: How many image tokens each row has; on the host, so that choosing waits for no device.
        others: How many other real tokens each row has.
        scores: Attention that each token got when it was last processed, shape (batch, tokens); None before that.
    """

    image: Tensor
    real: Tensor
    last: Tensor
    images: list[int]
    others: list[int]
    scores: Tensor | None = None

    @classmethod
    def read(cls, input_ids: Tensor, mask: Tensor | None, ids: tuple[int, ...], ends: Tensor | None) -> "Prompt | None":
        """From the input of the model; None where there is no image token.

        Args:
            input_ids: Shape (batch, tokens).
            mask: The attention mask, shape (batch, earlier + tokens), where the input has one.
            ids: Tokens that stand for image features.
            ends: One past each row's last prompt token, shape (batch,); None where the input is all prompt.
        """
        tokens = input_ids.shape[1]
        image = torch.isin(input_ids, torch.tensor(ids, device=input_ids.device))
        # One token is a decode step; a model may well generate the id of an image token, without an image.
        if tokens == 1 or not image.any():
            return None
        real = torch.ones_like(image) if mask is None or mask.dim() != 2 else mask[:, -tokens:].to(image.device).bool()
        places = torch.arange(tokens, device=image.device)
        stop = torch.full_like(places[:1], tokens) if ends is None else ends.to(image.device)
        in_prompt = real & (places[None] < stop[:, None])
        image = image & in_prompt
        images, others = torch.stack([image.sum(dim=1), (real & ~image).sum(dim=1)]).tolist()
        return cls(image, real, (in_prompt * places).amax(dim=1), images, others)

    def choose(self, hidden: Tensor, ratio: float, score: str) -> Selection:
        """The tokens that a layer with a token ratio processes: all text, and trunc(ratio * n) of n image tokens.

        Args:
            hidden: What enters the layer, shape (batch, tokens, width).
            ratio: Share of the image tokens.
            score: `attention`, `norm` or `uniform`; see `policy.TokenSelection`.
        """
        # The small term keeps a ratio such as 0.29 of 100 at 29, where the product in binary is a hair less.
        wanted = [int(count * ratio + 1e-9) for count in self.images]
        limit = torch.tensor(wanted, device=hidden.device)[:, None]
        if score == "norm":
            rank = ranks(hidden.float().norm(dim=-1), self.image)
        elif score == "uniform" or self.scores is None:
            rank = evenly(self.image, limit)
        else:
            rank = ranks(self.scores, self.image)
        keep = (self.image & (rank < limit)) | (self.real & ~self.image)
        return Selection.of(keep, [other + kept for other, kept in zip(self.others, wanted, strict=True)])

    def look(self, seen: "Attention", selection: Selection | None) -> None:
        """Take the scores from a layer's attention; tokens that it left out keep the score they had."""
        if selection is None:
            self.scores = seen.weights(self.last)[:, -self.image.shape[1] :]
            return
        index = selection.index
        valid = torch.ones_like(index, dtype=torch.bool) if selection.valid is None else selection.valid
        # What follows the last prompt token is on its right; what fills up the row is on its left, whatever its index.
        row = index.shape[1] - 1 - (valid & (index > self.last[:, None])).sum(dim=1)
        fresh = seen.weights(row.clamp_min(0))[:, -index.shape[1] :]
        old = torch.zeros_like(self.image, dtype=fresh.dtype) if self.scores is None else self.scores
        self.scores = old.scatter(1, index, torch.where(valid, fresh, old.gather(1, index)))


def ranks(scores: Tensor, among: Tensor) -> Tensor:
    """Rank of each token by falling score among those in the mask, ties in order; shape (batch, tokens)."""
    order = scores.masked_fill(~among, float("-inf")).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1)


def evenly(among: Tensor, wanted: Tensor) -> Tensor:
    """Rank 0 for `wanted` (batch, 1) tokens of the mask at even distances, one that is never chosen for the rest."""
    place = among.cumsum(dim=1)
    share = wanted.double() / place[:, -1:].clamp_min(1)
    # The i-th of n is chosen where floor(i * k / n) takes a step; the small term as above.
    step = (place * share + 1e-9).floor() > ((place - 1) * share + 1e-9).floor()
    return torch.where(step, 0, among.shape[1])


@dataclass
class Attention:
    """The query, keys and mask of one attention call, after positions and cache were applied."""

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scaling: float
    softcap: float | None

    def weights(self, row: Tensor) -> Tensor:
        """How much one query of each row attends to every key, mean of the heads.

        Args:
            row: Which query, shape (batch,).

        Returns:
            Shape (batch, keys), float32.
        """
        batch, heads, queries, width = self.query.shape
        keys = self.key.shape[2]
        query = self.query[torch.arange(batch, device=row.device), :, row].float()
        grouped = query.view(batch, self.key.shape[1], -1, width)
        logits = torch.einsum("bgqd,bgkd->bgqk", grouped, self.key.float()).reshape(batch, heads, keys) * self.scaling
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits.masked_fill(~self._visible(row, queries, keys)[:, None], float("-inf")).softmax(-1).mean(dim=1)

    def _visible(self, row: Tensor, queries: int, keys: int) -> Tensor:
        if self.mask is None:
            places = torch.arange(keys, device=row.device)
            return places[None] <= (row + keys - queries)[:, None]
        mask = self.mask[:, 0].expand(row.shape[0], -1, -1)[torch.arange(row.shape[0], device=row.device), row, :keys]
        return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


@contextmanager
def watched(module: nn.Module) -> Iterator[list[Attention]]:
    """Record what the attention of one module is called with.

    transformers looks its attention function up in one table at each call; for the time of this context the table
    hands out a function that takes notes and then calls the real one. So it works with any implementation, at no cost.
    """
    notes: list[Attention] = []
    table: Any = ALL_ATTENTION_FUNCTIONS
    original = table.get_interface

    def get_interface(name: str, default: Any) -> Any:
        attend = original(name, default)

        def noting(
            owner: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, *args: Any, **kw: Any
        ) -> Any:
            if owner is module:
                scaling = kw.get("scaling")
                scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
                notes.append(Attention(query, key, mask, scale, kw.get("softcap")))
            return attend(owner, query, key, value, mask, *args, **kw)

        return noting

    table.get_interface = get_interface
    try:
        yield notes
    finally:
        del table.get_interface
