"""Accuracy as a monotone function of a graded loss, fitted to the policies that have both.

The loss of the right answers distinguishes policies whose answers are equal; accuracy is the objective. A logistic
curve links them: accuracy stays near its best while the loss is small, and falls to chance level. Real curves bend
otherwise near dense, where it matters most, so a Gaussian process over the logarithm of the loss corrects the logistic.
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
MIN_POLICIES = 8  # policies from which that deviation and the correction are estimated, at least
RESIDUALS = (0.005, 0.01, 0.02, 0.03, 0.05)  # the deviations to choose from
AMPLITUDES = (0.0, 0.01, 0.02, 0.05, 0.1)  # the standard deviations of the correction to choose from
LENGTH = 0.7  # length scale of the correction: a factor of two in the loss
OFFSET = 0.005  # added to losses before the logarithm, as a share of their range
BINS = 48  # policies of about the same loss count as one, so that the fit takes milliseconds
GRID = 160  # losses at which the curve is evaluated; between them it is linear


@dataclass(frozen=True)
class AccuracyCurve:
    """Expected scores by loss; scores are minimised: minus the accuracy.

    Attributes:
        losses: (grid,): ascending.
        scores: (grid,): the expected score at each, ascending.
        deviations: (grid,): the standard deviation of a policy's score around it.
        residual: What remains of that deviation where many policies were measured.
    """

    losses: Floats
    scores: Floats
    deviations: Floats
    residual: float

    @classmethod
    def fit(
        cls, losses: Floats, scores: Floats, errors: Floats, chance_score: float, all_losses: Floats
    ) -> "AccuracyCurve":
        """A logistic curve, corrected by a Gaussian process on its residuals once there are enough of them.

        Args:
            losses: (n,): of the policies with a score; n may be 0.
            scores: (n,): minus their accuracies.
            errors: (n,): standard errors of the scores.
            chance_score: Minus the accuracy at chance level.
            all_losses: (m,): every measured loss; the largest is taken to score at chance level.
        """
        least, most = float(all_losses.min()), float(max(all_losses.max(), all_losses.min() + 1e-9))
        gains = chance_score - scores
        span, midpoint, width = fit_logistic(losses, gains, errors, least, most)

        def logistic(values: Floats) -> Floats:
            return span * sigmoid((midpoint - values) / width)

        offset = OFFSET * (most - least)
        grid = least - offset + np.geomspace(offset, most - least + offset, GRID)
        expected, variance, residual = logistic(grid), np.full(GRID, PRIOR_RESIDUAL**2), PRIOR_RESIDUAL
        if len(losses) >= MIN_POLICIES:
            places = np.log(np.r_[losses, most] - least + offset)
            values = np.r_[gains - logistic(losses), -logistic(np.array([most]))]
            noise = np.r_[errors, PRIOR_RESIDUAL] ** 2
            correction, uncertainty, residual = fit_correction(places, values, noise, np.log(grid - least + offset))
            expected, variance = expected + correction, uncertainty + residual**2
        return cls(grid, chance_score - falling(np.maximum(expected, 0.0)), variance**0.5, residual)

    def __call__(self, losses: Floats) -> Floats:
        """Expected scores of losses."""
        return np.asarray(np.interp(losses, self.losses, self.scores))

    def inverse(self, score: float) -> float:
        """The largest loss with an expected score of at most this, at most the largest measured loss."""
        place = int(np.searchsorted(self.scores, score, side="right"))
        if place in (0, len(self.scores)):
            return float(self.losses[0 if place == 0 else -1])
        low, high = self.scores[place - 1], self.scores[place]
        share = (score - low) / (high - low)
        return float(self.losses[place - 1] + share * (self.losses[place] - self.losses[place - 1]))

    def posterior(self, losses: Floats, scores: Floats, errors: Floats) -> tuple[Floats, Floats]:
        """Posterior of scores: the curve is the prior, a measured score the observation.

        Args:
            losses: (n,).
            scores: (n,): NaN where none was measured.
            errors: (n,): standard errors of the scores.

        Returns:
            Mean and standard deviation of each score.
        """
        prior_precision, measured = np.interp(losses, self.losses, self.deviations) ** -2, np.isfinite(scores)
        precision = np.where(measured, 1 / np.maximum(np.where(measured, errors, 1.0), 1e-6) ** 2, 0.0)
        observed = np.where(measured, scores, 0.0)
        mean = (prior_precision * self(losses) + precision * observed) / (prior_precision + precision)
        return mean, (prior_precision + precision) ** -0.5


def fit_logistic(losses: Floats, gains: Floats, errors: Floats, least: float, most: float) -> tuple[float, ...]:
    """gain(loss) = span * sigmoid((midpoint - loss) / width), by penalised weighted least squares over a grid.

    Args:
        losses: (n,).
        gains: (n,): accuracies above chance level.
        errors: (n,): their standard errors.
        least: The smallest measured loss.
        most: The largest, which is taken to be at chance level.

    Returns:
        Span, midpoint and width.
    """
    unit = most - least
    x, y = np.r_[losses, most], np.r_[gains, 0.0]
    weights = 1 / (np.r_[errors, PRIOR_RESIDUAL] ** 2 + PRIOR_RESIDUAL**2)
    midpoints, widths = least + unit * MIDPOINTS[:, None], unit * WIDTHS[None, :]
    shapes = sigmoid((midpoints[..., None] - x) / widths[..., None])
    spans = np.maximum((weights * shapes * y).sum(-1) / (weights * shapes**2).sum(-1).clip(1e-12), 1e-6)
    objective = (weights * (y - spans[..., None] * shapes) ** 2).sum(-1)
    objective = objective + ((MIDPOINTS - PRIOR_MIDPOINT) ** 2 / MIDPOINT_TOLERANCE)[:, None]
    objective = objective + np.log(WIDTHS / PRIOR_WIDTH) ** 2 / WIDTH_TOLERANCE
    best, column = np.unravel_index(int(objective.argmin()), objective.shape)
    return float(spans[best, column]), float(midpoints[best, 0]), float(widths[0, column])


def fit_correction(places: Floats, values: Floats, noise: Floats, grid: Floats) -> tuple[Floats, Floats, float]:
    """A Gaussian process on residuals; amplitude and residual deviation maximise its marginal likelihood.

    Args:
        places: (n,): logarithms of the losses.
        values: (n,): residuals of the logistic curve.
        noise: (n,): their variances of measurement.
        grid: (grid,): where it is evaluated.

    Returns:
        Posterior mean and variance on the grid, and the residual deviation.
    """
    best = (-np.inf, 0.0, PRIOR_RESIDUAL)
    for residual in RESIDUALS:
        total = noise + residual**2
        x, y, variances = binned(places, values, total)
        kernel, inside = squared_exponential(x, x), 0.0
        if len(x) < len(places):  # The spread within bins tells the residual too.
            inside = -0.5 * float((np.log(total) + (values - np.interp(places, x, y)) ** 2 / total).sum())
        for amplitude in AMPLITUDES:
            factor = np.linalg.cholesky(amplitude**2 * kernel + np.diag(variances))
            white = np.linalg.solve(factor, y)
            likelihood = inside - 0.5 * float(white @ white) - float(np.log(np.diag(factor)).sum())
            best = max(best, (likelihood, amplitude, residual))
    _, amplitude, residual = best
    x, y, variances = binned(places, values, noise + residual**2)
    across = amplitude**2 * squared_exponential(grid, x)
    solved = np.linalg.solve(amplitude**2 * squared_exponential(x, x) + np.diag(variances), np.c_[y, across.T])
    variance = amplitude**2 - np.einsum("ij,ji->i", across, solved[:, 1:])
    return across @ solved[:, 0], np.maximum(variance, 0.0), residual


def binned(places: Floats, values: Floats, variances: Floats) -> tuple[Floats, Floats, Floats]:
    """At most `BINS` groups of neighbours as their precision-weighted means, with the variances of these."""
    order = np.argsort(places, kind="stable")
    groups = np.array_split(order, min(BINS, len(order)))
    weights = [1 / variances[group] for group in groups]
    x, y = (
        np.array([weight @ column[group] / weight.sum() for group, weight in zip(groups, weights, strict=True)])
        for column in (places, values)
    )
    return x, y, np.array([1 / weight.sum() for weight in weights])


def squared_exponential(ones: Floats, others: Floats) -> Floats:
    """(ones, others): the kernel between two sets of places, of amplitude 1."""
    return np.asarray(np.exp(-0.5 * ((ones[:, None] - others) / LENGTH) ** 2))


def falling(values: Floats) -> Floats:
    """The mean of the largest falling curve below some values and the smallest above them."""
    return 0.5 * (np.minimum.accumulate(values) + np.maximum.accumulate(values[::-1])[::-1])


def sigmoid(values: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * values))
