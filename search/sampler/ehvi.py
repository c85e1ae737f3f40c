"""Expected hypervolume improvement where the loss is uncertain and costs are known.

A budget is an upper limit on each cost. The hypervolume of a front is, up to a factor, the loss that it saves, averaged
over all budgets. Costs are sums and known before a policy is measured, so the expected hypervolume improvement
(Emmerich, Giannakoglou and Naujoks 2006) is the expected improvement of the loss, averaged over the budgets that the
policy fits in. Without costs there is one budget, and it is the plain expected improvement.
"""

from collections.abc import Callable

import numpy as np

from ..trial.arrays import Floats

BUDGETS_PER_VARIABLE = 5  # with one cost; a finer grid rewards policies that hardly differ
BUDGETS = 384  # with several costs
# Quadrature over a standard normal distribution.
NODES = np.array([-1.5, -0.7, 0.0, 0.7, 1.5])
WEIGHTS = np.exp(-0.5 * NODES**2) / np.exp(-0.5 * NODES**2).sum()


def budget_grid(lowest: Floats, highest: Floats, variables: int) -> Floats:
    """(budgets, costs): budgets evenly spread between two corners; deterministic.

    Args:
        lowest: (costs,): the lower corner.
        highest: (costs,): the upper corner.
        variables: Number of variables, which sets the resolution of a single cost.
    """
    dimensions = len(lowest)
    if dimensions == 0:
        return np.zeros((1, 0))
    if dimensions == 1:
        count = BUDGETS_PER_VARIABLE * variables
        spread = (np.arange(count)[:, None] + 0.5) / count
    else:
        # Quasi-random sequence of Roberts 2018: powers of a generalised golden ratio, found by fixed-point iteration.
        ratio = 2.0
        for _ in range(40):
            ratio = (1 + ratio) ** (1 / (dimensions + 1))
        spread = (0.5 + np.arange(1, BUDGETS + 1)[:, None] * ratio ** -np.arange(1.0, dimensions + 1)) % 1
    return lowest + spread * (highest - lowest)


class HypervolumeImprovement:
    """Improvement of a front's hypervolume by further policies, relative to a grid of budgets.

    Args:
        budgets: (budgets, costs): see `budget_grid`.
        losses: (front,): losses of the measured policies.
        costs: (front, costs): costs of the same.
        reference: The loss of the reference point.
    """

    def __init__(self, budgets: Floats, losses: Floats, costs: Floats, reference: float) -> None:
        self._budgets, self._reference = budgets, reference
        fits = (costs[:, None, :] <= budgets).all(2)
        self._least = np.where(fits, losses[:, None], np.inf).min(0, initial=reference)

    @property
    def volume(self) -> float:
        """Hypervolume of the measured policies: the loss saved, averaged over budgets; above 0, to be divided by."""
        return max(float(np.mean(self._reference - self._least)), 1e-12)

    def expected(
        self, means: Floats, deviations: Floats, costs: Floats, loss: Callable[[Floats], Floats] = np.positive,
        score: Callable[[Floats], Floats] = np.positive, feasibility: Callable[[Floats], Floats] = np.ones_like,
    ) -> Floats:  # fmt: skip
        """Expected hypervolume improvement of each policy.

        Args:
            means: (policies,): posterior means.
            deviations: (policies,): posterior standard deviations.
            costs: (policies, costs).
            loss: Maps draws from the posterior to losses.
            score: Maps losses to what the front is about: themselves, or in a guided search the expected score.
            feasibility: Maps the loss of each policy to the probability that it satisfies the constraints.
        """
        least = np.where((costs[:, None, :] <= self._budgets).all(2), self._least, -np.inf)
        total = np.zeros(len(means))
        for node, weight in zip(NODES, WEIGHTS, strict=True):
            losses = loss(means + node * deviations)
            total += weight * feasibility(losses) * np.maximum(least - score(losses)[:, None], 0.0).mean(1)
        return total
