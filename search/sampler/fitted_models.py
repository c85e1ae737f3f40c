"""Models of costs, constraints and the loss, fitted to observations."""

import numpy as np
from numpy.typing import NDArray

from ..trial.arrays import Codes, Floats
from .additive_cost import AdditiveCost
from .gaussian_process import Surrogate
from .observations import Observations
from .search_space import CategoricalSpace

MAX_TRAINING_POLICIES = 768  # policies that the surrogate is conditioned on, at most
REFIT_SHARE = 16  # hyperparameters are fitted again when a search has grown by one part in so many
# Losses beyond the reference point carry little information, because choices act differently where too much is left
# out at once. Their standard error grows by this share of the distance to the reference point.
EXCESS_LOSS_ERROR = 0.3


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
        initial = np.flatnonzero(observations.measured)[: space.num_initial]
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
