"""What the search has measured so far, as arrays."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..guide.accuracy_curve import AccuracyCurve
from ..trial.arrays import Codes, Floats

COLUMNS = ("codes", "losses", "costs", "excess", "errors")


@dataclass(frozen=True)
class Observations:
    """Measured policies in the order in which they finished, and pending ones.

    Attributes:
        codes: (n, variables).
        losses: (n,): the expensive objective, minimised; NaN where it was not measured.
        costs: (n, costs): the other objectives, likewise.
        excess: (n, constraints): how far each constraint is violated, 0 or less where it is satisfied; NaN where not
            measured.
        errors: (n,): standard error of a loss estimated from few examples, of an early-stopped or paused trial; else 0.
        pending: (m, variables): policies of pending trials.
        scores: (n,): in a guided search the expensive objective, minimised, where the loss is that of the guide; NaN
            where it was not measured. None where the loss is the objective itself.
        score_errors: (n,): standard errors of the scores.
        scored_at: (n,): how many policies were known when the score was measured.
    """

    codes: Codes
    losses: Floats
    costs: Floats
    excess: Floats
    errors: Floats
    pending: Codes
    scores: Floats | None = None
    score_errors: Floats | None = None
    scored_at: NDArray[np.int64] | None = None

    @property
    def measured(self) -> NDArray[np.bool_]:
        """(n,): True where every objective was measured; in a guided search costs may be measured later."""
        with_costs = np.isfinite(self.costs).all(1) if self.scores is None else True
        return np.isfinite(self.losses) & with_costs

    def first(self, count: int) -> "Observations":
        """The policies that finished first, with the scores measured by then."""
        columns = {name: getattr(self, name)[:count] for name in COLUMNS}
        if self.scores is not None and self.scored_at is not None and self.score_errors is not None:
            scored = self.scored_at[:count] <= count
            columns["scores"] = np.where(scored, self.scores[:count], np.nan)
            columns["score_errors"], columns["scored_at"] = self.score_errors[:count], self.scored_at[:count]
        return replace(self, **columns)

    def accuracy_curve(self, chance_score: float) -> AccuracyCurve | None:
        """Expected score as a function of the loss; None where the loss is the objective itself.

        Args:
            chance_score: The score at chance level.
        """
        if self.scores is None or self.score_errors is None:
            return None
        both = np.isfinite(self.scores) & np.isfinite(self.losses)
        all_losses = self.losses[np.isfinite(self.losses)]
        return AccuracyCurve.fit(
            self.losses[both], self.scores[both], self.score_errors[both], chance_score, all_losses
        )

    def starts_with(self, other: "Observations") -> bool:
        """True where the others are the first of these."""
        start = self.first(len(other.codes))
        return all(
            np.array_equal(getattr(start, name), getattr(other, name), equal_nan=name != "codes") for name in COLUMNS
        )
