"""Finds times that a counted cost predicts; further trials predict such a time instead of measuring it."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...evaluators.base import Measurement, evaluator_class, metrics_of
from ..space.space import Space
from ..space.units import phrase, unit_of
from ..trial.modelled_time import ModelledTime, is_time
from ..trial.trial_result import TrialResult
from .smoothed import has_own_measurements

MIN_POLICIES = 12  # policies from which a correlation is computed, at least
MIN_CORRELATION = 0.95  # rank correlation above which a cost stands in for a time


@dataclass(frozen=True)
class StandIn:
    """A counted cost that stands in for a time.

    Attributes:
        metric: The time.
        cost: The counted cost.
        correlation: Spearman's rank correlation over the measured policies.
        policies: Number of those policies.
    """

    metric: str
    cost: str
    correlation: float
    policies: int

    @property
    def text(self) -> str:
        """The sentence that reports it."""
        return (
            f"{phrase(self.cost)} ranks policies as {phrase(self.metric)} does (rank correlation "
            f"{self.correlation:.3f} over {self.policies} measured policies): further trials predict "
            f"{phrase(self.metric)} from earlier measurements, and only the front is measured again"
        )


def requested_metrics(space: Space) -> list[str]:
    """The metrics among objectives and constraints."""
    return [*dict.fromkeys((*space.objectives, *space.constraints))]


def exclusive_evaluators(space: Space) -> dict[str, frozenset[str]]:
    """Evaluators that need a device without other work on it, with the metrics that they measure."""
    exclusive = [name for name in space.evaluate if evaluator_class(name).exclusive]
    return {name: frozenset(metrics_of(name, space.evaluate[name])) for name in exclusive}


def find_stand_ins(
    results: Sequence[TrialResult],
    space: Space,
    evaluators: Mapping[str, frozenset[str]],
    predicted: Collection[str],
) -> list[StandIn]:
    """The best correlated counted cost of each time that has one and is still measured.

    Args:
        results: All trials with their measurements; the first is dense.
        space: The search space.
        evaluators: See `exclusive_evaluators`.
        predicted: Times that are predicted already.
    """
    timed, dense = frozenset().union(*evaluators.values()), results[0].search
    names = requested_metrics(space)
    times = [name for name in names if name in timed and name not in predicted and is_time(name, dense.get(name))]
    costs = [name for name in names if unit_of(name) in ("flops", "bytes") and name in dense]
    found = []
    for time in times:
        candidates = [stand_in(results[1:], time, cost) for cost in costs]
        candidates = [one for one in candidates if one.correlation > MIN_CORRELATION]
        found += [max(candidates, key=lambda one: one.correlation)] if candidates else []
    return found


def stand_in(results: Sequence[TrialResult], time: str, cost: str) -> StandIn:
    """Rank correlation of a cost with smoothed times, if raw times agree with it as far as their noise allows.

    Noise attenuates a correlation (Spearman 1904): that of raw times is at most the square root of their reliability,
    the share of their variance that is not noise.
    """
    from scipy.stats import spearmanr

    both = [(one.search[time], one.search[cost].value) for one in results if has_both(one, time, cost)]
    costs = np.array([value for _, value in both])
    raw = np.array([entry.value / (entry.dense or math.nan) for entry, _ in both])
    smoothed = np.array([smoothed_ratio(entry) for entry, _ in both])
    if len(both) < MIN_POLICIES or min(np.ptp(raw), np.ptp(smoothed), np.ptp(costs)) <= 0:
        return StandIn(time, cost, 0.0, len(both))
    attenuation = math.sqrt(max(0.0, 1 - float(np.var(raw - smoothed) / np.var(raw))))
    of_smoothed, of_raw = (float(spearmanr(times, costs).statistic) for times in (smoothed, raw))
    agrees = of_raw > MIN_CORRELATION * attenuation
    return StandIn(time, cost, of_smoothed if agrees else min(of_smoothed, of_raw), len(both))


def smoothed_ratio(entry: Measurement) -> float:
    """A time's smoothed ratio to dense; the raw ratio where no model has smoothed it."""
    return entry.estimate.ratio if isinstance(entry, ModelledTime) else entry.value / (entry.dense or math.nan)


def has_both(result: TrialResult, time: str, cost: str) -> bool:
    """True for a trial with its own measurements of a time and of a cost; a predicted time does not count."""
    entry = result.search.get(time)
    predicted = isinstance(entry, ModelledTime) and entry.is_predicted
    return has_own_measurements(result) and cost in result.search and is_time(time, entry) and not predicted


def predicted_evaluators(
    space: Space, evaluators: Mapping[str, frozenset[str]], predicted: Collection[str]
) -> set[str]:
    """Evaluators that further trials do not run, because all requested metrics of theirs are predicted.

    Args:
        space: The search space.
        evaluators: See `exclusive_evaluators`.
        predicted: Times that are predicted.
    """
    requested = {*requested_metrics(space)}
    return {name for name, metrics in evaluators.items() if (needed := requested & metrics) and needed <= {*predicted}}
