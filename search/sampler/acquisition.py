"""Acquisition function of the search: the expected hypervolume improvement of candidates, from fitted models."""

import numpy as np
from numpy.typing import NDArray

from ..guide.accuracy_curve import AccuracyCurve
from ..trial.arrays import Codes, Floats
from ..trial.dominance import non_dominated
from .ehvi import HypervolumeImprovement, budget_grid
from .fitted_models import REFIT_SHARE, FittedModels
from .gaussian_process import Surrogate
from .knapsack import additive_front
from .observations import Observations
from .search_space import CategoricalSpace

# Exploration bonus: expected improvement looks one trial ahead, but a trial also informs later ones. So this part of
# the posterior standard deviation is added to it. The bonus is at most a share of the range of useful losses, because
# regions without measurements, where every policy is useless, would stay attractive for ever.
EXPLORATION_BONUS = 0.7
MAX_EXPLORATION_BONUS = 0.05


class Acquisition:
    """The acquisition function at one proposal.

    Args:
        space: The search space.
        models: The fitted models.
        surrogate: The surrogate, conditioned on all observations.
        observations: Measured and pending policies.
        curve: In a guided search, the expected score as a function of the loss.

    Attributes:
        surrogate: The surrogate, conditioned on pending trials too.
        front: (policies, variables): the feasible non-dominated policies.
    """

    def __init__(
        self, space: CategoricalSpace, models: FittedModels, surrogate: Surrogate, observations: Observations,
        curve: AccuracyCurve | None = None,
    ) -> None:  # fmt: skip
        self._space, self._models, self._curve = space, models, curve
        self.surrogate = surrogate.with_pending(observations.pending)
        reference = models.reference[0] if curve is not None else models.reference[0] - models.dense_loss
        scores, points = self._feasible_points(surrogate, observations, reference)
        front = non_dominated(points)
        self.front = scores[front]
        pending = self._scores(surrogate.warping.inverse(self.surrogate.pending_means))
        useful = float(surrogate.warping(np.array(models.max_loss)))
        self._max_bonus = MAX_EXPLORATION_BONUS * max(0.0, useful)
        lowest = np.array([cost.minimum for cost in models.costs])
        self._improvement = HypervolumeImprovement(
            budget_grid(lowest, models.reference[1:], space.num_variables),
            np.r_[points[front, 0], pending],
            np.vstack([points[front, 1:], self._costs(observations.pending)]),
            reference,
        )

    def _feasible_points(
        self, surrogate: Surrogate, observations: Observations, reference: float
    ) -> tuple[Codes, Floats]:
        """Codes and (score, costs) of the feasible policies within the reference point."""
        losses = observations.losses - self._models.dense_loss
        # Of many noisy estimates the best are too good (selection bias), so posterior means replace them.
        estimated = observations.errors > 0
        if estimated.any():
            losses[estimated] = surrogate.warping.inverse(surrogate.mean(observations.codes[estimated]))
        satisfied = np.all([one.satisfied(losses) | ~estimated for one in self._models.constraints], axis=0)
        # Predictions stand for costs that are not measured yet.
        costs = np.where(np.isfinite(observations.costs), observations.costs, self._costs(observations.codes))
        scores = self._observed_scores(losses, observations)
        feasible = np.isfinite(observations.losses) & ~(observations.excess > 0).any(1) & satisfied
        feasible &= (scores <= reference) & (costs <= self._models.reference[1:]).all(1)
        return observations.codes[feasible], np.c_[scores, costs][feasible]

    def _scores(self, losses: Floats) -> Floats:
        """Expected scores of losses above dense's; these losses themselves in a search without a guide."""
        return losses if self._curve is None else self._curve(losses + self._models.dense_loss)

    def _observed_scores(self, losses: Floats, observations: Observations) -> Floats:
        """The same for measured policies: the posterior given the scores that were measured."""
        if self._curve is None or observations.scores is None or observations.score_errors is None:
            return losses
        guide_losses = losses + self._models.dense_loss
        return self._curve.posterior(guide_losses, observations.scores, observations.score_errors)[0]

    def _costs(self, codes: Codes) -> Floats:
        """(policies, costs): predicted costs."""
        costs = [cost(codes) for cost in self._models.costs]
        return np.array(costs).T.reshape(len(codes), len(costs))

    def _feasibility(self, codes: Codes) -> Floats:
        """(policies,): probability that all additive constraints are satisfied."""
        probabilities = [one.probability(codes) for one in self._models.constraints]
        return np.prod(probabilities, axis=0) if probabilities else np.ones(len(codes))

    def additive_front(self, draw: np.random.Generator, around: NDArray[np.int16]) -> Codes:
        """The exact front of an additive loss and a weighted sum of the costs.

        Args:
            draw: Draws the weights.
            around: (variables,): the policy whose marginal effects are the additive loss.
        """
        space, costs = self._space, self._models.normalised_costs
        weights = draw.dirichlet(np.ones(len(costs))) if costs else np.zeros(0)
        losses = space.by_combination(space.table(self.surrogate.marginal_effects(around[None])[0]))
        total = sum((weight * cost for weight, cost in zip(weights, costs, strict=True)), np.zeros(losses.shape))
        return space.from_combinations(additive_front(losses, total))

    def expected_improvement(self, codes: Codes) -> Floats:
        """(policies,): expected hypervolume improvement, with the exploration bonus."""
        means, deviations = self.surrogate.predict(codes)
        # Standard deviation of the posterior mean after the policy is measured: small where measurements are noisy.
        informative = deviations**2 / np.sqrt(deviations**2 + self.surrogate.noise)
        bonus = np.minimum(EXPLORATION_BONUS * informative, self._max_bonus)
        probability = self._feasibility(codes)

        def feasibility(losses: Floats) -> Floats:
            satisfied = [one.satisfied(losses) for one in self._models.constraints if one.additive is None]
            return probability * np.all(satisfied, axis=0) if satisfied else probability

        deviations += bonus
        inverse = self.surrogate.warping.inverse
        return self._improvement.expected(means, deviations, self._costs(codes), inverse, self._scores, feasibility)


class ModelCache:
    """Fits models and keeps them while new observations only extend the old ones; otherwise fits them again.

    Args:
        space: The search space.
        reference: The reference point: the loss and each cost, NaN for entries to be derived from the first policies;
            None to derive all.
        chance_score: The score at chance level, in a guided search.
    """

    def __init__(self, space: CategoricalSpace, reference: Floats | None, chance_score: float = np.inf) -> None:
        self._space, self._reference, self._chance_score = space, reference, chance_score
        self._cached: tuple[Observations, FittedModels, Surrogate, int] | None = None

    def acquisition(self, observations: Observations) -> Acquisition:
        """The acquisition function given observations."""
        models, surrogate = self._fit(observations)
        curve = observations.accuracy_curve(self._chance_score)
        return Acquisition(self._space, models, surrogate, observations, curve)

    def _fit(self, observations: Observations) -> tuple[FittedModels, Surrogate]:
        """Models fitted to the first policies, and their surrogate conditioned on all."""
        count = len(observations.codes)
        fitted = count - count % max(1, count // REFIT_SHARE)
        if np.count_nonzero(observations.first(fitted).measured) < 2:
            fitted = count
        if self._cached is not None and self._cached[3] == fitted and observations.starts_with(self._cached[0]):
            start, models, surrogate, _ = self._cached
        else:
            start = observations.first(fitted)
            models = FittedModels(self._space, start, self._reference, self._chance_score)
            surrogate = models.surrogate
        losses = models.losses(observations)
        new = (np.arange(count) >= len(start.codes)) & np.isfinite(losses)
        errors = models.errors(observations, losses)
        surrogate = surrogate.with_measured(observations.codes[new], losses[new], errors[new])
        self._cached = (observations, models, surrogate, fitted)
        return models, surrogate
