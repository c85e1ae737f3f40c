"""The tokens of one forward: which are of an image, the prompt, an answer, and which of them a layer processes."""

from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..choice import LayerChoice
from .watch import Attention

# What configurations call the tokens that stand for visual input.
IMAGE_TOKEN_KEYS = ("image_token_id", "image_token_index", "video_token_id")

# Every token is of one class: it stands for image features, is another of the prompt's, or follows the prompt.
CLASSES: Final = ("image", "text", "answer")
EVERYONE: Final = frozenset(CLASSES)
PHASES = {"both": EVERYONE, "prefill": frozenset(("image", "text")), "decode": frozenset(("answer",))}
TOKENS = {"all": EVERYONE, "image": frozenset(("image",)), "text": frozenset(("text", "answer"))}

Classes: TypeAlias = frozenset[str]


def scope(choice: LayerChoice) -> Classes:
    """The classes of tokens that a choice concerns."""
    return PHASES[choice.phase] & TOKENS[choice.tokens]


def image_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """The ids of the tokens that stand for image (or video) features; empty for a text model."""
    # Phi-4-multimodal has it in the part of its vision tower.
    parts = (model.config, getattr(model.config, "vision_config", None))
    found = (getattr(part, key, None) for part in parts for key in IMAGE_TOKEN_KEYS)
    return tuple(sorted({int(value) for value in found if value is not None}))


class Whole(Enum):
    """All tokens of a forward, padding too, or none of them: nothing to gather."""

    ALL = "all"
    NONE = "none"


@dataclass(frozen=True, eq=False)
class Selection:
    """Some of the tokens of a forward.

    Attributes:
        index: Their places in the input, in order, shape (batch, kept); the shorter rows are filled up on the left.
        valid: Which entries are real; None where all are.
        rows: The row of each entry, shape (batch, 1).
        narrowed: Arguments of layers that were cut to these tokens, each behind the whole one, by the id of that.
        masks: The same of attention masks.
    """

    index: Tensor
    valid: Tensor | None
    rows: Tensor
    narrowed: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    masks: dict[int, tuple[Tensor | None, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, ranks: Tensor, counts: list[int], rows: Tensor) -> "Selection":
        """The tokens with the highest ranks (batch, tokens), the first of equals: of each row as many as `counts` says.

        Where all rows keep as many, nothing here waits for the device.
        """
        longest, tokens = max(counts), ranks.shape[1]
        index = ranks.argsort(dim=1, descending=True, stable=True)[:, :longest]
        if longest == min(counts):
            return cls(index.sort(dim=1).values, None, rows)
        kept = torch.arange(longest, device=ranks.device) < column(counts, ranks.device)
        # Negative places sort to the left, and still say where the token is: nothing else is written there.
        index = torch.where(kept, index, index - tokens).sort(dim=1).values
        return cls(index % tokens, index >= 0, rows)

    @cached_property
    def only(self) -> Tensor | None:
        """The places in the one row of a batch of one, shape (kept,): a copy along one axis is faster; else None."""
        return self.index[0] if len(self.index) == 1 else None

    def cut(self, tensor: Tensor, dim: int) -> Tensor:
        """The chosen tokens of a tensor whose axis `dim` (negative) runs over tokens and the one before over rows."""
        if self.only is not None:
            return tensor.index_select(dim, self.only)
        if tensor.dim() + dim > 1:
            # Positions of several kinds: those come first.
            ahead = tensor.movedim((dim - 1, dim), (0, 1))
            return self.cut(ahead, 1 - tensor.dim()).movedim((0, 1), (dim - 1, dim))
        # Indexing copies whole tokens, where `take_along_dim` and `gather` look at every number: ten times as fast.
        return tensor.expand(len(self.index), *tensor.shape[1:])[self.rows, self.index]

    def cut_once(self, tensor: Tensor, dim: int) -> Tensor:
        """As `cut`, for an argument that many layers get: cut for the first, and remembered."""
        if id(tensor) not in self.narrowed:
            # The tensor is kept with its cut, so that no other one can take its id.
            self.narrowed[id(tensor)] = (tensor, self.cut(tensor, dim))
        return self.narrowed[id(tensor)][1]

    def put_back(self, whole: Tensor, part: Tensor) -> Tensor:
        """`whole` (batch, tokens, width) with the chosen tokens replaced by `part` (batch, kept, width)."""
        if self.only is not None:
            return whole.index_copy(-2, self.only, part.to(whole.dtype))
        if self.valid is not None:
            part = torch.where(self.valid[..., None], part, self.cut(whole, -2))
        return whole.index_put((self.rows, self.index), part.to(whole.dtype))


@dataclass(eq=False)
class Images:
    """A set of image tokens.

    Attributes:
        ranks: Of each row, the tokens with the highest are meant, the first of equals; shape (batch, tokens).
        counts: How many each row has; on the host, so that choosing waits for no device.
    """

    ranks: Tensor
    counts: list[int]

    @classmethod
    def of(cls, mask: Tensor, counts: list[int]) -> "Images":
        """From a mask, shape (batch, tokens), and the number of tokens in each row of it."""
        images = cls(mask.float(), counts)
        images.mask = mask
        return images

    @cached_property
    def mask(self) -> Tensor:
        """Which tokens they are, shape (batch, tokens)."""
        order = self.ranks.argsort(dim=1, descending=True, stable=True)
        first = torch.arange(order.shape[1], device=order.device) < column(self.counts, order.device)
        return torch.zeros_like(first).scatter(1, order, first)

    @cached_property
    def others(self) -> Tensor:
        """All other tokens, shape (batch, tokens)."""
        return ~self.mask


@dataclass(eq=False)
class Prompt:
    """What one forward of the model is about.

    Attributes:
        masks: By class, which tokens are of it, shape (batch, tokens); padding is of none.
        counts: By class, how many tokens each row has; on the host.
        images: All image tokens.
        rows: The number of each row, shape (batch, 1).
        last: Place of each row's last prompt token, shape (batch,); None where it is the last token of every row.
        left: The image tokens that no layer has removed for good.
        processed: Those that the running layer processes.
        scores: Attention that each token got when it was last processed, shape (batch, tokens).
        ranked: Of each row, whether any of its image tokens has got a score.
        unions: Tokens of one class or another, by the classes.
        selections: Those already made, by their classes and image tokens.
        even: The image tokens at even distances, by their ratio.
    """

    masks: dict[str, Tensor]
    counts: dict[str, list[int]]
    images: Images
    rows: Tensor
    last: Tensor | None
    left: Images
    processed: Images
    scores: Tensor
    ranked: list[bool]
    unions: dict[Classes, Tensor] = field(default_factory=dict)
    selections: dict[tuple[Classes, Images], Selection] = field(default_factory=dict)
    even: dict[tuple[float, Images], Images] = field(default_factory=dict)

    @classmethod
    def read(cls, image: Tensor, mask: Any, ends: Tensor | int | None) -> "Prompt | None":
        """From the input of the model; None where every token is of one class.

        Args:
            image: Which tokens stand for image features, shape (batch, tokens).
            mask: The attention mask, where the input has one; of shape (batch, earlier + tokens) it tells padding.
            ends: One past each row's last prompt token, shape (batch,), or of all rows; None where all is prompt.
        """
        tokens = image.shape[1]
        # Masks of other shapes are for static caches, where padding is processed like text.
        padded = isinstance(mask, Tensor) and mask.dim() == 2
        real = mask[:, -tokens:].to(image.device).bool() if padded else torch.ones_like(image)
        places = torch.arange(tokens, device=image.device)
        stop = torch.as_tensor(tokens if ends is None else ends, device=image.device).reshape(-1, 1)
        in_prompt = real & (places[None] < stop)
        masks = {"image": image & in_prompt, "text": in_prompt & ~image, "answer": real & ~in_prompt}
        last = (in_prompt * places).amax(dim=1)
        # All that is needed on the host, in one go.
        *numbers, ends_at = torch.stack([*(masks[name].sum(dim=1) for name in CLASSES), last]).tolist()
        counts = dict(zip(CLASSES, numbers, strict=True))
        if not any(counts["image"]) and not any(counts["answer"]):
            return None
        images = Images.of(masks["image"], counts["image"])
        nothing = torch.zeros(image.shape, device=image.device)
        rows = torch.arange(len(ends_at), device=image.device)[:, None]
        at_end = all(place == tokens - 1 for place in ends_at)
        return cls(
            masks, counts, images, rows, None if at_end else last, images, images, nothing, [False] * len(ends_at)
        )

    def choose(self, hidden: Tensor, ratio: float, score: str) -> Images:
        """The trunc(ratio * n) of n image tokens that a layer processes, from those that are left.

        Args:
            hidden: What enters the layer, shape (batch, tokens, width).
            ratio: Share of the row's image tokens.
            score: `attention`, `norm` or `uniform`; see `policy.TokenSelection`.
        """
        # The small term keeps a ratio such as 0.29 of 100 at 29, where the product in binary is a hair less.
        left = self.left.counts
        wanted = [min(int(n * ratio + 1e-9), rest) for n, rest in zip(self.images.counts, left, strict=True)]
        if wanted == left:
            return self.left
        if score == "norm":
            ranks = hidden.float().norm(dim=-1)
        elif score == "uniform" or not any(self.ranked):
            return self._evenly(ratio, wanted)
        elif all(ranked or not n for ranked, n in zip(self.ranked, left, strict=True)):
            ranks = self.scores
        else:
            ranked = column(self.ranked, hidden.device)
            ranks = torch.where(ranked, self.scores, self._evenly(ratio, wanted).ranks)
        return Images(ranks.masked_fill(self.left.others, float("-inf")), wanted)

    def _evenly(self, ratio: float, wanted: list[int]) -> Images:
        key = (ratio, self.left)
        if key not in self.even:
            limit = column(wanted, self.rows.device)
            self.even[key] = Images.of(evenly(self.left.mask, limit), wanted)
        return self.even[key]

    def select(self, classes: Classes, images: Images) -> Selection | Whole:
        """The tokens of some classes, with these image tokens alone where images are among them."""
        present = frozenset(name for name in classes if any(self.counts[name]))
        if "image" in present and not any(images.counts):
            present -= {"image"}
        if not present:
            return Whole.NONE
        if images is self.images and all(name in present for name in CLASSES if any(self.counts[name])):
            return Whole.ALL
        # Where no image token is processed, it does not matter which.
        key = (present, images if "image" in present else self.images)
        if key not in self.selections:
            lists = [images.counts if name == "image" else self.counts[name] for name in present]
            ranks, rest = images.ranks, present - {"image"}
            if "image" not in present:
                ranks = self.union(rest).float()
            elif rest:
                ranks = ranks.masked_fill(self.union(rest), float("inf"))
            self.selections[key] = Selection.of(ranks, [sum(row) for row in zip(*lists, strict=True)], self.rows)
        return self.selections[key]

    def union(self, classes: Classes) -> Tensor:
        """Which tokens are of one of some classes, shape (batch, tokens)."""
        if classes not in self.unions:
            self.unions[classes] = torch.stack([self.masks[name] for name in classes]).any(dim=0)
        return self.unions[classes]

    def of_classes(self, classes: Classes) -> bool | Tensor:
        """Which tokens are of some classes, shape (batch, tokens); True or False where that holds for all."""
        present = [name for name in CLASSES if any(self.counts[name])]
        inside = frozenset(name for name in present if name in classes)
        return self.union(inside) if 0 < len(inside) < len(present) else bool(inside)

    @torch.no_grad()
    def look(self, seen: Attention, tokens: Selection | Whole) -> None:
        """Take the scores from a layer's attention; tokens that it left out keep the score they had."""
        self.ranked = [was or n > 0 for was, n in zip(self.ranked, self.processed.counts, strict=True)]
        if not isinstance(tokens, Selection):
            self.scores = seen.weights(self.last)[:, -self.scores.shape[1] :]
            return
        index, valid, row = tokens.index, tokens.valid, None
        if self.last is not None:
            # What follows the last prompt token is on its right; what fills up the row is on its left.
            behind = index > self.last[:, None]
            behind = behind if valid is None else behind & valid
            row = (index.shape[1] - 1 - behind.sum(dim=1)).clamp_min(0)
        fresh = seen.weights(row)[:, -index.shape[1] :]
        if valid is not None:
            fresh = torch.where(valid, fresh, self.scores.gather(1, index))
        self.scores = self.scores.scatter(1, index, fresh)


def evenly(among: Tensor, wanted: Tensor) -> Tensor:
    """A mask with `wanted` (batch, 1) tokens of another mask, at even distances; shape (batch, tokens)."""
    place = among.cumsum(dim=1)
    share = wanted.double() / place[:, -1:].clamp_min(1)
    # The i-th of n is chosen where floor(i * k / n) takes a step; the small term as above.
    step = (place * share + 1e-9).floor() > ((place - 1) * share + 1e-9).floor()
    return among & step


def column(values: list[Any], device: torch.device) -> Tensor:
    """A number or flag for each row, shape (batch, 1); from memory that a device copies while nothing waits for it."""
    host = torch.tensor(values)[:, None]
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)
