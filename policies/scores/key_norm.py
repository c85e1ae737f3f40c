"""Scores image tokens by the norms of their keys."""

from typing import ClassVar

from .recorded import RecordedScore
from .score import Record


class KeyNormScore(RecordedScore):
    """The reciprocal of the L2 norm of the key: keys of a low norm receive much attention (arXiv:2406.11430)."""

    name: ClassVar[str] = "key_norm"
    meaning: ClassVar[str] = (
        "the lower the L2 norm of the token's key, mean over the heads, in the nearest earlier layer in which image "
        "tokens have keys, the higher; a token that such a layer left out keeps its score, and where no layer is "
        "earlier, `uniform` decides"
    )
    records: ClassVar[Record | None] = "key_norm"
