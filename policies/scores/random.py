"""Scores image tokens by pseudo-random numbers that depend on their places alone."""

from typing import TYPE_CHECKING, ClassVar, Final

from .score import Record, ScoreInputs

if TYPE_CHECKING:
    from torch import Tensor

# The multipliers and shifts of a hash of 32 bits with good avalanche (C. Wellons, "lowbias32").
MULTIPLIERS: Final = (0x7FEB352D, 0x846CA68B)
SHIFTS: Final = (16, 15, 16)
LOW_32_BITS: Final = 0xFFFFFFFF
# Added to each place, so that the first one is not hashed to 0.
SEED: Final = 0x9E3779B9


class RandomScore:
    """A hash of the token's number among the row's candidates: the baseline of a choice that knows nothing.

    It depends on no generator. So a row has the same scores in every batch, process and layer.
    """

    name: ClassVar[str] = "random"
    meaning: ClassVar[str] = (
        "a pseudo-random number that depends on the token's number among the image tokens of its row alone, so that "
        "rows with equally many image tokens keep the same places in every layer, batch and process"
    )
    records: ClassVar[Record | None] = None

    def depends_on_positions_only(self, inputs: ScoreInputs) -> bool:
        """True: places of the candidates decide."""
        return True

    def scores(self, inputs: ScoreInputs) -> "Tensor":
        """Numbers from 0 to 1, float32, shape (batch, tokens)."""
        bits = (inputs.candidates.cumsum(dim=1) + SEED) & LOW_32_BITS
        for shift, multiplier in zip(SHIFTS, (*MULTIPLIERS, 1), strict=True):
            bits = ((bits ^ (bits >> shift)) * multiplier) & LOW_32_BITS
        # float32 holds 24 bits exactly.
        return (bits >> 8).float() / 2**24
