"""The times of a study: smoothed by a model of all of them, and predicted where another cost stands in for them.

Everything here is derived from what the study holds, so that a search that was interrupted goes on with the same
figures. The model is fitted anew when so many more trials were timed; those that come in between are told by it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...evaluators.base import Measurement
from ...policies.policy import Policy
from ..space.constraint import Constraint
from ..space.units import unit_of
from ..trial.modelled_time import ExpectedTime, ModelledTime, is_time, pooled_spread, variance, with_times
from ..trial.pareto import objective_value
from ..trial.time_model import Features, Timed, TimeEstimate, TimeModel, features
from ..trial.trial_result import TrialResult

EPOCHS = 16  # the model is fitted anew when the search has grown by one part in so many


@dataclass(frozen=True)
class Fit:
    """The model of one metric.

    Attributes:
        model: The model.
        numbers: The trials that it was fitted to.
        estimates: What it says of those.
        pooled: See `pooled_spread`.
        costs: The counted costs that it knows policies by.
    """

    model: TimeModel
    numbers: tuple[int, ...]
    estimates: Mapping[int, TimeEstimate]
    pooled: float
    costs: tuple[str, ...]


class Times:
    """Smooths the times of trials.

    Args:
        num_layers: The model's decoder layers.
        bounds: The constraints of the space, by metric.
        null: By metric, measurements of dense against dense.
        stand_ins: Metrics that are not measured any more.
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
        self._fits: dict[str, Fit] = {}
        self._smoothed: dict[int, tuple[TrialResult, TrialResult]] = {}
        self._dense: Mapping[str, Measurement] = {}
        self.version = 0

    def of(self, records: Sequence[TrialResult], whole: bool = False) -> list[TrialResult]:
        """Trials with their times smoothed.

        Args:
            records: All trials, by number; the first is dense.
            whole: Fit the model to every trial, as at the end of a search.
        """
        self.follow(records, whole)
        return [self.smoothed(record) for record in records]

    def follow(self, records: Sequence[TrialResult], whole: bool = False) -> None:
        """Fit what has to be fitted anew; see `of`."""
        dense = next((one for one in records if one.policy.is_dense and one.state == "complete"), None)
        if dense is None:
            return
        self._dense = dense.search
        for name in [name for name, entry in self._dense.items() if is_time(name, entry)]:
            timed = [one for one in records if counts(one) and is_time(name, one.search.get(name)) and one is not dense]
            begun = len(timed) if whole else len(timed) - len(timed) % max(1, len(timed) // EPOCHS)
            numbers = tuple(record.number for record in timed[:begun])
            if numbers and (name not in self._fits or self._fits[name].numbers != numbers):
                self._fits[name] = self._fitted(name, timed[:begun])
                self._smoothed, self.version = {}, self.version + 1

    def _fitted(self, name: str, records: Sequence[TrialResult]) -> Fit:
        entries, null = [record.search[name] for record in records], self.null.get(name, ())
        pooled = pooled_spread([*entries, *null])
        costs = tuple(cost for cost in self._costs() if all(cost in record.search for record in records))
        timed = [
            Timed(self._features(record, costs), entry.value / (entry.dense or 1.0), variance(entry, pooled))
            for record, entry in zip(records, entries, strict=True)
        ]
        model = TimeModel(
            self._layers, timed, [(entry.value / (entry.dense or 1.0), variance(entry, pooled)) for entry in null]
        )
        estimates = {record.number: model.smoothed(one) for record, one in zip(records, timed, strict=True)}
        return Fit(model, tuple(estimates), estimates, pooled, costs)

    def _costs(self) -> list[str]:
        """The counted costs of dense, which are known before a policy is timed."""
        return [name for name, entry in self._dense.items() if unit_of(name) == "flops" and entry.value > 0]

    def _features(self, record: TrialResult, costs: Sequence[str]) -> Features:
        shares = {cost: record.search[cost].value / self._dense[cost].value for cost in costs}
        return features(record.policy, self._layers, shares)

    def expected(self, policy: Policy) -> dict[str, ExpectedTime]:
        """What is expected of a policy's times before it is measured, by metric; dense is what they are told by."""
        if policy.is_dense:
            return {}
        plain = features(policy, self._layers)
        return {
            name: ExpectedTime(
                fit.model.expected(plain),
                {cost: fit.model.at_cost(cost) for cost in fit.costs},
                {one: self._dense[one].value for one in (name, *fit.costs)},
                fit.model.noise,
                fit.pooled,
                name in self.stand_ins,
            )
            for name, fit in self._fits.items()
        }

    def told(self, policy: Policy, found: Mapping[str, Measurement]) -> dict[str, Measurement]:
        """What was measured of a policy, its times smoothed, with what stands in for those that are not measured."""
        return with_times(found, self.expected(policy))

    def smoothed(self, record: TrialResult) -> TrialResult:
        """A trial with its times as the model sees them."""
        known = self._smoothed.get(record.number)
        if known is None or known[0] is not record:
            self._smoothed[record.number] = known = record, self._told(record)
        return known[1]

    def _told(self, record: TrialResult) -> TrialResult:
        if record.state != "complete" or not self._fits or record.policy.is_dense:
            return record
        number, search = record.number if record.duplicate_of is None else record.duplicate_of, dict(record.search)
        expected = self.expected(record.policy)
        for name, fit in self._fits.items():
            if name not in search and name not in record.predicted:
                continue
            if number in fit.estimates and name in search:
                search[name] = ModelledTime.of(search[name], fit.estimates[number])
            else:
                time = replace(expected[name], instead=True).modelled(name, search)
                search |= {} if time is None else {name: time}
        dense = self._dense
        bounds = {name: bound for name, bound in self._bounds.items() if isinstance(search.get(name), ModelledTime)}
        excess = {
            name: bound.excess(objective_value(name, search[name], dense[name]), dense[name].value, dense[name].floor)
            for name, bound in bounds.items()
        }
        return replace(record, search=search, violations={**record.violations, **excess})

    def misfit(self, name: str) -> float | None:
        """Standard deviation of what no sum over the layers explains of a time; None where nothing was timed."""
        return self._fits[name].model.misfit if name in self._fits else None


def counts(record: TrialResult) -> bool:
    """True where a trial's measurements are its own."""
    return record.state == "complete" and record.duplicate_of is None
