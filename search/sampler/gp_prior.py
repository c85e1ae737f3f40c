"""Prior of the Gaussian process over losses: output warping, mean, kernel, noise and marginal likelihood."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from ..trial.arrays import Floats


@dataclass(frozen=True)
class OutputWarping:
    """Output warping: maps losses to a scale on which effects add up, linear for small losses, then logarithmic.

    Attributes:
        scale: The loss at which it turns logarithmic; infinite for no warping.
    """

    scale: float

    def __call__(self, loss: Floats) -> Floats:
        """Warped losses."""
        return loss if np.isinf(self.scale) else self.scale * np.arcsinh(loss / self.scale)

    def inverse(self, warped: Floats) -> Floats:
        """Losses from warped ones."""
        return self.scale * np.sinh(np.clip(warped / self.scale, -50, 50)) if np.isfinite(self.scale) else warped

    def log_slope(self, loss: Floats) -> Floats:
        """Logarithm of the derivative at a loss."""
        return -0.5 * np.log1p((loss / self.scale) ** 2)


@dataclass(frozen=True)
class Prior:
    """Gaussian process prior over warped losses.

    The features of a policy are its choices, one-hot. The kernel is linear in them, plus a quadratic term for the
    interactions of all pairs of choices.

    Attributes:
        warping: Output warping of the losses.
        mean: (choices,): expected effect of each choice.
        covariance: (choices, choices): of those effects.
        interaction_root: (choices, choices): its elementwise square is the covariance of interactions, up to scale.
        interaction_variance: The scale of that covariance.
        noise: Variance of a measurement on all examples.
    """

    warping: OutputWarping
    mean: Floats
    covariance: Floats
    interaction_root: Floats
    interaction_variance: float
    noise: float

    def project(self, choices: Floats) -> Floats:
        """(n, choices): choices times their prior covariance, the linear term's half of the kernel."""
        return choices @ self.covariance

    def project_interactions(self, choices: Floats) -> Floats:
        """(n, choices): choices times `interaction_root`, the quadratic term's half of the kernel."""
        return choices @ self.interaction_root

    def cross_covariance(self, choices: Floats, projected: Floats, interactions: Floats) -> Floats:
        """(n, m): prior covariances between policies and others.

        Args:
            choices: (n, choices): of the policies.
            projected: (m, choices): of the others, see `project`.
            interactions: (m, choices): of the others, see `project_interactions`.
        """
        return choices @ projected.T + self.interaction_variance * (choices @ interactions.T) ** 2

    def variances(self, choices: Floats) -> Floats:
        """(n,): prior variance of each policy."""
        main: Floats = np.einsum("ij,ij->i", choices @ self.covariance, choices)
        # The diagonal suffices: a policy has at most one choice of a variable, and choices of different variables are
        # uncorrelated in `interaction_root`.
        return main + self.interaction_variance * (choices @ np.diag(self.interaction_root)) ** 2

    def residuals(self, choices: Floats, losses: Floats) -> Floats:
        """(n,): warped losses minus their prior mean."""
        return self.warping(losses) - choices @ self.mean

    def noise_covariance(self, losses: Floats, errors: Floats) -> Floats:
        """(n, n): noise covariance of warped losses.

        Args:
            losses: (n,).
            errors: (n,): standard errors of the losses, besides the noise of every measurement.
        """
        return np.diag(self.noise + (errors * np.exp(self.warping.log_slope(losses))) ** 2)

    def log_evidence(self, covariance: Floats, choices: Floats, losses: Floats, errors: Floats) -> float:
        """Log marginal likelihood of losses (Rasmussen and Williams 2006, 2.30), up to a constant.

        Args:
            covariance: (n, n): prior covariance of the policies.
            choices: (n, choices): of the policies.
            losses: (n,): their losses.
            errors: (n,): standard errors of the losses.
        """
        residuals, noise = self.residuals(choices, losses), np.sqrt(self.noise)
        cholesky, whitened = whiten(covariance + self.noise_covariance(losses, errors), residuals, noise)
        log_jacobian = self.warping.log_slope(losses).sum()
        return float(-0.5 * whitened @ whitened - np.log(np.diag(cholesky)).sum() + log_jacobian)

    def in_single_precision(self) -> Self:
        """The same prior in single precision."""
        return replace(
            self, mean=single(self.mean), covariance=single(self.covariance),
            interaction_root=single(self.interaction_root),
        )  # fmt: skip


def single(values: Floats) -> Floats:
    """Converts to single precision."""
    return values.astype(np.float32)


def whiten(covariance: Floats, residuals: Floats, noise: float) -> tuple[Floats, Floats]:
    """The Cholesky factor L of a covariance, and the x that solves L @ x = residuals.

    Both come from one factorisation: x is the last row of the factor of the covariance bordered by the residuals.

    Args:
        covariance: (n, n).
        residuals: (n,).
        noise: Standard deviation of the noise: no eigenvalue of the covariance is below its square.
    """
    count = len(residuals)
    bordered = np.pad(covariance, (0, 1))
    bordered[count, :count] = bordered[:count, count] = residuals
    # Greater than x @ x, so that the bordered matrix is positive definite.
    bordered[count, count] = 1 + residuals @ residuals / noise**2
    cholesky = np.linalg.cholesky(bordered).astype(np.float64, copy=False)
    return cholesky[:count, :count], cholesky[count, :count]
