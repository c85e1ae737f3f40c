"""Surrogate model: a Gaussian process over policies that predicts their loss.

Losses are not sums over the variables, because choices interact. So the kernel (Rasmussen and Williams 2006) has a
main effect for every choice and an interaction for every pair of choices. Its prior expects a choice to have an effect
similar to equal choices of other layers, to other choices of its own layer, and most of all to close ratios there.
"""

from copy import copy
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Self

import numpy as np

from ..trial.arrays import Codes, Floats
from .gp_prior import OutputWarping, Prior, single
from .search_space import CategoricalSpace

WARPING_SCALES = (0.1, 0.3, 1.0, 3.0, np.inf)  # in units of the typical loss
INTERACTIONS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
NOISES = (0.005, 0.02, 0.1, 0.3)
SHARED_INTERACTIONS = (0.5, 0.8)
MAX_EVIDENCE_POLICIES = 400  # policies that the hyperparameters are fitted to, at most
OUTLIER = 100  # multiple of the median loss at which losses are clipped before the typical loss is computed
BLOCK_ROWS = 256  # rows of a triangular matrix that are multiplied at once


@dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameters of the prior, chosen by the evidence from the grids of this file.

    Attributes:
        warping_scale: Scale of the output warping, in units of the typical loss.
        interactions: Variance of an interaction, as a share of the product of the two main effects' sizes.
        noise: Standard deviation of a measurement, as a share of the typical warped loss.
        shared_interactions: Correlation of the interactions of two choices of one variable.
    """

    warping_scale: float = np.inf
    interactions: float = INTERACTIONS[1]
    noise: float = NOISES[1]
    shared_interactions: float = SHARED_INTERACTIONS[0]


@dataclass(frozen=True)
class TrainingSet:
    """Policies that the posterior is conditioned on, in their order.

    Attributes:
        choices: (n, choices): one-hot.
        projected: (n, choices): by `Prior.project`.
        interactions: (n, choices): by `Prior.project_interactions`.
        whitening: (n, n): inverse of the Cholesky factor of their covariance; it makes their residuals independent.
    """

    choices: Floats
    projected: Floats
    interactions: Floats
    whitening: Floats

    def in_single_precision(self) -> "TrainingSet":
        """The same policies in single precision, except their choices."""
        return TrainingSet(self.choices, single(self.projected), single(self.interactions), single(self.whitening))

    def whiten(self, cross: Floats) -> Floats:
        """(m, n): whitened covariances of other policies with these.

        Args:
            cross: (m, n): the covariances.
        """
        whitened = np.empty_like(cross)
        for first in range(0, cross.shape[1], BLOCK_ROWS):
            end = first + BLOCK_ROWS
            # The whitening is lower triangular, so only the columns up to the diagonal count.
            whitened[:, first:end] = cross[:, :end] @ self.whitening[first:end, :end].T
        return whitened

    def joined(self, whitened: Floats, others: "TrainingSet") -> "TrainingSet":
        """These policies followed by others.

        Args:
            whitened: (others, n): the others' whitened covariances with these.
            others: The others; their `whitening` is of their covariance conditioned on these.
        """
        count, total = len(self.whitening), len(self.whitening) + len(whitened)
        whitening = np.zeros((total, total))
        whitening[:count, :count] = self.whitening
        whitening[count:, :count] = -others.whitening @ whitened @ self.whitening
        whitening[count:, count:] = others.whitening
        return TrainingSet(
            np.vstack([self.choices, others.choices]), np.vstack([self.projected, others.projected]),
            np.vstack([self.interactions, others.interactions]), whitening,
        )  # fmt: skip


class Surrogate:
    """A Gaussian process over policies that predicts the loss.

    Its posterior mean is a quadratic function of the choices, so `mean` costs the same however many policies were
    measured.

    Args:
        space: The search space.
        weights: (choices,) positive: expected effect of each choice, up to a common factor.
        codes: (n, variables): the measured policies.
        losses: (n,): their losses above dense's.
        errors: (n,): standard errors of the losses; 0 for a policy measured on all examples.

    Attributes:
        hyperparameters: Those of highest evidence.
        warping: Output warping of the losses.
        prior: The prior with these hyperparameters.
        pending_means: (pending,): posterior means of the pending trials, warped.
    """

    def __init__(self, space: CategoricalSpace, weights: Floats, codes: Codes, losses: Floats, errors: Floats) -> None:
        self._space, self._weights = space, weights
        choices = space.features(codes)
        some = np.linspace(0, len(losses) - 1, min(len(losses), MAX_EVIDENCE_POLICIES)).round().astype(int)
        sample = choices[some], losses[some], errors[some]
        evidence, initial = self._fit_hyperparameters(Hyperparameters(), None, *sample)
        self._condition(self._prior_of(initial, None, *sample[:2]), *sample)
        # A second fit takes the size of each choice's effect, for its prior variance and its interactions, from the
        # posterior of the first. It is kept where its evidence is no lower.
        sizes: Floats | None = np.hypot(self.main_effects(), self._main_effect_deviations())
        second_evidence, self.hyperparameters = self._fit_hyperparameters(initial, sizes, *sample)
        if second_evidence < evidence:
            self.hyperparameters, sizes = initial, None
        self._condition(self._prior_of(self.hyperparameters, sizes, choices, losses), choices, losses, errors)

    def _fit_hyperparameters(
        self, initial: Hyperparameters, sizes: Floats | None, choices: Floats, losses: Floats, errors: Floats
    ) -> tuple[float, Hyperparameters]:
        """The highest log evidence found and its hyperparameters, by coordinate ascent from each `shared_interactions`.

        The best variance of interactions depends on how far choices share them, so an ascent that changed both one
        after the other would stop at a poor optimum.
        """

        @cache
        def covariances(scale: float, shared: float) -> tuple[Floats, Floats]:
            hyper = replace(initial, warping_scale=scale, shared_interactions=shared)
            prior = self._prior_of(hyper, sizes, choices, losses)
            return choices @ prior.covariance @ choices.T, (choices @ prior.interaction_root @ choices.T) ** 2

        @cache
        def evidence(hyper: Hyperparameters) -> float:
            linear, quadratic = covariances(hyper.warping_scale, hyper.shared_interactions)
            prior = self._prior_of(hyper, sizes, choices, losses)
            return prior.log_evidence(linear + prior.interaction_variance * quadratic, choices, losses, errors)

        grids = (("noise", NOISES), ("interactions", INTERACTIONS), ("warping_scale", WARPING_SCALES))
        optima = []
        for shared in SHARED_INTERACTIONS:
            best = replace(initial, shared_interactions=shared)
            for name, values in 2 * grids:
                best = max((replace(best, **{name: value}) for value in values), key=evidence)
            optima.append(best)
        best = max(optima, key=evidence)
        return evidence(best), best

    def _prior_of(self, hyper: Hyperparameters, sizes: Floats | None, choices: Floats, losses: Floats) -> Prior:
        """The prior, on the scale of the measured losses.

        Args:
            hyper: The hyperparameters.
            sizes: (choices,): sizes of the choices' effects; None for their prior means.
            choices: (n, choices): of the measured policies.
            losses: (n,): their losses.
        """
        warping = OutputWarping(hyper.warping_scale * typical(losses))
        warped, expected = warping(losses), choices @ self._weights
        changed = expected > 0
        level, rate = 1.0, 1.0
        if changed.any():
            # The lower limit helps where the median is 0: with a coarse accuracy more than half of the losses may be.
            level = typical(warped[changed])
            rate = max(np.median(warped[changed] / expected[changed]), 0.1 * level / np.median(expected[changed]))
        mean = rate * self._weights
        sizes = mean if sizes is None else np.maximum(sizes, 1e-3 * level)
        outer = np.outer(sizes, sizes)
        return Prior(
            warping, mean, outer * self._space.effect_covariance,
            np.sqrt(outer) * self._space.interaction_correlation(hyper.shared_interactions), hyper.interactions,
            (hyper.noise * level) ** 2,
        )  # fmt: skip

    def _condition(self, prior: Prior, choices: Floats, losses: Floats, errors: Floats) -> None:
        """Conditions a prior on measured policies."""
        self.warping, self.prior = prior.warping, prior
        self._residuals = prior.residuals(choices, losses)
        none = choices[:0]
        self._training = TrainingSet(none, none, none, np.zeros((0, 0)))
        self._append(choices, prior.noise_covariance(losses, errors))
        self._update_posterior()

    def _append(self, choices: Floats, noise_covariance: Floats) -> None:
        self._training = self._training.joined(*self._conditional(choices, noise_covariance))
        self._pending, self.pending_means = self._conditional(choices[:0], np.zeros((0, 0))), np.zeros(0)

    def _conditional(self, choices: Floats, noise_covariance: Floats) -> tuple[Floats, TrainingSet]:
        """Further policies given the training set: their whitened covariances with it, and the conditioned policies."""
        prior, training = self.prior, self._training
        projected, interactions = prior.project(choices), prior.project_interactions(choices)
        whitened = training.whiten(prior.cross_covariance(choices, training.projected, training.interactions))
        covariance = prior.cross_covariance(choices, projected, interactions) + noise_covariance
        whitening = np.linalg.inv(np.linalg.cholesky(covariance - whitened @ whitened.T))
        return whitened, TrainingSet(choices, projected, interactions, whitening)

    def _update_posterior(self) -> None:
        """Computes the posterior mean: its dual weights and its linear part."""
        training = self._training
        self._whitened_residuals = training.whitening @ self._residuals
        self._dual = training.whitening.T @ self._whitened_residuals
        self._linear: Floats = self.prior.mean + training.projected.T @ self._dual

    def _main_effect_deviations(self) -> Floats:
        """(choices,): posterior standard deviation of each choice's main effect."""
        explained = ((self._training.whitening @ self._training.projected) ** 2).sum(0)
        deviations: Floats = np.sqrt(np.maximum(np.diag(self.prior.covariance) - explained, 0.0))
        return deviations

    @property
    def noise(self) -> float:
        """Noise variance of a warped loss measured on all examples."""
        return self.prior.noise

    def with_measured(self, codes: Codes, losses: Floats, errors: Floats) -> Self:
        """A surrogate conditioned on further measured policies; the hyperparameters stay."""
        if not len(codes):
            return self
        grown, choices = self._copy(), self._space.features(codes)
        grown._residuals = np.r_[self._residuals, self.prior.residuals(choices, losses)]
        # One policy at a time, so that rounding does not depend on how many arrive at once.
        for row, variance in zip(choices, np.diag(self.prior.noise_covariance(losses, errors)), strict=True):
            grown._append(row[None], variance[None, None])
        grown._update_posterior()
        return grown

    def with_pending(self, codes: Codes) -> Self:
        """A surrogate that takes pending trials as measured at their posterior means (kriging believer)."""
        pending, choices = self._copy(), self._space.features(codes)
        whitened, _ = pending._pending = self._conditional(choices, self.noise * np.eye(len(codes)))
        pending.pending_means = choices @ self.prior.mean + whitened @ self._whitened_residuals
        return pending

    def _copy(self) -> Self:
        copied = copy(self)
        copied.__dict__.pop("_single_precision", None)
        return copied

    @cached_property
    def _single_precision(self) -> tuple[Prior, TrainingSet, Floats, Floats, TrainingSet]:
        """What `predict` computes from, in single precision, which halves its time."""
        whitened, pending = self._pending
        return (
            self.prior.in_single_precision(), self._training.in_single_precision(),
            single(self._whitened_residuals), single(whitened), pending.in_single_precision(),
        )  # fmt: skip

    def predict(self, codes: Codes) -> tuple[Floats, Floats]:
        """Posterior mean and standard deviation of the warped loss of each policy."""
        prior, training, residuals, pending_whitened, pending = self._single_precision
        choices = single(self._space.features(codes))
        whitened = training.whiten(prior.cross_covariance(choices, training.projected, training.interactions))
        with_pending = prior.cross_covariance(choices, pending.projected, pending.interactions)
        with_pending = pending.whiten(with_pending - whitened @ pending_whitened.T)
        variance = prior.variances(choices).astype(float)
        variance -= np.einsum("ij,ij->i", whitened, whitened) + np.einsum("ij,ij->i", with_pending, with_pending)
        mean = (choices @ prior.mean + whitened @ residuals).astype(float)
        return mean, np.sqrt(np.maximum(variance, 1e-6 * self.noise))

    def mean(self, codes: Codes) -> Floats:
        """Posterior mean of the warped loss of each policy; for many policies cheaper than `predict`."""
        choices, interactions = self._space.features(codes), self._training.interactions
        quadratic: Floats = self.prior.interaction_variance * (interactions.T * self._dual) @ interactions
        expected: Floats = choices @ self._linear + np.einsum("ij,ij->i", choices @ quadratic, choices)
        return expected

    def marginal_effects(self, codes: Codes) -> Floats:
        """Posterior mean of what each choice adds to each policy, compared with the dense choice of the same variable.

        Returns:
            (policies, choices): in warped losses.
        """
        prior, training = self.prior, self._training
        choices = self._space.features(codes)
        with_all = (choices @ training.interactions.T * self._dual) @ training.interactions
        # A choice replaces the policy's choice of the same variable, so these two do not interact. `with_own` is their
        # part of `with_all`, because `interaction_root` is 0 between variables.
        by_choice = self._dual @ training.choices
        with_own = (choices @ prior.interaction_root * by_choice) @ prior.interaction_root
        interactions: Floats = prior.interaction_variance * (
            by_choice @ prior.interaction_root**2 + 2 * (with_all - with_own)
        )
        return self._linear + interactions

    def main_effects(self) -> Floats:
        """(choices,): posterior mean of the effect of each choice alone, in warped losses."""
        return self.marginal_effects(np.zeros((1, self._space.num_variables), np.int16))[0]


def typical(losses: Floats) -> float:
    """Typical size of losses, robust to outliers; above 0, so that it can be divided by."""
    sizes = np.abs(losses)
    clipped = np.minimum(sizes, OUTLIER * np.median(sizes[sizes > 0]) if sizes.any() else 0.0)
    return max(float(np.median(sizes)), 0.1 * float(np.mean(clipped)), 1e-12)
