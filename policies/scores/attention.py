"""Scores image tokens by the attention that the last prompt token pays them."""

from typing import ClassVar

from .recorded import RecordedScore
from .score import Record


class AttentionScore(RecordedScore):
    """The attention weight, 0 to 1, from the last prompt token (FastV, arXiv:2403.06764)."""

    name: ClassVar[str] = "attention"
    meaning: ClassVar[str] = (
        "the attention of the last prompt token that asks, mean over the heads, in the nearest earlier layer in which "
        "text attends to image tokens and is seen; a token that such a layer left out keeps its score, and where no "
        "layer is earlier, `uniform` decides"
    )
    records: ClassVar[Record | None] = "attention"
