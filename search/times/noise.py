"""Noise of time measurements on a machine, compared with how much the times of policies differ."""

import math
import statistics
from collections.abc import Sequence

from ...evaluators.base import Measurement
from ..space.units import amount, phrase
from ..trial.modelled_time import ModelledTime, is_time
from ..trial.trial_result import TrialResult
from .smoothed import has_own_measurements

MIN_POLICIES = 12  # policies from which the spread of times is computed, at least
MAX_NOISE = 0.25  # share of that spread above which noise hides differences


def time_noise(null: Sequence[Measurement]) -> float | None:
    """Noise of a ratio of times: the root mean square difference of dense from itself; None without measurements.

    Args:
        null: Measurements of dense against dense.
    """
    ratios = [entry.value / entry.dense for entry in null if entry.dense]
    return math.sqrt(statistics.fmean((ratio - 1) ** 2 for ratio in ratios)) if ratios else None


def time_spread(results: Sequence[TrialResult], name: str, noise: float) -> float | None:
    """Standard deviation of the times of measured policies without noise; None for fewer than `MIN_POLICIES`.

    Args:
        results: All trials; the first is dense.
        name: The time.
        noise: See `time_noise`.
    """
    entries = [one.search[name] for one in results[1:] if has_own_measurements(one) and name in one.search]
    timed = [one for one in entries if is_time(name, one) and not (isinstance(one, ModelledTime) and one.is_predicted)]
    if len(timed) < MIN_POLICIES:
        return None
    ratios = [entry.value / (entry.dense or math.nan) for entry in timed]
    return math.sqrt(max(0.0, statistics.variance(ratios) - noise**2))


def noise_sentence(name: str, noise: float, blocks: int) -> str:
    """Reports the noise of a time on this machine."""
    return (
        f"Noise of this machine: {phrase(name)} of dense against dense differs by {amount(noise, 'fraction')} "
        f"({blocks} measurements)."
    )


def noise_warning(name: str, noise: float, spread: float) -> str:
    """Warns of a machine too noisy to compare times, with what to do; empty where it is quiet enough."""
    if noise <= MAX_NOISE * spread:
        return ""
    return (
        f"warning: one measurement of {phrase(name)} has a noise of {amount(noise, 'fraction')}, and the policies "
        f"measured so far differ by {amount(spread, 'fraction')}: noise hides the differences between policies. Raise "
        f"`repeats` of the latency evaluator, search on an idle machine, or take {name} out of `objectives` and let "
        "FLOPs stand for it."
    )
