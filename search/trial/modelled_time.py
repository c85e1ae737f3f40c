"""A time as the search compares it: smoothed by a model of all times, with its error, or told by that model alone."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from ...evaluators.base import Measurement
from ..space.constraint import Constraint
from ..space.units import unit_of
from ..trial.arrays import Floats
from .time_model import TimeEstimate

SURE = 1.96  # standard errors on each side of a 95 % interval
UNKNOWN = 0.01**2  # relative variance of a ratio where no measurement has repeats
PRIOR_REPEATS = 4  # repeats that the spread of all measurements counts as, beside a measurement's own
LEAST = 1e-8  # relative variance that no clock is below
DENSE = TimeEstimate(1.0, np.zeros(0), 0.0)


@dataclass(frozen=True)
class ModelledTime(Measurement):
    """A time with what the model of all times says of it; it is derived from the trials, and never stored.

    Attributes:
        estimate: Its ratio to dense, with its error.
    """

    estimate: TimeEstimate = DENSE

    @property
    def is_predicted(self) -> bool:
        """True where the model stands in for a measurement."""
        return self.n == 0

    @classmethod
    def of(cls, entry: Measurement, estimate: TimeEstimate) -> "ModelledTime":
        """A measurement as the model sees it."""
        return cls(**plain(entry), estimate=estimate)

    @classmethod
    def predicted(cls, estimate: TimeEstimate, dense: float) -> "ModelledTime":
        """What stands in for a measurement.

        Args:
            estimate: What is expected.
            dense: The dense model's time.
        """
        return cls(estimate.ratio * dense, n=0, dense=dense, estimate=estimate)


def plain(entry: Measurement) -> dict[str, Any]:
    """The fields of a measurement, without what a model says of it."""
    return {one.name: getattr(entry, one.name) for one in fields(Measurement)}


def is_time(name: str, entry: Measurement | None) -> bool:
    """True for a time that was measured beside the dense model's."""
    if entry is None or unit_of(name) != "ms" or not entry.dense:
        return False
    return math.isfinite(entry.value) and math.isfinite(entry.dense) and entry.value > 0


def own_spread(entry: Measurement) -> float | None:
    """The relative variance of a ratio of medians as its repeats show it; None where there is one repeat."""
    ours, dense = (entry.detail.get(key, ()) for key in ("repeats_ms", "dense_repeats_ms"))
    if len(ours) == len(dense) > 1 and min(*ours, *dense) > 0:
        ratios = np.log(ours) - np.log(dense)  # Each pair was timed in the same moment.
        wide = float(np.subtract(*np.percentile(ratios, (75, 25))))
    elif entry.iqr and entry.n > 1:
        wide = math.sqrt(2) * entry.iqr / entry.value
    else:
        return None
    # Of a normal distribution the quartiles are 1.349 standard deviations apart; a median strays 1.253 times a mean.
    return max((1.253 * wide / 1.349) ** 2 / entry.n, LEAST)


def pooled_spread(entries: list[Measurement]) -> float:
    """The relative variance of the measurements of a study, on average."""
    known = [spread for entry in entries if (spread := own_spread(entry)) is not None]
    return statistics.fmean(known) if known else UNKNOWN


def variance(entry: Measurement, pooled: float) -> float:
    """The variance of a measured ratio: few repeats say little of their spread, so that of all others counts too."""
    own, ratio = own_spread(entry), entry.value / (entry.dense or math.nan)
    if own is None:
        return pooled * ratio**2
    weight = entry.n - 1
    return (weight * own + PRIOR_REPEATS * pooled) / (weight + PRIOR_REPEATS) * ratio**2


@dataclass(frozen=True)
class ExpectedTime:
    """What the model says of one policy's time before it is measured; a small plain value that crosses processes.

    Attributes:
        base: What its layers say.
        by_cost: What saving all of a counted cost adds, to the ratio and to its shared errors.
        dense: The dense model's figures: of the time, and of those costs.
        noise: Variance of a measurement, in units of what its repeats show.
        pooled: See `pooled_spread`.
        instead: True where the time is not measured any more, and this stands in for it.
    """

    base: TimeEstimate
    by_cost: Mapping[str, tuple[float, Floats]] = field(default_factory=dict)
    dense: Mapping[str, float] = field(default_factory=dict)
    noise: float = 1.0
    pooled: float = UNKNOWN
    instead: bool = False

    def modelled(self, name: str, found: Mapping[str, Measurement]) -> ModelledTime | None:
        """A policy's time as far as it is known; None where nothing is to be said of it yet.

        Args:
            name: The metric.
            found: What was measured of the policy.
        """
        if any(cost not in found for cost in self.by_cost):
            return None
        ratio, shared = self.base.ratio, self.base.shared
        for cost, (change, errors) in self.by_cost.items():
            saved = 1 - found[cost].value / self.dense[cost]
            ratio, shared = ratio + saved * change, shared + saved * errors
        estimate, entry = TimeEstimate(ratio, shared, self.base.own), found.get(name)
        if entry is not None and entry.n and entry.dense and is_time(name, entry):
            noise = self.noise * variance(entry, self.pooled)
            return ModelledTime.of(entry, estimate.measured(entry.value / entry.dense, noise))
        return ModelledTime.predicted(estimate, self.dense[name]) if self.instead else None


def at_best(entry: Measurement, bound: Constraint) -> Measurement:
    """A figure as a bound would have it: of a time the end of its interval, for what stops a trial must be sure."""
    if not isinstance(entry, ModelledTime):
        return entry
    margin = SURE * entry.estimate.error * (1 if bound.at_least else -1)
    return replace(entry, estimate=replace(entry.estimate, ratio=entry.estimate.ratio + margin))


def with_times(found: Mapping[str, Measurement], expected: Mapping[str, ExpectedTime]) -> dict[str, Measurement]:
    """What was measured of a policy, its times as the model sees them, with those that it stands in for.

    Args:
        found: What was measured.
        expected: By metric.
    """
    told = {name: time for name, one in expected.items() if (time := one.modelled(name, found)) is not None}
    return {**found, **told}
