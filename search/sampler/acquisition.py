"""Acquisition function of the search: the expected hypervolume improvement of candidates, from fitted models."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..guide.accuracy_curve import AccuracyCurve
from ..trial.arrays import Codes, Floats
from ..trial.dominance import non_dominated
from .additive_cost import AdditiveCost
from .ehvi import HypervolumeImprovement, budget_grid
from .gaussian_process import Surrogate
from .knapsack import additive_front
from .search_space import CategoricalSpace

MAX_TRAINING_POLICIES = 768  # policies that the surrogate is conditioned on, at most
REFIT_SHARE = 16  # hyperparameters are fitted again when a search has grown by one part in so many
# Exploration bonus: expected improvement looks one trial ahead, but a trial also informs later ones. So this part of
# the posterior standard deviation is added to it. The bonus is at most a share of the range of useful losses, because
# regions without measurements, where every policy is useless, would stay attractive for ever.
EXPLORATION_BONUS = 0.7
MAX_EXPLORATION_BONUS = 0.05
# Losses beyond the reference point carry little information, because choices act differently where too much is left
# out at once. Their standard error grows by this share of the distance to the reference point.
EXCESS_LOSS_ERROR = 0.3
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


class ConstraintModel:
    """Model of a constraint: a linear function of the loss where that fits, else a sum over the variables.

    Args:
        space: The search space.
        codes: (n, variables): the policies.
        losses: (n,): their losses above dense's.
        excess: (n,): how far they violate the constraint.
    """

    def __init__(self, space: CategoricalSpace, codes: Codes, losses: Floats, excess: Floats) -> None:
        both = np.isfinite(losses) & np.isfinite(excess)
        self.slope = self.intercept = 0.0
        self.additive: AdditiveCost | None = None
        # A line fits any two points, and a third may lie on it by chance.
        if np.count_nonzero(both) > 3 and np.ptp(losses[both]) > 0:
            self.slope, self.intercept = np.polyfit(losses[both], excess[both], 1)
        misfit = np.abs(self.slope * losses[both] + self.intercept - excess[both]).max(initial=0.0)
        if not self.slope or misfit > 1e-6 * max(np.abs(excess[both]).max(initial=0.0), 1e-300):
            self.additive = AdditiveCost(space, codes, excess)

    def probability(self, codes: Codes) -> Floats:
        """(policies,): probability that an additive constraint is satisfied; 1 for a constraint on the loss."""
        if self.additive is None:
            return np.ones(len(codes))
        standardised = np.clip(self.additive(codes) / max(self.additive.error, 1e-9), -40, 40)
        # The logistic function with this factor approximates the normal distribution function.
        return 1 / (1 + np.exp(1.7 * standardised))

    @property
    def max_loss(self) -> float:
        """The largest loss above dense's that satisfies the constraint; infinite for an additive constraint."""
        return -self.intercept / self.slope if self.additive is None and self.slope > 0 else np.inf

    def satisfied(self, losses: Floats) -> NDArray[np.bool_]:
        """True where losses above dense's satisfy a constraint on the loss."""
        return np.ones(len(losses), bool) if self.additive else self.slope * losses + self.intercept <= 0


class FittedModels:
    """Models of costs, constraints and loss, fitted to the first observations; they stay until the next refit.

    Args:
        space: The search space.
        observations: At least two of the policies are measured completely.
        reference: See `ModelCache`.
        chance_score: The score at chance level, in a guided search.

    Attributes:
        dense_loss: The loss of dense.
        costs: A model of each cost.
        constraints: A model of each constraint.
        reference: The reference point: the loss, or the score in a guided search, and each cost.
        max_loss: The largest loss above dense's within reference point and constraints.
        surrogate: The surrogate of the loss.
    """

    def __init__(
        self,
        space: CategoricalSpace,
        observations: Observations,
        reference: Floats | None,
        chance_score: float = np.inf,
    ) -> None:
        codes, measured = observations.codes, observations.measured
        dense = np.flatnonzero(measured & ~codes.any(1))
        self.dense_loss = float(observations.losses[dense[0]] if len(dense) else observations.losses[measured].min())
        self.costs = [AdditiveCost(space, codes, values) for values in observations.costs.T]
        losses = observations.losses - self.dense_loss
        self.constraints = [ConstraintModel(space, codes, losses, excess) for excess in observations.excess.T]
        self._additive = [*self.costs, *(one.additive for one in self.constraints if one.additive)]
        self.reference = self._reference(space, observations, reference)
        curve = observations.accuracy_curve(chance_score)
        loss_limit = self.reference[0] if curve is None else curve.inverse(float(self.reference[0]))
        self.max_loss = min(loss_limit - self.dense_loss, *(one.max_loss for one in self.constraints), np.inf)
        self.surrogate = self._fit_surrogate(space, observations)

    @property
    def normalised_costs(self) -> list[Floats]:
        """Of each cost and additive constraint, see `AdditiveCost.normalised`."""
        return [one.normalised for one in self._additive]

    def _reference(self, space: CategoricalSpace, observations: Observations, given: Floats | None) -> Floats:
        """The given reference point; entries not given are dense's cost, and the worst loss of the initial design.

        Policies of the initial design differ from dense in a third of the variables.
        """
        initial = np.flatnonzero(observations.measured)[: space.kind.max() + 2]
        reference = np.r_[observations.losses[initial].max(), [cost.dense for cost in self.costs]]
        return reference if given is None else np.where(np.isnan(given), reference, given)

    def _fit_surrogate(self, space: CategoricalSpace, observations: Observations) -> Surrogate:
        losses = self.losses(observations)
        chosen = self._training_policies(observations.codes, losses)
        # The expected loss of a choice grows with its savings; a fifth of the largest savings keeps it above 0.
        shares = (one.main_effects() / max(np.ptp(one.main_effects()), 1e-300) for one in self._additive)
        saved = np.abs(sum(shares, np.zeros(len(space.variable))))
        weights = saved + 0.2 * (saved.max() or 1.0)
        errors = self.errors(observations, losses)[chosen]
        return Surrogate(space, weights, observations.codes[chosen], losses[chosen], errors)

    def _training_policies(self, codes: Codes, losses: Floats) -> NDArray[np.int64]:
        """Numbers of the policies to train on: all, or those with a loss near the front where there are too many."""
        chosen = np.flatnonzero(np.isfinite(losses))
        # Leaves room for the policies measured until the next refit.
        limit = max(MAX_TRAINING_POLICIES // 2, MAX_TRAINING_POLICIES - len(codes) // REFIT_SHARE)
        if len(chosen) <= limit:
            return chosen
        costs = np.array([cost(codes[chosen]) for cost in self.costs]).reshape(len(self.costs), len(chosen)).T
        cheaper = (costs[:, None] <= costs).all(2)
        least = np.where(cheaper, losses[chosen][:, None], np.inf).min(0)
        return np.sort(chosen[np.argsort(losses[chosen] - least, kind="stable")[:limit]])

    def losses(self, observations: Observations) -> Floats:
        """(n,): losses above dense's; where only a constraint on the loss was measured, from that constraint."""
        losses = observations.losses - self.dense_loss
        for constraint, excess in zip(self.constraints, observations.excess.T, strict=True):
            if constraint.additive is None:
                losses = np.where(np.isfinite(losses), losses, (excess - constraint.intercept) / constraint.slope)
        return losses

    def errors(self, observations: Observations, losses: Floats) -> Floats:
        """(n,): standard errors of losses above dense's."""
        return np.hypot(observations.errors, EXCESS_LOSS_ERROR * np.maximum(losses - self.max_loss, 0.0))


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
