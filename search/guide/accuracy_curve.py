"""Accuracy as a noisy, saturating function of a graded loss, learned from the policies of which both are known.

The loss of the right answers tells policies apart that answer alike; accuracy is what counts. Between them stands a
logistic curve: accuracy stays near its best while the loss is small, and falls to the task's floor.
"""

from dataclasses import dataclass

import numpy as np

from ..trial.arrays import Floats

MIDDLES = np.linspace(0.0, 1.0, 41) ** 2  # where accuracy has lost half, between the smallest and the largest loss
WIDTHS = np.geomspace(0.01, 0.5, 15)  # how fast it falls there, as a share of the same span
PRIOR = 0.2, 0.08  # a middle and a width to begin with
TRUST = 0.05, 2.0  # how little the data must gain to leave them: per squared span, per squared factor
SPREAD = 0.03  # standard deviation of accuracies around the curve, where it is not known yet
FEW = 8  # policies that the spread is learned from at least
LEAST = 0.005


@dataclass(frozen=True)
class Quality:
    """score(loss) = worst - span * sigmoid((middle - loss) / width), a score being minimised: minus the accuracy.

    Attributes:
        worst: The score that is no better than guessing.
        span: How much better the best score is.
        middle: The loss at which half of it is lost.
        width: How fast it is lost there.
        spread: Standard deviation of scores around the curve, without that of their own measurement.
        most: The largest loss that was seen.
    """

    worst: float
    span: float
    middle: float
    width: float
    spread: float
    most: float

    @classmethod
    def fit(cls, losses: Floats, scores: Floats, errors: Floats, worst: float, seen: Floats) -> "Quality":
        """Weighted least squares over a grid of curves, held to `PRIOR` while few scores are known.

        Args:
            losses: (n,): of the policies whose score is known; n may be 0.
            scores: (n,): minus their accuracies.
            errors: (n,): standard errors of these.
            worst: Minus the accuracy of guessing.
            seen: (m,): every loss that was measured; at the largest, guessing is all that is left.
        """
        least, most = float(seen.min()), float(max(seen.max(), seen.min() + 1e-9))
        unit = most - least
        x, y = np.r_[losses, most], worst - np.r_[scores, worst]
        weights = 1 / (np.r_[errors, SPREAD] ** 2 + SPREAD**2)
        middles, widths = least + unit * MIDDLES[:, None], unit * WIDTHS[None, :]
        shapes = sigmoid((middles[..., None] - x) / widths[..., None])
        spans = np.maximum((weights * shapes * y).sum(-1) / (weights * shapes**2).sum(-1).clip(1e-12), 1e-6)
        misfit = (weights * (y - spans[..., None] * shapes) ** 2).sum(-1)
        misfit = misfit + ((MIDDLES - PRIOR[0]) ** 2 / TRUST[0])[:, None] + np.log(WIDTHS / PRIOR[1]) ** 2 / TRUST[1]
        row, column = np.unravel_index(int(misfit.argmin()), misfit.shape)
        rest = y[:-1] - spans[row, column] * shapes[row, column, :-1]
        beyond = float(np.mean(rest**2 - errors**2)) if len(rest) >= FEW else SPREAD**2
        return cls(
            worst, float(spans[row, column]), float(middles[row, 0]), float(widths[0, column]),
            max(beyond, LEAST**2) ** 0.5, most,
        )  # fmt: skip

    def __call__(self, losses: Floats) -> Floats:
        """The scores that are expected of losses."""
        return self.worst - self.span * sigmoid((self.middle - losses) / self.width)

    def inverse(self, score: float) -> float:
        """The loss at which a score is reached, at most the largest that was seen."""
        share = np.clip((self.worst - score) / self.span, 1e-9, 1 - 1e-9)
        return float(min(self.middle - self.width * np.log(share / (1 - share)), self.most))

    def posterior(self, losses: Floats, scores: Floats, errors: Floats) -> tuple[Floats, Floats]:
        """What is expected of policies given their losses and, where these are known, their measured scores.

        Args:
            losses: (n,).
            scores: (n,): NaN where none was measured.
            errors: (n,): standard errors of these.

        Returns:
            Mean and standard deviation of each score.
        """
        prior, measured = self.spread**-2, np.isfinite(scores)
        told = np.where(measured, 1 / np.maximum(np.where(measured, errors, 1.0), 1e-6) ** 2, 0.0)
        mean = (prior * self(losses) + told * np.where(measured, scores, 0.0)) / (prior + told)
        return mean, (prior + told) ** -0.5


def sigmoid(values: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * values))
