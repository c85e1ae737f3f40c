"""The exact front of policies whose loss and cost are sums over their variables, by dynamic programming.

The knapsack of Puzzle (arXiv:2411.19146, there an integer program) and SPDY (arXiv:2201.13096, there also a dynamic
program over discretised cost): among all policies, the least loss for every cost.
"""

import numpy as np

from ..trial.arrays import Codes, Floats


def additive_front(losses: Floats, costs: Floats, bins: int = 200) -> Codes:
    """Policies of least summed loss for every summed cost, cheapest first.

    Exact where costs are multiples of the resolution; else the cost of each choice is rounded to it.

    Args:
        losses: (variables, choices): what each choice adds to the loss; infinite where there is no such choice.
        costs: (variables, choices): what each choice adds to the cost.
        bins: The resolution: the span from the cheapest to the dearest policy is cut into so many steps.

    Returns:
        (policies, variables): codes of choices; each policy has less loss than the one before.
    """
    exists = np.isfinite(losses)
    above = np.where(exists, costs - np.where(exists, costs, np.inf).min(1, keepdims=True), 0.0)
    steps = np.rint(above / max(above.max(1).sum(), 1e-300) * bins).astype(int)
    size = int(steps.max(1).sum()) + 1
    least = np.full(size, np.inf)
    least[0] = 0.0
    taken = np.zeros((len(losses), size), np.int16)
    everywhere, nothing = np.arange(size), np.full(size, np.inf)
    for variable, (added, step) in enumerate(zip(losses, steps, strict=True)):
        # What costs less than nothing is out of reach.
        reached = np.r_[nothing, least][size + everywhere - step[:, None]] + added[:, None]
        taken[variable] = reached.argmin(0)
        least = reached[taken[variable], everywhere]
    best = np.minimum.accumulate(least)
    place = np.flatnonzero(np.isfinite(least) & (least < np.r_[np.inf, best[:-1]]))
    codes = np.zeros((len(place), len(losses)), np.int16)
    for variable in range(len(losses) - 1, -1, -1):
        codes[:, variable] = taken[variable, place]
        place = place - steps[variable, codes[:, variable]]
    return codes
