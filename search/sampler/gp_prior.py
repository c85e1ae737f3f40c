"""What is expected of the losses of policies before they are measured, and how likely that makes what was measured."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from ..trial.arrays import Floats


@dataclass(frozen=True)
class Link:
    """Losses on a scale on which choices add up: straight for small ones, logarithmic beyond `scale`."""

    scale: float

    def __call__(self, loss: Floats) -> Floats:
        """A loss on the scale of the link."""
        return loss if np.isinf(self.scale) else self.scale * np.arcsinh(loss / self.scale)

    def inverse(self, linked: Floats) -> Floats:
        """Back to the loss."""
        return self.scale * np.sinh(np.clip(linked / self.scale, -50, 50)) if np.isfinite(self.scale) else linked

    def log_slope(self, loss: Floats) -> Floats:
        """The logarithm of the derivative."""
        return -0.5 * np.log1p((loss / self.scale) ** 2)


@dataclass(frozen=True)
class Prior:
    """What is expected of policies before they are measured, on the scale of the link.

    The features of a policy are its choices, and after them some pairs of variables.

    Attributes:
        link: That scale.
        mean: (choices,): what each loses.
        covariance: (choices, choices): of what they lose.
        relation: (choices, choices): its square is the covariance of interactions.
        pairs: The size of those.
        noise: The variance of measurements.
        own: (pairs,): the variances of what pairs of variables do besides.
    """

    link: Link
    mean: Floats
    covariance: Floats
    relation: Floats
    pairs: float
    noise: float
    own: Floats

    def choices(self, features: Floats) -> Floats:
        """The features that are no pairs."""
        return features[:, : len(self.mean)]

    def projected(self, features: Floats) -> Floats:
        """(n, features): multiplied by the covariance of the features."""
        choices = self.choices(features)
        return np.hstack([choices @ self.covariance, features[:, len(self.mean) :] * self.own])

    def related(self, features: Floats) -> Floats:
        """(n, choices): the choices, multiplied by `relation`."""
        return self.choices(features) @ self.relation

    def covariances(self, features: Floats, projected: Floats, related: Floats) -> Floats:
        """Between policies, and others of which `projected` and `related` are known."""
        return features @ projected.T + self.pairs * (self.choices(features) @ related.T) ** 2

    def variances(self, features: Floats) -> Floats:
        """Of each policy."""
        choices = self.choices(features)
        alone: Floats = np.einsum("ij,ij->i", choices @ self.covariance, choices)
        own: Floats = features[:, len(self.mean) :] ** 2 @ self.own
        # Of a variable one choice is made at most, and others are not related.
        return alone + own + self.pairs * (choices @ np.diag(self.relation)) ** 2

    def rest(self, features: Floats, losses: Floats) -> Floats:
        """(n,): how far losses are from what is expected."""
        return self.link(losses) - self.choices(features) @ self.mean

    def rounded(self) -> Self:
        """The same in single precision."""
        return replace(
            self, mean=single(self.mean), covariance=single(self.covariance), relation=single(self.relation),
            own=single(self.own),
        )  # fmt: skip

    def strayed(self, losses: Floats, errors: Floats) -> Floats:
        """(n, n): the covariance of how far measurements stray, of losses with these standard errors."""
        return np.diag(self.noise + (errors * np.exp(self.link.log_slope(losses))) ** 2)

    def evidence(self, covariance: Floats, features: Floats, losses: Floats, errors: Floats) -> float:
        """The logarithm of the marginal likelihood (Rasmussen and Williams 2006, 2.30), up to a constant.

        Args:
            covariance: (n, n): of policies.
            features: (n, features): of the same.
            losses: (n,): what they lose.
            errors: (n,): the standard errors of that.
        """
        rest, noise = self.rest(features, losses), np.sqrt(self.noise)
        root, misfit = factorised(covariance + self.strayed(losses, errors), rest, noise)
        return float(-0.5 * misfit @ misfit - np.log(np.diag(root)).sum() + self.link.log_slope(losses).sum())


def single(figures: Floats) -> Floats:
    """In single precision."""
    return figures.astype(np.float32)


def factorised(covariance: Floats, rest: Floats, noise: float) -> tuple[Floats, Floats]:
    """The Cholesky factor, and what solves factor @ x = rest: the last row of the factor of the bordered matrix."""
    count = len(rest)
    bordered = np.pad(covariance, (0, 1))
    bordered[count, :count] = bordered[:count, count] = rest
    # Larger than any x @ x can be: no eigenvalue of the covariance is below the noise.
    bordered[count, count] = 1 + rest @ rest / noise**2
    root = np.linalg.cholesky(bordered).astype(np.float64, copy=False)
    return root[:count, :count], root[count, :count]
