"""Smooths the times of a study with a model of all of them, and predicts times that are no longer measured.

Everything here is computed from the study's trials, so an interrupted search resumes with the same values. The model is
refitted when the number of timed trials has grown by a fixed share; in between, it predicts the new trials, and each
measurement updates its own prediction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...evaluators.base import Measurement
from ...policies.policy import Policy
from ..space.constraint import Constraint
from ..space.units import unit_of
from ..trial.modelled_time import (
    ExpectedTime,
    ModelledTime,
    is_time,
    pooled_variance,
    ratio_variance,
    with_modelled_times,
)
from ..trial.pareto import objective_value
from ..trial.time_model import Features, TimedPolicy, TimeEstimate, TimeModel, features
from ..trial.trial_result import TrialResult

REFIT_SHARE = 16  # the model is refitted when the timed trials have grown by one part in so many


@dataclass(frozen=True)
class FittedTime:
    """The fitted model of one time.

    Attributes:
        model: The model.
        numbers: Numbers of the trials that it was fitted to.
        estimates: By those numbers, the smoothed times.
        pooled_variance: See `modelled_time.pooled_variance`.
        costs: The counted costs among the model's features.
        error: How well the model predicts a policy that it has not seen.
    """

    model: TimeModel
    numbers: tuple[int, ...]
    estimates: Mapping[int, TimeEstimate]
    pooled_variance: float
    costs: tuple[str, ...]
    error: "PredictionError"


@dataclass(frozen=True)
class PredictionError:
    """How well a model of times predicts a policy that it was not fitted to: each measured one from all others.

    Attributes:
        policies: How many policies were measured.
        rms: Root mean square of the differences between predicted and measured ratios to dense; the noise of the
            measurements is part of it.
        noise: The part of it that the noise of one measurement explains: its standard deviation.
        correlation: Spearman's rank correlation of predictions and measurements; None with fewer than three policies,
            or where all are equal.
    """

    policies: int
    rms: float
    noise: float
    correlation: float | None


def prediction_error(model: TimeModel, timed: Sequence[TimedPolicy]) -> PredictionError:
    """The error of a model on the policies that it was fitted to, each left out in turn."""
    from scipy.stats import spearmanr

    measured = np.array([one.ratio for one in timed])
    ranks = len(timed) > 2 and min(np.ptp(measured), np.ptp(model.without_own)) > 0
    return PredictionError(
        len(timed),
        float(np.sqrt(np.mean((model.without_own - measured) ** 2))),
        float(np.sqrt(model.noise * np.mean([one.variance for one in timed]))),
        float(spearmanr(model.without_own, measured).statistic) if ranks else None,
    )


class SmoothedTimes:
    """Smooths the times of trials and predicts those of new policies.

    Args:
        num_layers: The model's decoder layers.
        bounds: The constraints of the space, by metric.
        null: By metric, measurements of dense against dense.
        stand_ins: Times that are no longer measured.

    Attributes:
        version: Grows with every refit.
    """

    def __init__(
        self,
        num_layers: int,
        bounds: Mapping[str, Constraint],
        null: Mapping[str, Sequence[Measurement]],
        stand_ins: Sequence[str] = (),
    ) -> None:
        self._layers, self._bounds = num_layers, bounds
        self.null, self.stand_ins = dict(null), [*stand_ins]
        self._fits: dict[str, FittedTime] = {}
        self._smoothed: dict[int, tuple[TrialResult, TrialResult]] = {}
        self._dense: Mapping[str, Measurement] = {}
        self.version = 0

    def smooth_all(self, results: Sequence[TrialResult], final: bool = False) -> list[TrialResult]:
        """Trials with smoothed times.

        Args:
            results: All trials, by number; the first is dense.
            final: Fit the model to every trial, as at the end of a search.
        """
        self.refit(results, final)
        return [self.smooth(result) for result in results]

    def refit(self, results: Sequence[TrialResult], final: bool = False) -> None:
        """Refits the models for which enough new trials were timed; for the arguments see `smooth_all`."""
        dense = next((one for one in results if one.policy.is_dense and one.state == "complete"), None)
        if dense is None:
            return
        self._dense = dense.search
        for name in [name for name, entry in self._dense.items() if is_time(name, entry)]:
            timed = [
                one
                for one in results
                if has_own_measurements(one) and is_time(name, one.search.get(name)) and one is not dense
            ]
            count = len(timed) if final else len(timed) - len(timed) % max(1, len(timed) // REFIT_SHARE)
            numbers = tuple(result.number for result in timed[:count])
            if numbers and (name not in self._fits or self._fits[name].numbers != numbers):
                self._fits[name] = self._fit(name, timed[:count])
                self._smoothed, self.version = {}, self.version + 1

    def _fit(self, name: str, results: Sequence[TrialResult]) -> FittedTime:
        entries, null = [result.search[name] for result in results], self.null.get(name, ())
        pooled = pooled_variance([*entries, *null])
        costs = tuple(cost for cost in self._counted_costs() if all(cost in result.search for result in results))
        timed = [
            TimedPolicy(
                self._features(result, costs), entry.value / (entry.dense or 1.0), ratio_variance(entry, pooled)
            )
            for result, entry in zip(results, entries, strict=True)
        ]
        null_ratios = [(entry.value / (entry.dense or 1.0), ratio_variance(entry, pooled)) for entry in null]
        model = TimeModel(self._layers, timed, null_ratios)
        estimates = {result.number: model.smoothed(one) for result, one in zip(results, timed, strict=True)}
        return FittedTime(model, tuple(estimates), estimates, pooled, costs, prediction_error(model, timed))

    def _counted_costs(self) -> list[str]:
        """The counted costs of dense; those of a policy are known before it is timed."""
        return [name for name, entry in self._dense.items() if unit_of(name) == "flops" and entry.value > 0]

    def _features(self, result: TrialResult, costs: Sequence[str]) -> Features:
        shares = {cost: result.search[cost].value / self._dense[cost].value for cost in costs}
        return features(result.policy, self._layers, shares)

    def predict(self, policy: Policy) -> dict[str, ExpectedTime]:
        """Predicted times of a policy, by metric; empty for dense, because times are ratios to dense."""
        if policy.is_dense:
            return {}
        without_costs = features(policy, self._layers)
        return {
            name: ExpectedTime(
                fit.model.predict(without_costs),
                {cost: fit.model.cost_effect(cost) for cost in fit.costs},
                {one: self._dense[one].value for one in (name, *fit.costs)},
                fit.model.noise,
                fit.pooled_variance,
                name in self.stand_ins,
            )
            for name, fit in self._fits.items()
        }

    def with_smoothed_times(self, policy: Policy, found: Mapping[str, Measurement]) -> dict[str, Measurement]:
        """A policy's measurements with smoothed times, and predicted ones where times are no longer measured."""
        return with_modelled_times(found, self.predict(policy))

    def smooth(self, result: TrialResult) -> TrialResult:
        """A trial with smoothed times and the constraint violations that follow from them."""
        cached = self._smoothed.get(result.number)
        if cached is None or cached[0] is not result:
            self._smoothed[result.number] = cached = result, self._compute_smoothed(result)
        return cached[1]

    def _compute_smoothed(self, result: TrialResult) -> TrialResult:
        if result.state != "complete" or not self._fits or result.policy.is_dense:
            return result
        search = {**result.search, **self._modelled_times(result)}
        dense = self._dense
        bounds = {name: bound for name, bound in self._bounds.items() if isinstance(search.get(name), ModelledTime)}
        violations = {
            name: bound.excess(objective_value(name, search[name], dense[name]), dense[name].value, dense[name].floor)
            for name, bound in bounds.items()
        }
        return replace(result, search=search, violations={**result.violations, **violations})

    def _modelled_times(self, result: TrialResult) -> dict[str, ModelledTime]:
        """A trial's times: smoothed where the model was fitted to the trial, else predicted and then updated."""
        number = result.number if result.duplicate_of is None else result.duplicate_of
        predictions, found = self.predict(result.policy), {}
        for name, fit in self._fits.items():
            if name not in result.search and name not in result.predicted:
                continue
            if number in fit.estimates and name in result.search:
                found[name] = ModelledTime.of(result.search[name], fit.estimates[number])
            else:
                time = replace(predictions[name], replaces_measurement=True).modelled(name, result.search)
                found |= {} if time is None else {name: time}
        return found

    def prediction_error(self, name: str) -> PredictionError | None:
        """How well the model predicts a time of a policy that was not measured; None where nothing was timed."""
        return self._fits[name].error if name in self._fits else None


def has_own_measurements(result: TrialResult) -> bool:
    """True for a complete trial that was measured itself, instead of sharing the measurements of a duplicate."""
    return result.state == "complete" and result.duplicate_of is None
