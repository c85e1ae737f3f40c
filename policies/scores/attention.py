"""Scores image tokens by the attention that the last prompt token pays them."""

from typing import TYPE_CHECKING, ClassVar

from .score import ScoreInputs, per_row
from .uniform import UniformScore

if TYPE_CHECKING:
    from torch import Tensor

UNIFORM = UniformScore()


class AttentionScore:
    """The attention weight, 0 to 1, from the last prompt token, mean over the heads, in the nearest earlier layer.

    A token that this earlier layer left out keeps the weight it had before. Rows without any recorded attention are
    scored as by `uniform`.
    """

    name: ClassVar[str] = "attention"
    meaning: ClassVar[str] = (
        "the attention of the last prompt token, mean over the heads, in the nearest earlier layer in which it attends "
        "to image tokens; a token that such a layer left out keeps its score, and where no layer is earlier, `uniform` "
        "decides"
    )
    reads_attention: ClassVar[bool] = True

    def depends_on_positions_only(self, inputs: ScoreInputs) -> bool:
        """True before the first layer whose attention was recorded."""
        return not any(inputs.has_attention)

    def scores(self, inputs: ScoreInputs) -> "Tensor":
        """The attention weights, float32, shape (batch, tokens)."""
        if not any(inputs.has_attention):
            return UNIFORM.scores(inputs)
        # A row that keeps nothing needs no scores.
        if all(recorded or not count for recorded, count in zip(inputs.has_attention, inputs.keep, strict=True)):
            return inputs.attention
        recorded_rows = per_row(inputs.has_attention, inputs.hidden.device)
        return inputs.attention.where(recorded_rows, UNIFORM.scores(inputs))
