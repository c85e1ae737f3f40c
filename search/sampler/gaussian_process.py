"""What a policy will lose, from every policy that was measured.

Losses are no sums over the variables: choices interact. So they get a Gaussian process (Rasmussen and Williams 2006)
whose kernel holds every single choice and every pair of them, and some pairs of variables by themselves. It begins with
what is known before: unmeasured choices are like equal choices of other layers, and like other choices of their own.
"""

from copy import copy
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Self

import numpy as np

from ..trial.arrays import Codes, Floats
from .gp_prior import Link, Prior, single
from .interactions import Pairs
from .search_space import Alternatives

SCALES = (0.1, 0.3, 1.0, 3.0, np.inf)  # of typical losses
PAIRS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
NOISES = (0.005, 0.02, 0.1, 0.3)
ALIKE = (0.5, 0.8)
SETTLED = 400  # policies that the setting is learned from at most
OUTLYING = 100  # times the usual loss, beyond which a loss says nothing of how large others are
EXTRA = 0.4  # what a pair of variables is first taken to do besides, as a share of the variance of interactions
FEWEST = 60  # policies, measured on all examples, that such pairs are learned from: of fewer all explain as much
ROWS = 256  # of a triangle that are multiplied at once


@dataclass(frozen=True)
class Setting:
    """What the evidence of the data chooses.

    Attributes:
        scale: Of the link, in typical losses.
        pairs: How strong interactions of two choices are, as a share of what both do alone.
        noise: How far a measurement strays, as a share of the typical loss.
        alike: How much of their interactions the choices of one variable share.
    """

    scale: float = np.inf
    pairs: float = PAIRS[1]
    noise: float = NOISES[1]
    alike: float = ALIKE[0]


@dataclass(frozen=True)
class Learned:
    """Policies that a surrogate knows, in their order.

    Attributes:
        choices: (n, choices): 1 where they make it.
        projected: (n, features): by `Prior.projected`.
        related: (n, choices): by `Prior.related`.
        whitening: (n, n): what they are multiplied by to be independent: the inverse of a Cholesky factor.
    """

    choices: Floats
    projected: Floats
    related: Floats
    whitening: Floats

    def rounded(self) -> "Learned":
        """The same in single precision, but for the choices."""
        return Learned(self.choices, single(self.projected), single(self.related), single(self.whitening))

    def white(self, cross: Floats) -> Floats:
        """(m, n): of covariances of others with these, what each of these tells that those before it did not."""
        found = np.empty_like(cross)
        for first in range(0, cross.shape[1], ROWS):
            end = first + ROWS
            # What is right of the diagonal is 0.
            found[:, first:end] = cross[:, :end] @ self.whitening[first:end, :end].T
        return found

    def joined(self, white: Floats, others: "Learned") -> "Learned":
        """These and others after them, of which `white` is known, and the whitening of what that leaves."""
        count, total = len(self.whitening), len(self.whitening) + len(white)
        whitening = np.zeros((total, total))
        whitening[:count, :count] = self.whitening
        whitening[count:, :count] = -others.whitening @ white @ self.whitening
        whitening[count:, count:] = others.whitening
        return Learned(
            np.vstack([self.choices, others.choices]), np.vstack([self.projected, others.projected]),
            np.vstack([self.related, others.related]), whitening,
        )  # fmt: skip


class Surrogate:
    """A Gaussian process over policies, for the loss.

    Its mean is a quadratic function of the choices, so that it costs the same however much was measured.

    Args:
        alternatives: What may be chosen.
        weights: (choices,) positive: how much each choice is expected to lose, up to a common factor.
        codes: (n, variables): the policies that were measured.
        losses: (n,): what each of them loses against dense.
        errors: (n,): their standard errors; 0 of what was measured on all examples.
        pairs: Whether pairs of choices have an effect of their own.
        sparse: Whether some pairs of variables are learned by themselves; it takes `FEWEST` policies.

    Attributes:
        awaited: (pending,): the expected losses of policies that are being measured, on the scale of the link.
    """

    def __init__(
        self, alternatives: Alternatives, weights: Floats, codes: Codes, losses: Floats, errors: Floats,
        pairs: bool = True, sparse: bool = False,
    ) -> None:  # fmt: skip
        self._alternatives, self._weights = alternatives, weights
        features = alternatives.features(codes)
        some = np.linspace(0, len(losses) - 1, min(len(losses), SETTLED)).round().astype(int)
        sample = features[some], losses[some], errors[some]
        self._pairs = Pairs.every(np.zeros((features.shape[1], 0)), 0.0)
        likely, begun = self._settled(Setting(pairs=Setting.pairs if pairs else 0.0), None, *sample)
        self._fit(self._expected(begun, None, *sample[:2]), *sample)
        # How far a choice may stray, and what it does in pairs, follows what it was found to do by itself.
        spread: Floats | None = np.hypot(self.alone(), self._deviations())
        more, learned = self._settled(begun, spread, *sample)
        if more < likely:
            learned, spread = begun, None
        self.setting = learned
        prior = self._expected(learned, spread, features, losses)
        if pairs and sparse:
            prior = self._paired(prior, features, losses, errors)
        self._fit(prior, self._features(codes), losses, errors)

    def _settled(
        self, setting: Setting, spread: Floats | None, features: Floats, losses: Floats, errors: Floats
    ) -> tuple[float, Setting]:
        """The most evidence that a setting has, and that setting: part after part, twice, begun with each `alike`.

        How strong pairs are depends on how far choices share them: changed alone, neither would leave a poor setting.
        """
        pairs = PAIRS if setting.pairs else (0.0,)

        @cache
        def parts(scale: float, alike: float) -> tuple[Floats, Floats]:
            prior = self._expected(replace(setting, scale=scale, alike=alike), spread, features, losses)
            return features @ prior.covariance @ features.T, (features @ prior.relation @ features.T) ** 2

        @cache
        def evidence(one: Setting) -> float:
            alone, paired = parts(one.scale, one.alike)
            prior = self._expected(one, spread, features, losses)
            return prior.evidence(alone + prior.pairs * paired, features, losses, errors)

        found = []
        for alike in ALIKE:
            best = replace(setting, alike=alike)
            for name, options in 2 * (("noise", NOISES), ("pairs", pairs), ("scale", SCALES)):
                best = max((replace(best, **{name: option}) for option in options), key=evidence)
            found.append(best)
        best = max(found, key=evidence)
        return evidence(best), best

    def _expected(self, setting: Setting, spread: Floats | None, features: Floats, losses: Floats) -> Prior:
        """What was expected, on the scale of what was measured; choices stray as far as they lose, or as said."""
        link = Link(setting.scale * typical(losses))
        linked, expected = link(losses), features @ self._weights
        seen = expected > 0
        level, rate = 1.0, 1.0
        if seen.any():
            # Of a coarse accuracy more than half of the losses may be 0.
            level = typical(linked[seen])
            rate = max(np.median(linked[seen] / expected[seen]), 0.1 * level / np.median(expected[seen]))
        mean = rate * self._weights
        spread = mean if spread is None else np.maximum(spread, 1e-3 * level)
        outer = np.outer(spread, spread)
        covariance = outer * self._alternatives.relation
        relation = np.sqrt(outer) * self._alternatives.likeness(setting.alike)
        return Prior(link, mean, covariance, relation, setting.pairs, (setting.noise * level) ** 2, np.zeros(0))

    def _paired(self, prior: Prior, choices: Floats, losses: Floats, errors: Floats) -> Prior:
        """Learn which variables interact most, as many pairs as there are choices; what then is expected."""
        covariance = prior.covariances(choices, prior.projected(choices), prior.related(choices))
        sizes = np.sqrt(np.diag(prior.relation))[:, None] * self._alternatives.membership
        # The kernel holds every pair twice.
        pairs = Pairs.every(sizes, 2 * EXTRA * prior.pairs)
        misfit, strayed = prior.rest(choices, losses), prior.strayed(losses, errors)
        self._pairs = pairs.learned(choices, misfit, covariance + strayed, choices.shape[1])
        return replace(prior, own=self._pairs.variances)

    def _features(self, codes: Codes) -> Floats:
        choices = self._alternatives.features(codes)
        return np.hstack([choices, self._pairs.features(choices)])

    def _fit(self, prior: Prior, features: Floats, losses: Floats, errors: Floats) -> None:
        self.link, self._prior = prior.link, prior
        self._rest = prior.rest(features, losses)
        nobody, nothing = features[:0], prior.choices(features[:0])
        self._known = Learned(nothing, nobody, nothing, np.zeros((0, 0)))
        self._learn(features, prior.strayed(losses, errors))
        self._explain()

    def _learn(self, features: Floats, strayed: Floats) -> None:
        self._known = self._known.joined(*self._told(features, strayed))
        self._pending, self.awaited = self._told(features[:0], np.zeros((0, 0))), np.zeros(0)

    def _told(self, features: Floats, strayed: Floats) -> tuple[Floats, Learned]:
        """Some more policies, whose measurements stray with this covariance, given all that are known."""
        prior, known = self._prior, self._known
        projected, related = prior.projected(features), prior.related(features)
        white = known.white(prior.covariances(features, known.projected, known.related))
        left = prior.covariances(features, projected, related) + strayed - white @ white.T
        return white, Learned(prior.choices(features), projected, related, np.linalg.inv(np.linalg.cholesky(left)))

    def _explain(self) -> None:
        """What every measurement tells beyond those before it, and what choices and pairs of variables lose by that."""
        known = self._known
        self._news = known.whitening @ self._rest
        self._weight = known.whitening.T @ self._news
        alone, self._factors = np.split(known.projected.T @ self._weight, [len(self._prior.mean)])
        self._linear: Floats = self._prior.mean + alone

    def _deviations(self) -> Floats:
        """(choices,): how uncertain is what each loses by itself."""
        known = ((self._known.whitening @ self._known.projected) ** 2).sum(0)
        deviations: Floats = np.sqrt(np.maximum(np.diag(self._prior.covariance) - known, 0.0))
        return deviations

    @property
    def noise(self) -> float:
        """The variance of a measurement on all examples, on the scale of the link."""
        return self._prior.noise

    def with_measured(self, codes: Codes, losses: Floats, errors: Floats) -> Self:
        """A surrogate that also knows these policies; the setting stays."""
        if not len(codes):
            return self
        grown, features = self._copy(), self._features(codes)
        grown._rest = np.r_[self._rest, self._prior.rest(features, losses)]
        # One at a time, so that the result depends on their order alone.
        for row, strayed in zip(features, np.diag(self._prior.strayed(losses, errors)), strict=True):
            grown._learn(row[None], strayed[None, None])
        grown._explain()
        return grown

    def with_pending(self, codes: Codes) -> Self:
        """A surrogate that takes what it expects of these policies as measured: its mean stays."""
        waiting, features = self._copy(), self._features(codes)
        white, _ = waiting._pending = self._told(features, self.noise * np.eye(len(codes)))
        waiting.awaited = self._prior.choices(features) @ self._prior.mean + white @ self._news
        return waiting

    def _copy(self) -> Self:
        copied = copy(self)
        copied.__dict__.pop("_rounded", None)
        return copied

    @cached_property
    def _rounded(self) -> tuple[Prior, Pairs, Learned, Floats, Floats, Learned]:
        """What predictions are computed from: single precision takes half the time."""
        white, pending = self._pending
        return (
            self._prior.rounded(), self._pairs.rounded(), self._known.rounded(), single(self._news), single(white),
            pending.rounded(),
        )  # fmt: skip

    def predict(self, codes: Codes) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the loss of each policy, on the scale of the link."""
        prior, pairs, known, news, told, pending = self._rounded
        choices = single(self._alternatives.features(codes))
        features = np.hstack([choices, pairs.features(choices)])
        white = known.white(prior.covariances(features, known.projected, known.related))
        left = pending.white(prior.covariances(features, pending.projected, pending.related) - white @ told.T)
        variance = prior.variances(features).astype(float)
        variance -= np.einsum("ij,ij->i", white, white) + np.einsum("ij,ij->i", left, left)
        mean = (choices @ prior.mean + white @ news).astype(float)
        return mean, np.sqrt(np.maximum(variance, 1e-6 * self.noise))

    def mean(self, codes: Codes) -> Floats:
        """The expected loss of each policy, on the scale of the link; of many policies cheaper than `predict`."""
        choices, related = self._alternatives.features(codes), self._known.related
        common: Floats = self._prior.pairs * (related.T * self._weight) @ related
        sizes = choices @ self._pairs.sizes
        expected: Floats = choices @ self._linear + np.einsum("ij,ij->i", choices @ common, choices)
        return expected + np.einsum("ij,ij->i", sizes @ self._pairs.between(self._factors), sizes) / 2

    def added(self, codes: Codes) -> Floats:
        """What each choice is expected to add to each policy, were its variable there to do what dense does.

        Returns:
            (policies, choices): on the scale of the link.
        """
        prior, known, pairs = self._prior, self._known, self._pairs
        choices = self._alternatives.features(codes)
        with_all = (choices @ known.related.T * self._weight) @ known.related
        # What is related is of one variable.
        own = self._weight @ known.choices
        with_own = (choices @ prior.relation * own) @ prior.relation
        common: Floats = prior.pairs * (own @ prior.relation**2 + 2 * (with_all - with_own))
        return self._linear + common + choices @ pairs.sizes @ pairs.between(self._factors) @ pairs.sizes.T

    def alone(self) -> Floats:
        """(choices,): what each choice is expected to lose by itself, on the scale of the link."""
        return self.added(np.zeros((1, self._alternatives.count), np.int16))[0]


def typical(losses: Floats) -> float:
    """About how large losses are, whatever a few may be; above 0, so that it can be divided by."""
    sizes = np.abs(losses)
    usual = np.minimum(sizes, OUTLYING * np.median(sizes[sizes > 0]) if sizes.any() else 0.0)
    return max(float(np.median(sizes)), 0.1 * float(np.mean(usual)), 1e-12)
