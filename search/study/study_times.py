"""The trials of a study with their times smoothed, and what it holds of times beside its trials.

That is dense against dense, which cost stands in for which time, and what the front took when it was timed again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import optuna

from ...evaluators.base import Measurement
from ...policies.policy import Policy
from ..space.space import Space
from ..times.smoothed import Times
from ..times.stand_ins import StandIn, left_out, timers
from ..trial.modelled_time import ExpectedTime, plain
from ..trial.trial_result import TrialResult
from .storage import Ledger, measurements_text

NOISE = "dense_against_dense"
STAND_INS = "stand_ins"


def null_of(attrs: Mapping[str, Any]) -> dict[str, list[Measurement]]:
    """By metric what dense took beside itself, from the attributes of a study."""
    return {
        name: [Measurement(**one) for one in entries] for name, entries in json.loads(attrs.get(NOISE, "{}")).items()
    }


def stand_ins_of(attrs: Mapping[str, Any]) -> list[StandIn]:
    """Which times a cost stands in for, from the attributes of a study."""
    return [StandIn(**one) for one in attrs.get(STAND_INS, [])]


def machine_times(attrs: Mapping[str, Any], space: Space, num_layers: int) -> Times:
    """What smooths the times of a study."""
    return Times(num_layers, space.constraints, null_of(attrs), [one.metric for one in stand_ins_of(attrs)])


class TimedLedger(Ledger):
    """The trials of a study as plain values, their times smoothed.

    Args:
        study: The study.
        space: Its space.
        num_layers: The model's decoder layers.

    Attributes:
        timers: The evaluators that need the device for themselves, with what they measure.
        times: What smooths times.
    """

    def __init__(self, study: optuna.Study, space: Space, num_layers: int) -> None:
        super().__init__(study)
        self._space = space
        self.timers = timers(space)
        self.times = machine_times(study.user_attrs, space, num_layers)
        self._followed: tuple[int, int] | None = None

    def follow_times(self) -> list[TrialResult]:
        """Fit what has to be fitted anew, where a trial was asked for or has finished since; all trials as measured."""
        records = super().records()
        state = len(self._seen), len(self._open)
        if state != self._followed:
            self.times.follow(records)
            self._followed = state
        return records

    def records(self) -> list[TrialResult]:
        """Every trial that was asked for, by number, its times smoothed; without the figures of the report split."""
        return [self.times.smoothed(record) for record in self.follow_times()]

    def record(self, number: int) -> TrialResult:
        """A trial that was asked for, its times smoothed, by its number."""
        return self.times.smoothed(super().record(number))

    def final_records(self) -> list[TrialResult]:
        """The trials with times that are smoothed by all that was measured, as the report has them."""
        self._followed = None
        return self.times.of(super().records(), whole=True)

    def told(self, policy: Policy, measurements: Mapping[str, Measurement]) -> Mapping[str, Measurement]:
        """What was measured of a policy, its times smoothed or predicted by those of all other trials."""
        self.follow_times()
        return self.times.told(policy, measurements) if measurements else measurements

    def expected_times(self, policy: Policy) -> dict[str, ExpectedTime]:
        """What is expected of a policy's times, for a worker that is to judge it."""
        self.follow_times()
        return self.times.expected(policy)

    @property
    def left_out(self) -> set[str]:
        """The evaluators that further trials do without."""
        return left_out(self._space, self.timers, self.times.stand_ins)

    @property
    def noise_is_known(self) -> bool:
        """True where dense was timed against itself."""
        return NOISE in self.study.user_attrs

    def keep_noise(self, found: Mapping[str, Sequence[Measurement]]) -> None:
        """Keep what dense took beside itself, by metric."""
        self.study.set_user_attr(
            NOISE, json.dumps({name: [plain(one) for one in all_] for name, all_ in found.items()})
        )
        self.times.null = dict(found)

    def keep_stand_in(self, found: StandIn) -> None:
        """Keep that a time is not measured any more."""
        self.study.set_user_attr(STAND_INS, [*self.study.user_attrs.get(STAND_INS, []), asdict(found)])
        self.times.stand_ins.append(found.metric)

    def keep_times(self, policy: Policy, found: Mapping[str, Measurement]) -> None:
        """Keep what a policy took when it was timed again."""
        self.study.set_user_attr(f"times:{policy.fingerprint}", measurements_text(found))

    def is_timed(self, policy: Policy) -> bool:
        """True where a policy was timed again."""
        return f"times:{policy.fingerprint}" in self.study.user_attrs
