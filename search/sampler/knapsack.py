"""Exact Pareto front of policies with additive loss and cost, by dynamic programming over a knapsack.

The knapsack of Puzzle (arXiv:2411.19146, there an integer program) and SPDY (arXiv:2201.13096, there also a dynamic
program over discretised cost): the least loss for every cost, over all policies.
"""

import numpy as np

from ..trial.arrays import Codes, Floats


def additive_front(losses: Floats, costs: Floats, bins: int = 200) -> Codes:
    """Policies of least summed loss for every summed cost, cheapest first.

    Exact where costs are multiples of the resolution; otherwise the cost of each choice is rounded to it.

    Args:
        losses: (variables, choices): what each choice adds to the loss; infinite where the choice does not exist.
        costs: (variables, choices): what each choice adds to the cost.
        bins: Number of cost steps between the cheapest and the most expensive policy.

    Returns:
        (policies, variables): codes of choices; each policy has less loss than the one before.
    """
    exists = np.isfinite(losses)
    above_cheapest = np.where(exists, costs - np.where(exists, costs, np.inf).min(1, keepdims=True), 0.0)
    steps = np.rint(above_cheapest / max(above_cheapest.max(1).sum(), 1e-300) * bins).astype(int)
    size = int(steps.max(1).sum()) + 1
    # By cost in steps, the least loss of the variables so far.
    least = np.full(size, np.inf)
    least[0] = 0.0
    taken = np.zeros((len(losses), size), np.int16)
    cells, unreachable = np.arange(size), np.full(size, np.inf)
    for variable, (added, step) in enumerate(zip(losses, steps, strict=True)):
        # The padding in front stands for negative costs.
        reached = np.r_[unreachable, least][size + cells - step[:, None]] + added[:, None]
        taken[variable] = reached.argmin(0)
        least = reached[taken[variable], cells]
    best = np.minimum.accumulate(least)
    cell = np.flatnonzero(np.isfinite(least) & (least < np.r_[np.inf, best[:-1]]))
    codes = np.zeros((len(cell), len(losses)), np.int16)
    for variable in range(len(losses) - 1, -1, -1):
        codes[:, variable] = taken[variable, cell]
        cell = cell - steps[variable, codes[:, variable]]
    return codes
