"""Base of scores that an earlier layer recorded."""

from typing import TYPE_CHECKING

from .score import ScoreInputs, per_row
from .uniform import UniformScore

if TYPE_CHECKING:
    from torch import Tensor

UNIFORM = UniformScore()


class RecordedScore:
    """Scores image tokens by what an earlier layer recorded of them.

    A token that this earlier layer left out keeps the record it had before. Rows without any record are scored as by
    `uniform`.
    """

    def depends_on_positions_only(self, inputs: ScoreInputs) -> bool:
        """True before the first layer that recorded something."""
        return not any(inputs.has_record)

    def scores(self, inputs: ScoreInputs) -> "Tensor":
        """The records, float32, shape (batch, tokens)."""
        if not any(inputs.has_record):
            return UNIFORM.scores(inputs)
        # A row that keeps nothing needs no scores.
        if all(recorded or not count for recorded, count in zip(inputs.has_record, inputs.keep, strict=True)):
            return inputs.recorded
        recorded_rows = per_row(inputs.has_record, inputs.hidden.device)
        return inputs.recorded.where(recorded_rows, UNIFORM.scores(inputs))
