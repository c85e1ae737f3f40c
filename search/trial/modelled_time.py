"""Times after smoothing: a measured time with the estimate of the time model, or a time predicted by that model."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from ...evaluators.base import Measurement
from ...policies.metadata import Z95
from ..space.constraint import Constraint
from ..space.units import unit_of
from ..trial.arrays import Floats
from .time_model import TimeEstimate

UNKNOWN_VARIANCE = 0.01**2  # relative variance of a ratio where no measurement has repeats
PRIOR_REPEATS = 4  # weight, in repeats, of the pooled variance beside a measurement's own
MIN_VARIANCE = 1e-8  # relative variance of a ratio: no clock is more precise
# A normal distribution's quartiles are 1.349 standard deviations apart. The standard error of a median is 1.253 times
# that of a mean.
QUARTILES = 1.349
MEDIAN_ERROR = 1.253
DENSE = TimeEstimate(1.0, np.zeros(0), 0.0)


@dataclass(frozen=True)
class ModelledTime(Measurement):
    """A time with the estimate of the time model; it is derived from the trials and never stored.

    Attributes:
        estimate: Its ratio to dense, with standard error.
    """

    estimate: TimeEstimate = DENSE

    @property
    def is_predicted(self) -> bool:
        """True where the time was not measured and the model predicts it."""
        return self.n == 0

    @classmethod
    def of(cls, entry: Measurement, estimate: TimeEstimate) -> "ModelledTime":
        """A measured time with the model's estimate."""
        return cls(**measurement_fields(entry), estimate=estimate)

    @classmethod
    def predicted(cls, estimate: TimeEstimate, dense: float) -> "ModelledTime":
        """A predicted time, used in place of a measurement.

        Args:
            estimate: The model's prediction.
            dense: The dense model's time.
        """
        return cls(estimate.ratio * dense, n=0, dense=dense, estimate=estimate)


def measurement_fields(entry: Measurement) -> dict[str, Any]:
    """The fields of a measurement, without those that `ModelledTime` adds."""
    return {one.name: getattr(entry, one.name) for one in fields(Measurement)}


def is_time(name: str, entry: Measurement | None) -> bool:
    """True for a time that was measured interleaved with the dense model's."""
    if entry is None or unit_of(name) != "ms" or not entry.dense:
        return False
    return math.isfinite(entry.value) and math.isfinite(entry.dense) and entry.value > 0


def repeat_variance(entry: Measurement) -> float | None:
    """Relative variance of a ratio of medians, from the spread of its repeats; None where there is one repeat."""
    ours, dense = (entry.detail.get(key, ()) for key in ("repeats_ms", "dense_repeats_ms"))
    if len(ours) == len(dense) > 1 and min(*ours, *dense) > 0:
        ratios = np.log(ours) - np.log(dense)  # Paired, because the two of each repeat were timed in the same moment.
        quartile_range = float(np.subtract(*np.percentile(ratios, (75, 25))))
    elif entry.iqr and entry.n > 1:
        quartile_range = math.sqrt(2) * entry.iqr / entry.value
    else:
        return None
    return max((MEDIAN_ERROR * quartile_range / QUARTILES) ** 2 / entry.n, MIN_VARIANCE)


def pooled_variance(entries: list[Measurement]) -> float:
    """Mean relative variance of a study's time measurements."""
    variances = [one for entry in entries if (one := repeat_variance(entry)) is not None]
    return statistics.fmean(variances) if variances else UNKNOWN_VARIANCE


def ratio_variance(entry: Measurement, pooled: float) -> float:
    """Variance of a measured ratio, shrunk to the pooled variance because few repeats show their spread poorly.

    Args:
        entry: The measured time.
        pooled: See `pooled_variance`.
    """
    own, ratio = repeat_variance(entry), entry.value / (entry.dense or math.nan)
    if own is None:
        return pooled * ratio**2
    weight = entry.n - 1
    return (weight * own + PRIOR_REPEATS * pooled) / (weight + PRIOR_REPEATS) * ratio**2


@dataclass(frozen=True)
class ExpectedTime:
    """The time model's prediction for one policy, before it is measured; a small plain value that crosses processes.

    Attributes:
        base: The prediction from its layers.
        cost_effects: By counted cost, the change of the ratio and of its shared errors when all of that cost is saved.
        dense: The dense model's values: of the time, and of those costs.
        noise: Variance of a measurement, as a multiple of what its repeats show.
        pooled_variance: See `pooled_variance`.
        replaces_measurement: True where the time is no longer measured and this prediction is used instead.
    """

    base: TimeEstimate
    cost_effects: Mapping[str, tuple[float, Floats]] = field(default_factory=dict)
    dense: Mapping[str, float] = field(default_factory=dict)
    noise: float = 1.0
    pooled_variance: float = UNKNOWN_VARIANCE
    replaces_measurement: bool = False

    def modelled(self, name: str, found: Mapping[str, Measurement]) -> ModelledTime | None:
        """The policy's time given its measurements so far; None while a cost or the time itself is not yet measured.

        Args:
            name: The metric.
            found: The policy's measurements.
        """
        if any(cost not in found for cost in self.cost_effects):
            return None
        ratio, shared = self.base.ratio, self.base.shared_errors
        for cost, (change, errors) in self.cost_effects.items():
            saved = 1 - found[cost].value / self.dense[cost]
            ratio, shared = ratio + saved * change, shared + saved * errors
        estimate, entry = TimeEstimate(ratio, shared, self.base.independent_error), found.get(name)
        if entry is not None and entry.n and entry.dense and is_time(name, entry):
            noise = self.noise * ratio_variance(entry, self.pooled_variance)
            return ModelledTime.of(entry, estimate.updated(entry.value / entry.dense, noise))
        return ModelledTime.predicted(estimate, self.dense[name]) if self.replaces_measurement else None


def optimistic_value(entry: Measurement, bound: Constraint) -> Measurement:
    """A measurement at its best for a constraint: a modelled time at the favourable end of its 95 % interval.

    A trial stops early only where it surely violates the constraint.
    """
    if not isinstance(entry, ModelledTime):
        return entry
    margin = Z95 * entry.estimate.error * (1 if bound.at_least else -1)
    return replace(entry, estimate=replace(entry.estimate, ratio=entry.estimate.ratio + margin))


def with_modelled_times(
    found: Mapping[str, Measurement], expected: Mapping[str, ExpectedTime]
) -> dict[str, Measurement]:
    """A policy's measurements with smoothed times, and predicted times where these replace measurements.

    Args:
        found: The measurements.
        expected: Predictions by metric.
    """
    times = {name: time for name, one in expected.items() if (time := one.modelled(name, found)) is not None}
    return {**found, **times}
