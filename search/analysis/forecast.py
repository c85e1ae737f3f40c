"""What more trials are expected to add to a hypervolume: its gains so far, continued."""

import math
from collections.abc import Sequence

import numpy as np

from ..trial.trial_result import Estimate

AHEAD = 100
LEAST = 20  # trials below which no forecast is made
BURN_IN = 0.25  # share of the trials that is left out: the gains of the first are of another kind
DRAWS = 1000
LEVELS = (2.5, 97.5)
# How the rate of gains may fall with the trial's number t: as t^-power, or as exp(-t / (time * number of trials)).
POWERS = np.linspace(0.0, 4.0, 17)
TIMES = np.geomspace(0.05, 2.0, 12)


def forecast(curve: Sequence[float], ahead: int = AHEAD, ceiling: float = math.inf, seed: int = 0) -> Estimate | None:
    """Expected growth of a hypervolume over the next trials, with a 95 % prediction interval.

    The gain of trial t is taken to have a mean that falls with t, as a power of t or exponentially, never rises: the
    shape and scale under which the gains fell where they did are found by quasi-likelihood (that of a Poisson count,
    which needs no more than the mean). The interval is a bootstrap over trials: each draw takes as many trials with
    replacement, fits shape and scale anew, and adds the luck of the coming trials, gains relative to their mean being
    drawn from those of the past. A search that changes its ways, as one that begins another stage, is not foreseen.

    Args:
        curve: Hypervolume after each trial of the budget, in order.
        ahead: How many trials more.
        ceiling: The largest hypervolume there can be.
        seed: Of the bootstrap.

    Returns:
        None where there are too few trials. Where nothing was gained in those that count, the expectation is 0, and the
        upper end 3 / trials (the rule of three for what never happened) gains of the size of the last one, for each
        coming trial.
    """
    count = len(curve)
    first = max(1, int(BURN_IN * count))
    if count < LEAST:
        return None
    gains = np.diff(np.asarray(curve, dtype=float))[first - 1 :].clip(min=0.0)
    if not gains.any():
        before = np.diff(np.asarray([0.0, *curve]))
        last = next((float(gain) for gain in before[::-1] if gain > 0), 0.0)
        return Estimate(0.0, 0.0, min(last * ahead * 3 / len(gains), ceiling - curve[-1]))
    past, coming = np.arange(first + 1, count + 1), np.arange(count + 1, count + ahead + 1)
    shapes, futures = rates(past, count), rates(coming, count)

    draw = np.random.default_rng(seed)
    counts = draw.multinomial(len(gains), np.full(len(gains), 1 / len(gains)), size=DRAWS)
    scales, chosen = fitted(gains, counts, shapes)
    [scale], [shape] = fitted(gains, np.ones((1, len(gains)), dtype=int), shapes)
    luck = draw.choice(gains / (scale * shapes[shape]), size=(DRAWS, ahead))
    drawn = scales * (futures[chosen] * luck).sum(axis=1)
    ends = (scale * futures[shape].sum(), *np.percentile(drawn, LEVELS))
    return Estimate(*(float(min(end, ceiling - curve[-1])) for end in ends))


def rates(trials: np.ndarray, count: int) -> np.ndarray:
    """Every shape that the rate of gains may have, one row each, at some trials of a search that has made `count`."""
    relative = trials / count
    powers = relative[None, :] ** -POWERS[:, None]
    return np.concatenate([powers, np.exp(-relative[None, :] / TIMES[:, None])])


def fitted(gains: np.ndarray, counts: np.ndarray, shapes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scale and the shape of highest quasi-likelihood.

    Args:
        gains: Of each trial.
        counts: How often each trial counts, one row a draw.
        shapes: The shapes, one row each, at those trials.

    Returns:
        Scale and row of the shape, for each draw.
    """
    gained = counts * gains
    total = gained.sum(axis=1)
    exposure = counts @ shapes.T
    chosen = (gained @ np.log(shapes).T - total[:, None] * np.log(exposure)).argmax(axis=1)
    return total / exposure[np.arange(len(counts)), chosen], chosen
