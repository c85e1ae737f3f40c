"""What a policy is expected to add to the front: its improvement at every budget that it can be afforded at.

The hypervolume of a front is the loss it saves, averaged over all budgets of the costs. Costs are sums and known before
a policy is measured, so the expected hypervolume improvement (Emmerich, Giannakoglou and Naujoks 2006) is the expected
improvement of the one uncertain figure, averaged over the budgets. With no cost there is one budget: plain expected
improvement.
"""

from collections.abc import Callable

import numpy as np

from ..trial.arrays import Floats

LINE = 5  # budgets a variable: finer ones reward what hardly differs
CLOUD = 384
# Standard normal quantiles and what they weigh.
NODES = np.array([-1.5, -0.7, 0.0, 0.7, 1.5])
WEIGHTS = np.exp(-0.5 * NODES**2) / np.exp(-0.5 * NODES**2).sum()


def budgets(lowest: Floats, highest: Floats, variables: int) -> Floats:
    """(budgets, costs): limits on the costs, evenly spread between two corners; the same at every call."""
    dimensions = len(lowest)
    if dimensions == 0:
        return np.zeros((1, 0))
    if dimensions == 1:
        spread = (np.arange(LINE * variables)[:, None] + 0.5) / (LINE * variables)
    else:
        # Roberts 2018: powers of a generalised golden ratio fill a box evenly.
        ratio = 2.0
        for _ in range(40):
            ratio = (1 + ratio) ** (1 / (dimensions + 1))
        spread = (0.5 + np.arange(1, CLOUD + 1)[:, None] * ratio ** -np.arange(1.0, dimensions + 1)) % 1
    return lowest + spread * (highest - lowest)


class Gain:
    """What policies add to those that stand on the front.

    Args:
        points: (budgets, costs): the limits at which fronts are compared.
        losses: (front,): of the policies that are known.
        costs: (front, costs): of the same.
        worst: The loss that counts as nothing gained.
    """

    def __init__(self, points: Floats, losses: Floats, costs: Floats, worst: float) -> None:
        self._points, self._worst = points, worst
        affordable = (costs[:, None, :] <= points).all(2)
        self._least = np.where(affordable, losses[:, None], np.inf).min(0, initial=worst)

    @property
    def volume(self) -> float:
        """What those on the front save of the worst loss, averaged over the limits; above 0, to be divided by."""
        return max(float(np.mean(self._worst - self._least)), 1e-12)

    def expected(
        self, means: Floats, deviations: Floats, costs: Floats, loss: Callable[[Floats], Floats],
        chance: Callable[[Floats], Floats],
    ) -> Floats:  # fmt: skip
        """What policies are expected to add.

        Args:
            means: (policies,): of a normal distribution.
            deviations: (policies,): of the same.
            costs: (policies, costs).
            loss: From a draw of that distribution to the loss.
            chance: From the loss of each policy to the probability that it breaks no constraint.
        """
        least = np.where((costs[:, None, :] <= self._points).all(2), self._least, -np.inf)
        total = np.zeros(len(means))
        for node, weight in zip(NODES, WEIGHTS, strict=True):
            drawn = loss(means + node * deviations)
            total += weight * chance(drawn) * np.maximum(least - drawn[:, None], 0.0).mean(1)
        return total
