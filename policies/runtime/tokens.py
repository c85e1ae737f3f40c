"""The tokens of one forward: their classes (image, text, answer), and which of them a layer processes."""

from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..choice import LayerChoice
from ..errors import ModelError
from ..scores.score import ImageTokenScore, Record, ScoreInputs
from ..scores.uniform import ROUNDING
from .images import ImageSplit, ImageTokens
from .selection import AllOrNone, Selection, ShorterStates, Stacks, remembered
from .watch import AttentionCall

# What configurations call the tokens that stand for visual input.
IMAGE_TOKEN_KEYS = ("image_token_id", "image_token_index", "video_token_id")

# A token stands for image features, is another token of the prompt, or follows the prompt.
CLASSES: Final = ("image", "text", "answer")
ALL_CLASSES: Final = frozenset(CLASSES)
CLASSES_OF_PHASE = {"both": ALL_CLASSES, "prefill": frozenset(("image", "text")), "decode": frozenset(("answer",))}
CLASSES_OF_TOKENS = {"all": ALL_CLASSES, "image": frozenset(("image",)), "text": frozenset(("text", "answer"))}

# In a layer, `image` stands for the image tokens that its ratio keeps, and `rest` for those that it leaves out.
GROUPS: Final = ("image", "rest", "text", "answer")

TokenClasses: TypeAlias = frozenset[str]
TokenGroups: TypeAlias = frozenset[str]


def scope(choice: LayerChoice) -> TokenClasses:
    """The classes of tokens that a choice applies to."""
    return CLASSES_OF_PHASE[choice.phase] & CLASSES_OF_TOKENS[choice.tokens]


def image_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """The ids of the tokens that stand for image (or video) features; empty for a text model."""
    # Phi-4-multimodal keeps the id in the configuration of its vision tower.
    parts = (model.config, getattr(model.config, "vision_config", None))
    found = (getattr(part, key, None) for part in parts for key in IMAGE_TOKEN_KEYS)
    return tuple(sorted({int(value) for value in found if value is not None}))


@dataclass(eq=False)
class ForwardTokens:
    """The tokens of one forward of the model, and what its layers have done with the image tokens so far.

    Attributes:
        masks: By class, which tokens belong to it, shape (batch, tokens); padding belongs to none.
        counts: By class, how many tokens each row has; on the host.
        images: All image tokens.
        rows: The number of each row, shape (batch, 1).
        last_prompt: Place of each row's last prompt token, shape (batch,); None where every row ends with it.
        remaining: The image tokens that no layer has removed for good.
        processed: The image tokens that the running layer records.
        kept: The image tokens that the running layer's ratio keeps; None before the first layer.
        recorded: What earlier layers recorded for the score of image tokens, as each token had it when it was last
            processed, float32, shape (batch, tokens); 0 for a token without a record.
        has_record: Whether image tokens of each row have been recorded.
        routed: The logits of the running layer's router, float32, shape (batch, tokens); None where it has none.
        routed_counts: How many image tokens of each row the running layer's router keeps; None where its ratio says.
        shorter: The hidden states on their way from layer to layer, while they are cut; else None.
        sizes: How many tokens each token stands for, shape (batch, tokens); None where none was merged.
        unions: Masks of several classes together, by the classes.
        bases: Ranks by classes: the highest for tokens of the classes, the lowest for all others.
        selections: Selections that were made already, after their image tokens and classes.
        splits: How layers divided the image tokens, after the remaining ones and those they keep.
        by_position: Image tokens that were selected by their positions only, after the remaining tokens and the ratio.
        stacks: See `Selection`.
    """

    masks: dict[str, Tensor]
    counts: dict[str, list[int]]
    images: ImageTokens
    rows: Tensor
    last_prompt: Tensor | None
    remaining: ImageTokens
    processed: ImageTokens
    recorded: Tensor
    has_record: list[bool]
    kept: ImageTokens | None = None
    routed: Tensor | None = None
    routed_counts: list[int] | None = None
    shorter: ShorterStates | None = None
    sizes: Tensor | None = None
    unions: dict[TokenClasses, Tensor] = field(default_factory=dict)
    bases: dict[TokenClasses, Tensor] = field(default_factory=dict)
    selections: list[tuple[ImageTokens, TokenClasses, Selection]] = field(default_factory=list)
    splits: list[tuple[ImageTokens, ImageTokens, ImageSplit]] = field(default_factory=list)
    by_position: list[tuple[ImageTokens, float, ImageTokens]] = field(default_factory=list)
    stacks: Stacks = field(default_factory=list)

    @classmethod
    def read(cls, image: Tensor, mask: Any, ends: Tensor | int | None) -> "ForwardTokens | None":
        """Classify the tokens of a model's input; None where all tokens are text.

        Args:
            image: Which tokens stand for image features, shape (batch, tokens).
            mask: The attention mask, where the input has one; in shape (batch, earlier + tokens) it marks padding.
            ends: One past the last prompt token of each row, shape (batch,), or of all rows; None where all is prompt.
        """
        tokens = image.shape[1]
        # Masks of other shapes belong to static caches, where padding is processed like text.
        padded = isinstance(mask, Tensor) and mask.dim() == 2
        real = mask[:, -tokens:].to(image.device).bool() if padded else torch.ones_like(image)
        places = torch.arange(tokens, device=image.device)
        stop = torch.as_tensor(tokens if ends is None else ends, device=image.device).reshape(-1, 1)
        in_prompt = real & (places[None] < stop)
        masks = {"image": image & in_prompt, "text": in_prompt & ~image, "answer": real & ~in_prompt}
        last = (in_prompt * places).amax(dim=1)
        # Everything the host needs comes in one transfer.
        *numbers, ends_at = torch.stack([*(masks[name].sum(dim=1) for name in CLASSES), last]).tolist()
        counts = dict(zip(CLASSES, numbers, strict=True))
        if not any(counts["image"]) and not any(counts["answer"]):
            return None
        images = ImageTokens.of(masks["image"], counts["image"])
        nothing = torch.zeros(image.shape, device=image.device)
        rows = torch.arange(len(ends_at), device=image.device)[:, None]
        at_end = all(place == tokens - 1 for place in ends_at)
        return cls(
            masks, counts, images, rows, None if at_end else last, images, images, nothing, [False] * len(ends_at)
        )

    @classmethod
    def told(cls, image: Tensor, mask: Any, count: int) -> "ForwardTokens":
        """Classify the tokens of a prompt without padding that has `count` image tokens in each row.

        The host waits for nothing: where the number is another one, or there is padding, the device fails.

        Args:
            image: Which tokens stand for image features, shape (batch, tokens).
            mask: The attention mask, where the input has one.
            count: The number.

        Raises:
            ModelError: the number of image tokens is another one, where that costs no waiting.
        """
        (batch, tokens), device = image.shape, image.device
        right = (image.sum(dim=1) == count).all()
        if isinstance(mask, Tensor) and mask.dim() == 2:
            right = right & mask.to(device).bool().all()
        if device.type == "cpu" and not torch.compiler.is_compiling() and not right:
            raise ModelError(
                "the number of image tokens that was told is not that of the prompt",
                [f"found {image.sum(dim=1).tolist()} image tokens, expected {count} in each row, and no padding"],
                "set `handle.image_tokens` to the number that each row has, or to None",
            )
        torch._assert_async(right, "handle.image_tokens is not the number of image tokens of each row, or it is padded")
        masks = {"image": image, "text": ~image, "answer": torch.zeros_like(image)}
        counts = {"image": [count] * batch, "text": [tokens - count] * batch, "answer": [0] * batch}
        images = ImageTokens.of(image, counts["image"])
        rows = torch.arange(batch, device=device)[:, None]
        nothing = torch.zeros(image.shape, device=device)
        return cls(masks, counts, images, rows, None, images, images, nothing, [False] * batch)

    def choose_images(self, hidden: Tensor, ratio: float, score: ImageTokenScore) -> ImageTokens:
        """Choose the trunc(ratio * n) best of a row's n image tokens, or `routed_counts`, among those that remain.

        Args:
            hidden: What enters the layer, shape (batch, tokens, width); it may be cut, as `shorter` says.
            ratio: Share of the row's image tokens, counted before any was removed.
            score: The score that ranks them.
        """
        remaining = self.remaining.counts
        shares = [min(int(n * ratio + ROUNDING), rest) for n, rest in zip(self.images.counts, remaining, strict=True)]
        keep = shares if self.routed_counts is None else self.routed_counts
        if keep == remaining:
            return self.remaining
        # What was recorded needs no hidden states.
        inputs = self.score_inputs(self.whole(hidden) if score.records is None else hidden, keep)
        if not score.depends_on_positions_only(inputs):
            return self._ranked(score.scores(inputs), keep)
        images: ImageTokens | None = remembered(self.by_position, self.remaining, ratio)
        if images is None:
            images = self._ranked(score.scores(inputs), keep)
            self.by_position.append((self.remaining, ratio, images))
        return images

    def score_inputs(self, hidden: Tensor, keep: list[int]) -> ScoreInputs:
        """What a layer that keeps so many image tokens of each row offers to a score."""
        candidates, text, counts = self.remaining.mask, self.masks["text"], self.remaining.counts
        return ScoreInputs(hidden, candidates, text, counts, keep, self.recorded, self.has_record, self.routed)

    def _ranked(self, scores: Tensor, keep: list[int]) -> ImageTokens:
        return ImageTokens(scores, keep, self.remaining.mask)

    def whole(self, hidden: Tensor) -> Tensor:
        """Hidden states of all tokens, shape (batch, tokens, width), from what enters a layer, which may be cut."""
        return hidden if self.shorter is None else self.shorter.put_back(hidden)

    def split_images(self, kept: ImageTokens) -> ImageSplit:
        """The remaining image tokens, divided by a layer that keeps some of them."""
        images: ImageSplit | None = remembered(self.splits, self.remaining, kept)
        if images is None:
            images = ImageSplit(self.remaining, kept)
            self.splits.append((self.remaining, kept, images))
        return images

    def select(self, groups: TokenGroups, split: ImageSplit) -> Selection | AllOrNone:
        """Select the tokens of some groups, where a layer divides the image tokens in this way."""
        images = split.of(groups)
        present = frozenset(name for name in groups - {"image", "rest"} if any(self.counts[name]))
        if images is not None and any(images.counts):
            present |= {"image"}
        if not present:
            return AllOrNone.NONE
        if images is self.images and all(name in present for name in CLASSES if any(self.counts[name])):
            return AllOrNone.ALL
        # Selections without image tokens are equal, whichever image tokens were given.
        if images is None or "image" not in present:
            images = self.images
        selection: Selection | None = remembered(self.selections, images, present)
        if selection is None:
            lists = [images.counts if name == "image" else self.counts[name] for name in present]
            ranks = self.base(present - {"image"})
            if "image" in present:
                ranks = images.ranks.where(images.candidates, ranks)
            counts = [sum(row) for row in zip(*lists, strict=True)]
            selection = Selection.of(ranks, counts, self.rows, self.stacks)
            self.selections.append((images, present, selection))
        return selection

    def base(self, classes: TokenClasses) -> Tensor:
        """Ranks that put the tokens of some classes first, shape (batch, tokens)."""
        if classes not in self.bases:
            lowest = torch.full_like(self.images.ranks, float("-inf"))
            self.bases[classes] = lowest.masked_fill(self.union(classes), float("inf")) if classes else lowest
        return self.bases[classes]

    def union(self, classes: TokenClasses) -> Tensor:
        """A mask of the tokens of some classes, shape (batch, tokens)."""
        if classes not in self.unions:
            self.unions[classes] = torch.stack([self.masks[name] for name in classes]).any(dim=0)
        return self.unions[classes]

    def of_groups(self, groups: TokenGroups, split: ImageSplit) -> bool | Tensor:
        """A mask of the tokens of some groups, shape (batch, tokens); True or False where it holds for all tokens."""
        present = [name for name in CLASSES if any(self.counts[name])]
        inside = frozenset(name for name in present if name in groups)
        if "image" in inside and "rest" not in groups and split.kept is not split.every:
            return self.union(inside) & ~split.rest.mask
        return self.union(inside) if 0 < len(inside) < len(present) else bool(inside)

    def record_attention(
        self,
        call: AttentionCall,
        record: Record,
        queries: Selection | AllOrNone,
        keys: Selection | AllOrNone,
        static: bool,
    ) -> None:
        """Update `recorded` from a layer's attention call; tokens that the layer left out keep their record.

        Args:
            call: The call, with the last prompt token among its queries where attention is recorded.
            record: What is recorded: `attention` or `key_norm`.
            queries: The tokens that asked in it.
            keys: The tokens of this forward that were seen.
            static: True where the keys are columns of a static cache, which was empty before.
        """
        self._count_records()
        count = keys.index.shape[1] if isinstance(keys, Selection) else self.recorded.shape[1]
        with torch.no_grad():
            seen = call.of_first(count) if static else call
            fresh = seen.figures(record, self._last_prompt_among(queries))[:, -count:]
        if not isinstance(keys, Selection):
            self.recorded = fresh
            return
        if keys.valid is not None:
            fresh = torch.where(keys.valid, fresh, self.recorded.gather(1, keys.index))
        self.recorded = self.recorded.scatter(1, keys.index, fresh)

    def _last_prompt_among(self, queries: Selection | AllOrNone) -> Tensor | None:
        """The place of each row's last prompt token among some tokens, shape (batch,); None where it is the last."""
        if self.last_prompt is None or not isinstance(queries, Selection):
            return self.last_prompt
        # Answer tokens stand on the right of the last prompt token, padding of the selection on the left.
        after = queries.index > self.last_prompt[:, None]
        after = after if queries.valid is None else after & queries.valid
        return (queries.index.shape[1] - 1 - after.sum(dim=1)).clamp_min(0)

    @torch.no_grad()
    def record_change(self, before: Tensor, after: Tensor) -> None:
        """Update `recorded` from the states around a layer; tokens that it left as they were keep their record.

        Args:
            before: What entered the layer, shape (batch, tokens, width).
            after: What left it, of the same shape.
        """
        self._count_records()
        change = (after.float() - before.float()).norm(dim=-1)
        self.recorded = torch.where(change > 0, change, self.recorded)

    def _count_records(self) -> None:
        """Note that the image tokens which the running layer processes have a record."""
        self.has_record = [had or n > 0 for had, n in zip(self.has_record, self.processed.counts, strict=True)]
