"""How each time of a study was measured: noise, stand-ins, and how the front came out when it was timed again."""

import math
import statistics
from collections.abc import Mapping, Sequence

from ...evaluators.base import Measurement
from ..times.noise import noise_of, spread_of
from ..times.stand_ins import StandIn
from ..trial.modelled_time import SURE, ModelledTime, is_time
from ..trial.trial_result import TrialResult
from .study_record import Clock


def clocks(
    trials: Sequence[TrialResult],
    front: Sequence[int],
    null: Mapping[str, Sequence[Measurement]],
    found: Sequence[StandIn],
) -> dict[str, Clock]:
    """What is known of each time.

    Args:
        trials: All trials, their times smoothed; the first is dense.
        front: Numbers of the front's.
        null: By metric, dense against dense.
        found: Which cost stands in for which time.
    """
    instead = {one.metric: one for one in found}
    members = [trial for trial in trials if trial.number in front and not trial.policy.is_dense]
    return {
        name: clock(name, trials, members, null.get(name, ()), instead.get(name))
        for name, entry in trials[0].search.items()
        if is_time(name, entry)
    }


def clock(
    name: str,
    trials: Sequence[TrialResult],
    members: Sequence[TrialResult],
    null: Sequence[Measurement],
    instead: StandIn | None,
) -> Clock:
    """What is known of one time."""
    noise = noise_of(null)
    both = [(one.search[name], one.report[name]) for one in members if name in one.search and name in one.report]
    pairs = [(searched, again) for searched, again in both if isinstance(searched, ModelledTime) and again.dense]
    gaps = [again.value / (again.dense or math.nan) - searched.estimate.ratio for searched, again in pairs]
    raw = [ratio_of(again) - ratio_of(searched) for searched, again in pairs if not searched.is_predicted]
    errors = [math.hypot(searched.estimate.error, stray(again)) for searched, again in pairs]
    return Clock(
        noise=noise,
        blocks=len(null),
        spread=None if noise is None else spread_of(trials, name, noise),
        cost=instead.cost if instead else None,
        text=instead.text if instead else "",
        again=len(pairs),
        within=sum(abs(gap) <= SURE * error for gap, error in zip(gaps, errors, strict=True)),
        gap=statistics.fmean(gaps) if gaps else None,
        raw_gap=statistics.fmean(raw) if raw else None,
    )


def ratio_of(entry: Measurement) -> float:
    """A time by that of dense, as it was measured."""
    return entry.value / (entry.dense or math.nan)


def stray(entry: Measurement) -> float:
    """Standard error of the ratio of a time that was measured again."""
    return (entry.stderr or 0.0) / (entry.dense or math.nan)
