"""Scores image tokens by how far an earlier layer moved them."""

from typing import ClassVar

from .recorded import RecordedScore
from .score import Record


class ChangeScore(RecordedScore):
    """The L2 norm of a layer's update (V2Drop, arXiv:2509.01552): tokens that hardly change are dropped."""

    name: ClassVar[str] = "change"
    meaning: ClassVar[str] = (
        "how far the nearest earlier layer that processes image tokens moved the token: the L2 norm of its state after "
        "the layer minus that before it; a token that such a layer left out keeps its score, and where no layer is "
        "earlier, `uniform` decides"
    )
    records: ClassVar[Record | None] = "change"
