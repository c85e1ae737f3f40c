"""Which tokens each sublayer of a layer processes in a forward: decided from their classes and from the choice."""

from torch import Tensor

from ...choice import LayerChoice
from ...errors import ModelError
from ...scores.merge import merge_removed
from ...scores.score import Record
from ...scores.table import find_score
from ...scores.token_selection import TokenSelection
from ..attend import Eviction, Split, Tokens
from ..calls import ForwardCall
from ..images import ImageSplit
from ..selection import AllOrNone
from ..tokens import CLASSES, ForwardTokens
from .roles import roles
from .shorter import Plan

ALL_OR_NONE = {True: AllOrNone.ALL, False: AllOrNone.NONE}


class TokenPlanner:
    """Decides for each forward which tokens the sublayers of one layer process.

    Args:
        index: The number of the layer.
        choice: What the layer does, in canonical form.
        selection: How image tokens are ranked, and whether a token that is left out comes back.
        record: What the layer records for a later layer that ranks image tokens by it; None for nothing.

    Attributes:
        score: The score that ranks image tokens.
        roles: What each group of tokens does.
        plans: By class, the plan of a forward whose tokens all belong to that class.
        treats_answers_apart: True where an answer is treated in another way than the text of a prompt.
        needs_ids: True where image tokens are treated in another way than text.
        fixed_plan: The plan, where it is the same in every forward; else None.
    """

    def __init__(self, index: int, choice: LayerChoice, selection: TokenSelection, record: Record | None) -> None:
        self._index, self._choice, self._selection, self._record = index, choice, selection, record
        self.score = find_score(selection.score, selection.diversity)
        self.roles = roles(choice)
        self.plans: dict[str, Plan] = {name: self._plan_of_class(name) for name in CLASSES}
        images_differ = self.plans["image"] != self.plans["text"]
        self.treats_answers_apart = self.plans["answer"] != self.plans["text"] or self.roles.evicts
        self.needs_ids = choice.token_ratio is not None or choice.window is not None or images_differ
        pairs_text = "text" in self.roles.paired
        self.treats_answers_apart |= ("answer" in self.roles.paired) != pairs_text
        self.needs_ids |= ("image" in self.roles.paired) != pairs_text
        varies = self.needs_ids or self.treats_answers_apart or record is not None or selection.reselect == "once"
        varies |= any(plan.split is not None for plan in self.plans.values())
        self.fixed_plan = None if varies else self.plans["text"]

    def _plan_of_class(self, name: str) -> Plan:
        """The plan of a forward whose tokens all belong to one class."""
        does = self.roles
        asks, fed = ALL_OR_NONE[name in does.asks], ALL_OR_NONE[name in does.fed]
        narrow, wide = ALL_OR_NONE[name in does.narrow], ALL_OR_NONE[name in does.fed - does.narrow]
        if name not in does.seen_only | does.alone:
            return Plan(asks, fed, name in does.parallel, None, narrow, wide, ALL_OR_NONE[name in does.all_heads])
        seen_only, alone = ALL_OR_NONE[name in does.seen_only], ALL_OR_NONE[name in does.alone]
        return Plan(asks, fed, name in does.parallel, Split(asks, seen_only, alone, seen_only), narrow, wide)

    def plan(self, hidden: Tensor, call: ForwardCall) -> Plan:
        """Decide which tokens the layer processes in a forward.

        Args:
            hidden: What enters the layer, shape (batch, tokens, width).
            call: The forward.

        Raises:
            ModelError: the input ids were not seen, so the image tokens are unknown.
        """
        tokens = call.tokens
        if tokens is None:
            if self.needs_ids and not call.images_known:
                raise self.unknown_tokens(hidden)
            return self.plans[call.single_class]
        if tokens.shorter is None and tokens.recorded.shape != hidden.shape[:2]:
            raise self.unknown_tokens(hidden)
        images, merged = self._divide_images(hidden, tokens)
        attended, fed = tokens.select(self.roles.asks, images), tokens.select(self.roles.fed, images)
        parallel, split = tokens.of_groups(self.roles.parallel, images), self._split(tokens, images, attended)
        narrow = tokens.select(self.roles.narrow, images)
        wide = fed if narrow is AllOrNone.NONE else tokens.select(self.roles.fed - self.roles.narrow, images)
        all_heads = tokens.select(self.roles.all_heads, images)
        return Plan(attended, fed, parallel, split, narrow, wide, all_heads, merged)

    def _divide_images(self, hidden: Tensor, tokens: ForwardTokens) -> tuple[ImageSplit, Tensor | None]:
        """The image tokens that the layer keeps, and the others; with `reselect: once`, the others are removed.

        Returns:
            The tokens; and the layer's input with the removed ones merged into those kept, or None where none is.
        """
        ratio, kept, merged = self._choice.token_ratio, tokens.remaining, None
        if ratio is not None:
            kept = tokens.choose_images(hidden, ratio, self.score)
        images, tokens.kept = tokens.split_images(kept), kept
        tokens.processed = images.of(self.roles.moves if self._record == "change" else self.roles.stores) or kept
        if self._selection.reselect == "once" and self._choice.ranks_images:
            if self._selection.dropped == "merge" and kept is not tokens.remaining and any(kept.counts):
                merged, tokens.sizes = merge_removed(tokens.whole(hidden), tokens.remaining, kept, tokens.sizes)
            tokens.remaining = kept
        return images, merged

    def _split(self, tokens: ForwardTokens, images: ImageSplit, asking: Tokens) -> Split | None:
        """How the tokens of a forward take part in the attention; None where some do in full, and the others do not."""
        does = self.roles
        seen_only, alone = tokens.select(does.seen_only, images), tokens.select(does.alone, images)
        eviction = None
        if does.evicts and any(images.rest.counts):
            answers = tokens.masks["answer"] if any(tokens.counts["answer"]) else None
            eviction = Eviction(images.rest.mask, images.rest.counts, answers)
        if seen_only is alone is AllOrNone.NONE and eviction is None:
            return None
        return Split(asking, seen_only, alone, tokens.select(does.stores, images), eviction)

    def unknown_tokens(self, hidden: Tensor) -> ModelError:
        """The error for a forward whose input ids were not seen."""
        return ModelError(
            "this policy needs the input ids, to know which tokens are image tokens",
            [f"layer {self._index} got hidden states of shape {tuple(hidden.shape)} without them"],
            "call the model that the policy was applied to, with `input_ids`",
        )
