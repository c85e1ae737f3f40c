"""Accuracy as a saturating function of a graded loss, fitted to the policies that have both.

The loss of the right answers distinguishes policies whose answers are equal; accuracy is the objective. A logistic
curve links them: accuracy stays near its best while the loss is small, and falls to chance level.
"""

from dataclasses import dataclass

import numpy as np

from ..trial.arrays import Floats

MIDPOINTS = np.linspace(0.0, 1.0, 41) ** 2  # grid of midpoints, between the smallest and the largest loss
WIDTHS = np.geomspace(0.01, 0.5, 15)  # grid of widths, as shares of the same range
PRIOR_MIDPOINT, PRIOR_WIDTH = 0.2, 0.08  # also as shares of that range
# The fit's penalty is (midpoint - prior)^2 / tolerance + log(width / prior)^2 / tolerance.
MIDPOINT_TOLERANCE, WIDTH_TOLERANCE = 0.05, 2.0
PRIOR_RESIDUAL = 0.03  # standard deviation of accuracies around the curve, until it can be estimated
MIN_POLICIES = 8  # policies from which that deviation is estimated, at least
MIN_RESIDUAL = 0.005


@dataclass(frozen=True)
class AccuracyCurve:
    """score(loss) = chance_score - span * sigmoid((midpoint - loss) / width); scores are minimised: minus the accuracy.

    Attributes:
        chance_score: The score at chance level.
        span: How much better the best score is.
        midpoint: The loss at which half of the span is lost.
        width: How slowly the score falls there, in units of the loss.
        residual: Standard deviation of scores around the curve, without their own measurement errors.
        max_loss: The largest measured loss.
    """

    chance_score: float
    span: float
    midpoint: float
    width: float
    residual: float
    max_loss: float

    @classmethod
    def fit(
        cls, losses: Floats, scores: Floats, errors: Floats, chance_score: float, all_losses: Floats
    ) -> "AccuracyCurve":
        """Penalised weighted least squares over a grid of curves; the penalty keeps to a prior while scores are few.

        Args:
            losses: (n,): of the policies with a score; n may be 0.
            scores: (n,): minus their accuracies.
            errors: (n,): standard errors of the scores.
            chance_score: Minus the accuracy at chance level.
            all_losses: (m,): every measured loss; the largest is taken to score at chance level.
        """
        least, most = float(all_losses.min()), float(max(all_losses.max(), all_losses.min() + 1e-9))
        unit = most - least
        x, y = np.r_[losses, most], chance_score - np.r_[scores, chance_score]
        weights = 1 / (np.r_[errors, PRIOR_RESIDUAL] ** 2 + PRIOR_RESIDUAL**2)
        midpoints, widths = least + unit * MIDPOINTS[:, None], unit * WIDTHS[None, :]
        shapes = sigmoid((midpoints[..., None] - x) / widths[..., None])
        spans = np.maximum((weights * shapes * y).sum(-1) / (weights * shapes**2).sum(-1).clip(1e-12), 1e-6)
        objective = (weights * (y - spans[..., None] * shapes) ** 2).sum(-1)
        objective = objective + ((MIDPOINTS - PRIOR_MIDPOINT) ** 2 / MIDPOINT_TOLERANCE)[:, None]
        objective = objective + np.log(WIDTHS / PRIOR_WIDTH) ** 2 / WIDTH_TOLERANCE
        best, column = np.unravel_index(int(objective.argmin()), objective.shape)
        residuals = y[:-1] - spans[best, column] * shapes[best, column, :-1]
        enough = len(residuals) >= MIN_POLICIES
        variance = float(np.mean(residuals**2 - errors**2)) if enough else PRIOR_RESIDUAL**2
        return cls(
            chance_score, float(spans[best, column]), float(midpoints[best, 0]), float(widths[0, column]),
            max(variance, MIN_RESIDUAL**2) ** 0.5, most,
        )  # fmt: skip

    def __call__(self, losses: Floats) -> Floats:
        """Expected scores of losses."""
        return self.chance_score - self.span * sigmoid((self.midpoint - losses) / self.width)

    def inverse(self, score: float) -> float:
        """The loss with an expected score, at most the largest measured loss."""
        share = np.clip((self.chance_score - score) / self.span, 1e-9, 1 - 1e-9)
        return float(min(self.midpoint - self.width * np.log(share / (1 - share)), self.max_loss))

    def posterior(self, losses: Floats, scores: Floats, errors: Floats) -> tuple[Floats, Floats]:
        """Posterior of scores: the curve is the prior, a measured score the observation.

        Args:
            losses: (n,).
            scores: (n,): NaN where none was measured.
            errors: (n,): standard errors of the scores.

        Returns:
            Mean and standard deviation of each score.
        """
        prior_precision, measured = self.residual**-2, np.isfinite(scores)
        precision = np.where(measured, 1 / np.maximum(np.where(measured, errors, 1.0), 1e-6) ** 2, 0.0)
        observed = np.where(measured, scores, 0.0)
        mean = (prior_precision * self(losses) + precision * observed) / (prior_precision + precision)
        return mean, (prior_precision + precision) ** -0.5


def sigmoid(values: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * values))
