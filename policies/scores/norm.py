"""Scores image tokens by the norm of their hidden states."""

from typing import TYPE_CHECKING, ClassVar

from .score import Record, ScoreInputs

if TYPE_CHECKING:
    from torch import Tensor


class NormScore:
    """The L2 norm of the hidden state that enters the layer, in units of the residual stream."""

    name: ClassVar[str] = "norm"
    meaning: ClassVar[str] = "the L2 norm of the token's hidden state as it enters the layer"
    records: ClassVar[Record | None] = None

    def depends_on_positions_only(self, inputs: ScoreInputs) -> bool:
        """False: the hidden states change from layer to layer."""
        return False

    def scores(self, inputs: ScoreInputs) -> "Tensor":
        """The norms, float32, shape (batch, tokens)."""
        return inputs.hidden.float().norm(dim=-1)
