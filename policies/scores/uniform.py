"""Scores image tokens so that those at even distances are kept, whatever they show."""

from typing import TYPE_CHECKING, ClassVar

from .score import Record, ScoreInputs, per_row

if TYPE_CHECKING:
    from torch import Tensor

# Added before rounding down: a product such as 0.29 * 100 is slightly less than 29 in binary.
ROUNDING = 1e-9


class UniformScore:
    """1 for every k-th candidate, 0 for all other tokens; the baseline of a choice that looks at nothing."""

    name: ClassVar[str] = "uniform"
    meaning: ClassVar[str] = "tokens at even distances, whatever they show"
    records: ClassVar[Record | None] = None

    def depends_on_positions_only(self, inputs: ScoreInputs) -> bool:
        """True: places and numbers of the candidates decide."""
        return True

    def scores(self, inputs: ScoreInputs) -> "Tensor":
        """1 or 0, float32, shape (batch, tokens)."""
        return evenly_spaced(inputs.candidates, per_row(inputs.keep, inputs.candidates.device)).float()


def evenly_spaced(candidates: "Tensor", keep: "Tensor") -> "Tensor":
    """A mask of `keep` (batch, 1) candidates at even distances, shape (batch, tokens).

    Candidate i of n is kept where floor(i * keep / n) is larger than at the candidate before it.
    """
    place = candidates.cumsum(dim=1)
    share = keep.double() / place[:, -1:].clamp_min(1)
    step = (place * share + ROUNDING).floor() > ((place - 1) * share + ROUNDING).floor()
    return candidates & step
