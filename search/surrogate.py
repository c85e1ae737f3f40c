"""What a policy will cost and lose, from every policy that was measured.

Costs are sums over the variables, learned by least squares. Losses are not: choices interact, so they get a Gaussian
process (Rasmussen and Williams 2006) whose kernel holds every single choice and every pair of them. Both begin with
what is known before: unmeasured choices are like equal choices of other layers, and like other choices of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .additive import Codes, Floats
from .alternatives import OWN, Alternatives

SCALES = (0.03, 0.1, 0.3, 1.0, 3.0, np.inf)  # of typical losses
PAIRS = (0.1, 1.0)
LOCALITIES = (0, 1, 2)
NOISES = (0.02, 0.2)
RIDGES = (1e-6, 1e-2, 1e-1)


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
class Setting:
    """What is chosen for a surrogate by the evidence of the data.

    Attributes:
        link: The scale on which choices add up.
        pairs: How strong interactions of two choices are, as a share of what both do alone.
        locality: How much less interactions say about policies that have less in common: 0 not at all.
        noise: How far a measurement strays, as a share of the median loss.
    """

    link: Link
    pairs: float
    locality: int
    noise: float


class Surrogate:
    """A Gaussian process over policies, for the loss.

    Args:
        alternatives: What may be chosen.
        weights: (features,) positive: how much each choice is expected to lose, up to a common factor.
        codes: (n, variables): the policies that were measured.
        losses: (n,): what each of them loses against dense.
        interactions: Whether pairs of choices have an effect of their own.
    """

    def __init__(
        self, alternatives: Alternatives, weights: Floats, codes: Codes, losses: Floats, interactions: bool = True
    ) -> None:
        self._alternatives, self._weights = alternatives, weights
        features = alternatives.features(codes)
        self.setting = self._best_setting(features, losses, PAIRS if interactions else (0.0,))
        self.link = self.setting.link
        self._fit(features, losses)

    def _prepare(self, features: Floats, linked: Floats) -> None:
        """Scale what was expected to what was measured."""
        expected = features @ self._weights
        seen = expected > 0
        self._level, rate = 1.0, 1.0
        if seen.any():
            # Of a coarse accuracy more than half of the losses may be 0.
            self._level = typical(linked[seen])
            rate = max(np.median(linked[seen] / expected[seen]), 0.1 * self._level / np.median(expected[seen]))
        self._prior = rate * self._weights
        self._covariance = self._prior[:, None] * self._alternatives.relation * self._prior

    def _common(self, one: Floats, other: Floats) -> tuple[Floats, Floats]:
        """How much two sets of policies change the same variables, and the cosine of that.

        The square of the first holds every pair of choices.
        """
        weight = np.sqrt(self._prior)
        one, other = one * weight, other * weight
        by_variable = [side @ self._alternatives.membership for side in (one, other)]
        common = 0.5 * (one @ other.T + by_variable[0] @ by_variable[1].T)
        lengths = [np.sqrt((side**2).sum(1) + 1e-9 * self._level) for side in (one, other)]
        return common, common / np.outer(*lengths)

    def _best_setting(self, features: Floats, losses: Floats, strengths: Sequence[float]) -> Setting:
        """The setting of largest marginal likelihood."""
        best, most = Setting(Link(np.inf), strengths[0], LOCALITIES[0], NOISES[0]), -np.inf
        for scale in SCALES:
            link = Link(scale * typical(losses))
            linked = link(losses)
            self._prepare(features, linked)
            alone = features @ self._covariance @ features.T
            common, cosine = self._common(features, features)
            rest = linked - features @ self._prior
            for strength, locality, noise in product(strengths, LOCALITIES, NOISES):
                deviation = self._deviation(noise)
                covariance = alone + strength * common**2 * cosine**locality + deviation**2 * np.eye(len(losses))
                root, misfit = factorised(covariance, rest, deviation)
                evidence = -0.5 * misfit @ misfit - np.log(np.diag(root)).sum() + link.log_slope(losses).sum()
                if evidence > most:
                    best, most = Setting(link, strength, locality, noise), evidence
        return best

    def _deviation(self, noise: float) -> float:
        return noise * self._level

    def _fit(self, features: Floats, losses: Floats) -> None:
        linked = self.link(losses)
        self._prepare(features, linked)
        self._noise = self._deviation(self.setting.noise) ** 2
        self._features, self._rest = features, linked - features @ self._prior
        self._projected = features @ self._covariance
        self._inverse = np.linalg.inv(self._cross(features) + self._noise * np.eye(len(losses)))

    def _cross(self, features: Floats) -> Floats:
        common, cosine = self._common(features, self._features)
        return features @ self._projected.T + self.setting.pairs * common**2 * cosine**self.setting.locality

    def _own(self, features: Floats) -> Floats:
        """The prior variance of each policy."""
        weighted, space = features * self._prior, self._alternatives
        shared = weighted @ space.shared
        alone = (shared**2).sum(1) + OWN * (weighted**2).sum(1)
        # Of a variable one choice is made at most: both parts of the similarity are the same sum.
        return alone + self.setting.pairs * (features @ self._prior) ** 2

    def with_measured(self, codes: Codes, losses: Floats) -> Self:
        """A surrogate that also knows these policies; the setting stays."""
        return self._with(codes, self.link(losses))

    def with_pending(self, codes: Codes) -> Self:
        """A surrogate that takes what it expects of these policies as measured."""
        known = self
        for code in codes:
            known = known._with(code[None], known.predict(code[None])[0])
        return known

    def _with(self, codes: Codes, linked: Floats) -> Self:
        """The inverse grows by blocks, one policy at a time, so that the result depends on their order alone."""
        known = self
        for code, value in zip(codes, linked, strict=True):
            features = known._alternatives.features(code[None])
            cross = known._cross(features)[0]
            gain = known._inverse @ cross
            left = max(float(known._own(features)[0] + known._noise - cross @ gain), known._noise)
            grown = object.__new__(type(self))
            grown.__dict__.update(known.__dict__)
            corner = np.r_[-gain, 1.0]
            grown._inverse = np.pad(known._inverse, (0, 1)) + np.outer(corner, corner) / left
            grown._features = np.vstack([known._features, features])
            grown._rest = np.r_[known._rest, value - features[0] @ known._prior]
            grown._projected = np.vstack([known._projected, features @ known._covariance])
            known = grown
        return known

    def predict(self, codes: Codes) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the loss of each policy, on the scale of the link."""
        features = self._alternatives.features(codes)
        cross = self._cross(features)
        gain = cross @ self._inverse
        variance = self._own(features) - np.einsum("ij,ij->i", gain, cross)
        return features @ self._prior + gain @ self._rest, np.sqrt(np.maximum(variance, 1e-6 * self._noise))

    def mean(self, codes: Codes) -> Floats:
        """The expected loss of each policy, on the scale of the link; cheaper than `predict`."""
        features = self._alternatives.features(codes)
        expected: Floats = features @ self._prior + self._cross(features) @ (self._inverse @ self._rest)
        return expected

    def alone(self) -> Floats:
        """(features,): what each choice is expected to lose by itself, on the scale of the link."""
        by_feature: Floats = self._prior + self._projected.T @ (self._inverse @ self._rest)
        return by_feature


def typical(losses: Floats) -> float:
    """About how large losses are; above 0, so that it can be divided by."""
    sizes = np.abs(losses)
    return max(float(np.median(sizes)), 0.1 * float(np.mean(sizes)), 1e-12)


def factorised(covariance: Floats, rest: Floats, noise: float) -> tuple[Floats, Floats]:
    """The Cholesky factor, and what solves factor @ x = rest: the last row of the factor of the bordered matrix."""
    count = len(rest)
    bordered = np.pad(covariance, (0, 1))
    bordered[count, :count] = bordered[:count, count] = rest
    # Larger than any x @ x can be: no eigenvalue of the covariance is below the noise.
    bordered[count, count] = 1 + rest @ rest / noise**2
    root = np.linalg.cholesky(bordered).astype(np.float64, copy=False)
    return root[:count, :count], root[count, :count]


def fit_costs(alternatives: Alternatives, codes: Codes, figures: Floats) -> tuple[Floats, float]:
    """Least squares for a figure that is a sum over variables; choices of equal value are expected to be alike.

    Args:
        alternatives: What may be chosen.
        codes: (n, variables): the policies that were measured.
        figures: (n,): what each of them costs, minus what dense costs.

    Returns:
        (features,): what each choice adds; and how far the sum strays from what was measured.
    """
    features = alternatives.features(codes)
    alike = alternatives.kind[:, None] == alternatives.kind
    unit = max(float(np.abs(figures).max(initial=0.0)), 1e-300) / alternatives.count
    precision = np.linalg.inv(alike + 0.1 * np.eye(len(alike))) / unit**2

    def solved(rows: NDArray[np.bool_], ridge: float) -> Floats:
        some, weight = features[rows], (ridge * unit) ** -2
        found = np.linalg.solve(some.T @ some * weight + precision, some.T @ figures[rows] * weight)
        return found.astype(np.float64, copy=False)

    every, half = np.ones(len(codes), bool), np.arange(len(codes)) % 2 == 0
    errors = [np.abs(figures - features @ solved(half, ridge))[~half].sum() for ridge in RIDGES]
    by_feature = solved(every, RIDGES[int(np.argmin(errors))])
    return by_feature, float(np.std(figures - features @ by_feature))
