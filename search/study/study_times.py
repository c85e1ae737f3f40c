"""The trials of a study with smoothed times, and the measurements of times that belong to no trial.

Those are dense timed against dense, the times that a counted cost predicts, and the second timing of the front.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import optuna

from ...evaluators.base import Measurement
from ...policies.policy import Policy
from ..space.space import Space
from ..times.smoothed import SmoothedTimes
from ..times.stand_ins import StandIn, exclusive_evaluators, predicted_evaluators
from ..trial.measurements import measurements_json
from ..trial.modelled_time import ExpectedTime, measurement_fields
from ..trial.trial_result import TrialResult
from .trial_cache import TrialCache

# Attributes of a study.
NOISE = "dense_against_dense"
STAND_INS = "stand_ins"


def dense_timings(attrs: Mapping[str, Any]) -> dict[str, list[Measurement]]:
    """The measurements of dense against dense by metric, from the attributes of a study."""
    return {
        name: [Measurement(**entry) for entry in entries]
        for name, entries in json.loads(attrs.get(NOISE, "{}")).items()
    }


def stand_ins_of(attrs: Mapping[str, Any]) -> list[StandIn]:
    """The times that a counted cost predicts, from the attributes of a study."""
    return [StandIn(**entry) for entry in attrs.get(STAND_INS, [])]


def smoothed_times(attrs: Mapping[str, Any], space: Space, num_layers: int) -> SmoothedTimes:
    """The model of a study's times, not yet fitted, from the attributes of the study."""
    predicted = [stand_in.metric for stand_in in stand_ins_of(attrs)]
    return SmoothedTimes(num_layers, space.constraints, dense_timings(attrs), predicted)


class TimedTrialCache(TrialCache):
    """The trials of a study as plain values, with smoothed times.

    Args:
        study: The study.
        space: Its space.
        num_layers: The number of the model's decoder layers.

    Attributes:
        exclusive_evaluators: By evaluator that needs the device for itself, what it measures.
        times: The model of all times.
    """

    def __init__(self, study: optuna.Study, space: Space, num_layers: int) -> None:
        super().__init__(study)
        self._space = space
        self.exclusive_evaluators = exclusive_evaluators(space)
        self.times = smoothed_times(study.user_attrs, space, num_layers)
        self._fitted_at: tuple[int, int] | None = None

    def refit_times(self) -> list[TrialResult]:
        """Refit the model of times where a trial was added or has finished since.

        Returns:
            All trials with their measured times.
        """
        results = super().results()
        counts = len(self._trials), len(self._unfinished)
        if counts != self._fitted_at:
            self.times.refit(results)
            self._fitted_at = counts
        return results

    def results(self) -> list[TrialResult]:
        """Every trial that has a policy, by number, with smoothed times; without those on the report split."""
        return [self.times.smooth(result) for result in self.refit_times()]

    def result(self, number: int) -> TrialResult:
        """The trial with this number, with smoothed times."""
        return self.times.smooth(super().result(number))

    def final_results(self) -> list[TrialResult]:
        """Every trial with times smoothed by a model of all measurements, as the report shows them."""
        self._fitted_at = None
        return self.times.smooth_all(super().results(), final=True)

    def with_smoothed_times(self, policy: Policy, measurements: Mapping[str, Measurement]) -> Mapping[str, Measurement]:
        """Measurements of a policy with times smoothed, or predicted, by the times of all other trials."""
        self.refit_times()
        return self.times.with_smoothed_times(policy, measurements) if measurements else measurements

    def expected_times(self, policy: Policy) -> dict[str, ExpectedTime]:
        """The expected times of a policy by metric, which its worker compares measured times with."""
        self.refit_times()
        return self.times.predict(policy)

    @property
    def skipped_evaluators(self) -> set[str]:
        """The evaluators that further trials skip, because all that they measure is predicted."""
        return predicted_evaluators(self._space, self.exclusive_evaluators, self.times.stand_ins)

    @property
    def noise_is_known(self) -> bool:
        """True where dense was timed against dense."""
        return NOISE in self.study.user_attrs

    def keep_noise(self, found: Mapping[str, Sequence[Measurement]]) -> None:
        """Store the measurements of dense against dense, by metric."""
        entries = {name: [measurement_fields(entry) for entry in of_metric] for name, of_metric in found.items()}
        self.study.set_user_attr(NOISE, json.dumps(entries))
        self.times.null = dict(found)

    def keep_stand_in(self, found: StandIn) -> None:
        """Store that a counted cost predicts a time, which is not measured any more."""
        self.study.set_user_attr(STAND_INS, [*self.study.user_attrs.get(STAND_INS, []), asdict(found)])
        self.times.stand_ins.append(found.metric)

    def keep_times(self, policy: Policy, found: Mapping[str, Measurement]) -> None:
        """Store the second timing of a policy on the front."""
        self.study.set_user_attr(f"times:{policy.fingerprint}", measurements_json(found))

    def is_timed(self, policy: Policy) -> bool:
        """True where the second timing of a policy is stored."""
        return f"times:{policy.fingerprint}" in self.study.user_attrs
