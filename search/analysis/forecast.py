"""Forecasts how much hypervolume more trials will add, by extrapolating the gains so far."""

import math
from collections.abc import Sequence

import numpy as np

from ..trial.trial_result import IntervalEstimate

AHEAD = 100  # trials that are forecast
MIN_TRIALS = 20  # No forecast is made from fewer trials.
BURN_IN = 0.25  # Share of the trials that is left out: the first gains follow another rate.
DRAWS = 1000
LEVELS = (2.5, 97.5)
# How the rate of gains may fall with the trial number t: as t^-power, or as exp(-t / (time * number of trials)).
POWERS = np.linspace(0.0, 4.0, 17)
TIMES = np.geomspace(0.05, 2.0, 12)


def forecast(
    curve: Sequence[float], ahead: int = AHEAD, ceiling: float = math.inf, seed: int = 0
) -> IntervalEstimate | None:
    """Expected growth of a hypervolume over the next trials, with a 95 % prediction interval.

    The model takes the mean gain of trial t to fall with t, as a power of t or exponentially. Shape and scale are
    fitted by Poisson quasi-likelihood, which needs the mean alone. The interval is a bootstrap over trials: each draw
    resamples the trials with replacement, fits shape and scale again, and draws each future gain, relative to its
    mean, from the past ones. The model does not foresee a search that changes its behaviour, such as one that enters
    another phase.

    Args:
        curve: Hypervolume after each trial of the budget, in order.
        ahead: How many trials to forecast.
        ceiling: The largest possible hypervolume.
        seed: Of the bootstrap.

    Returns:
        None with too few trials. Without any gain after the burn-in, the expectation is 0, and the upper end is that of
        3 / trials gains per future trial (the rule of three for events that never occurred), each of the size of the
        last gain.
    """
    count = len(curve)
    first = max(1, int(BURN_IN * count))
    if count < MIN_TRIALS:
        return None
    gains = np.diff(np.asarray(curve, dtype=float))[first - 1 :].clip(min=0.0)
    if not gains.any():
        all_gains = np.diff(np.asarray([0.0, *curve]))
        last = next((float(gain) for gain in all_gains[::-1] if gain > 0), 0.0)
        return IntervalEstimate(0.0, 0.0, min(last * ahead * 3 / len(gains), ceiling - curve[-1]))
    past, future = np.arange(first + 1, count + 1), np.arange(count + 1, count + ahead + 1)
    past_rates, future_rates = rates(past, count), rates(future, count)

    random = np.random.default_rng(seed)
    counts = random.multinomial(len(gains), np.full(len(gains), 1 / len(gains)), size=DRAWS)
    scales, shapes = fit(gains, counts, past_rates)
    [scale], [shape] = fit(gains, np.ones((1, len(gains)), dtype=int), past_rates)
    relative_gains = random.choice(gains / (scale * past_rates[shape]), size=(DRAWS, ahead))
    draws = scales * (future_rates[shapes] * relative_gains).sum(axis=1)
    ends = (scale * future_rates[shape].sum(), *np.percentile(draws, LEVELS))
    return IntervalEstimate(*(float(min(end, ceiling - curve[-1])) for end in ends))


def rates(trials: np.ndarray, count: int) -> np.ndarray:
    """Every shape of the rate of gains at some trials, shape (shapes, trials).

    Args:
        trials: Trial numbers.
        count: How many trials the search has made.
    """
    relative = trials / count
    powers = relative[None, :] ** -POWERS[:, None]
    return np.concatenate([powers, np.exp(-relative[None, :] / TIMES[:, None])])


def fit(gains: np.ndarray, counts: np.ndarray, shapes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shape of the highest Poisson quasi-likelihood.

    Args:
        gains: The gain of each trial, shape (trials,).
        counts: How often each trial counts, shape (draws, trials).
        shapes: The candidate shapes at those trials, shape (shapes, trials).

    Returns:
        Scale and index of the shape, each of shape (draws,).
    """
    gained = counts * gains
    total = gained.sum(axis=1)
    exposure = counts @ shapes.T
    chosen = (gained @ np.log(shapes).T - total[:, None] * np.log(exposure)).argmax(axis=1)
    return total / exposure[np.arange(len(counts)), chosen], chosen
