"""How a policy selects image tokens, and which selections compute the same."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from ..choice import CHOICES, LayerChoice, Ratio, StrictModel
from .router import RouterOptions, RouterScore
from .table import DESCRIPTION, RELEVANCE, ROUTER, ScoreName

ROUTED: Final = f"`{RouterScore.name}`: {RouterScore.meaning}."
Dropped = Literal["discard", "merge"]

# Scoped choices that are the same as a token ratio of 0, unless a ratio removes tokens for good; by the one, the other.
SAME_WITHOUT_REMOVAL = {
    LayerChoice(attention="skip", ffn="skip", tokens="image"): LayerChoice(token_ratio=0.0),
    LayerChoice(token_ratio=0.0, rest="keys_only"): CHOICES["freeze_image"],
    LayerChoice(token_ratio=0.0, rest="attention"): LayerChoice(ffn="skip", tokens="image"),
    LayerChoice(token_ratio=0.0, rest="ffn"): LayerChoice(attention="skip", tokens="image"),
}


class TokenSelection(StrictModel):
    """How layers with a token ratio select image tokens.

    Attributes:
        score: The score that ranks them; see `scores.table`.
        diversity: With the score `relevance`, the weight of `diverse` in a mixture of the two, 0 to 1.
        reselect: `each_layer` lets a token that one layer leaves out come back in the next; `once` removes it for good,
            from all later layers, also from layers without a ratio.
        dropped: What becomes of a token that is removed for good: `discard`, or `merge` into the remaining one that it
            resembles most; see `scores.merge`.
        router: With the score `router`, what the routers do beside ranking; as p-MoD's by default.
    """

    score: Annotated[ScoreName, Field(description=f"The score that ranks them. {DESCRIPTION} {ROUTED}")] = "attention"
    # Keys that were added later are left out at their default, so that fingerprints stay what they were.
    diversity: Annotated[Ratio, Field(exclude_if=lambda weight: weight == 0)] = 0.0
    reselect: Literal["each_layer", "once"] = "each_layer"
    dropped: Annotated[Dropped, Field(exclude_if=lambda value: value == "discard")] = "discard"
    router: Annotated[RouterOptions | None, Field(exclude_if=lambda value: value is None)] = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.score == ROUTER and self.reselect == "once":
            raise ValueError(f"found reselect: once beside score {ROUTER}, which ranks all image tokens in each layer")
        if self.router is not None and self.score != ROUTER:
            raise ValueError(f"found router beside score {self.score}, expected score {ROUTER}")
        if self.dropped == "merge" and self.reselect != "once":
            reason = "a token that may come back is not dropped; write `reselect: once` beside it"
            raise ValueError(f"found dropped: merge with reselect: {self.reselect}: {reason}")
        if self.diversity and self.score != RELEVANCE:
            raise ValueError(f"found diversity beside score {self.score}, expected score {RELEVANCE}")
        return self

    @property
    def label(self) -> str:
        """The ranking in one phrase, such as `attention` or `relevance, diversity 0.5, merged`."""
        parts = [self.score, f"diversity {self.diversity:g}" if self.diversity else "", "merged"]
        return ", ".join(filter(None, parts if self.dropped == "merge" else parts[:2]))

    def canonical(self) -> "TokenSelection":
        """The canonical form, equal for selections that compute the same."""
        if self.router == RouterOptions():
            return self.model_copy(update={"router": None})
        only_diverse = {"score": "diverse", "diversity": 0.0}
        return self.model_copy(update=only_diverse) if self.diversity == 1 else self


def canonical_tokens(
    layers: Mapping[int, LayerChoice], selection: TokenSelection
) -> tuple[dict[int, LayerChoice], TokenSelection]:
    """The canonical form of choices and of how they select image tokens, equal where they compute the same.

    Args:
        layers: The choices in canonical form, by layer, first to last.
        selection: How they select image tokens.
    """
    if not any(choice.ranks_images for choice in layers.values()):
        # No ratio removes a token from later layers.
        selection = selection.model_copy(update={"reselect": "each_layer", "dropped": "discard"})
    changed = dict(layers)
    if selection.reselect == "once":
        changed = drop_ineffective_ratios(layers)
    elif selection.score != ROUTER:
        changed = {index: SAME_WITHOUT_REMOVAL.get(choice, choice) for index, choice in layers.items()}
    ratios = [choice.token_ratio for choice in changed.values() if choice.token_ratio is not None]
    selection = selection.canonical() if ratios else TokenSelection()
    # Where every ratio is 0, no score ranks anything.
    return changed, selection if any(ratios) else TokenSelection(reselect=selection.reselect)


def drop_ineffective_ratios(layers: Mapping[int, LayerChoice]) -> dict[int, LayerChoice]:
    """Drop token ratios that remove nothing under `reselect: once`: those not below every earlier ratio."""
    lowest, result = 1.0, {}
    for index, choice in layers.items():
        ratio = choice.token_ratio
        if ratio is not None and ratio >= lowest:
            choice = choice.model_copy(update={"token_ratio": None}).canonical()
        elif ratio is not None and choice.ranks_images:
            lowest = ratio
        result[index] = choice
    return result
