"""How each time of a study was measured: its noise, the cost it was predicted from, and the front timed again."""

import math
import statistics
from collections.abc import Sequence

from ...evaluators.base import Measurement
from ...policies.metadata import Z95
from ..times.noise import time_noise, time_spread
from ..times.smoothed import SmoothedTimes
from ..times.stand_ins import StandIn
from ..trial.modelled_time import ModelledTime, is_time
from ..trial.trial_result import TrialResult
from .study_record import Clock


def clocks(
    trials: Sequence[TrialResult],
    front: Sequence[int],
    times: SmoothedTimes,
    stand_ins: Sequence[StandIn],
) -> dict[str, Clock]:
    """How each time was measured, by metric.

    Args:
        trials: All trials with smoothed times; the first is dense.
        front: Trial numbers of the front.
        times: The model of their times, fitted to all of them.
        stand_ins: Costs that predict a time.
    """
    by_metric = {stand_in.metric: stand_in for stand_in in stand_ins}
    members = [trial for trial in trials if trial.number in front and not trial.policy.is_dense]
    return {
        name: clock(name, trials, members, times, by_metric.get(name))
        for name, entry in trials[0].search.items()
        if is_time(name, entry)
    }


def clock(
    name: str,
    trials: Sequence[TrialResult],
    members: Sequence[TrialResult],
    times: SmoothedTimes,
    stand_in: StandIn | None,
) -> Clock:
    """How one time was measured; `members` are the trials of the front without dense."""
    null = times.null.get(name, ())
    noise = time_noise(null)
    both = [(one.search[name], one.report[name]) for one in members if name in one.search and name in one.report]
    pairs = [(search, again) for search, again in both if isinstance(search, ModelledTime) and again.dense]
    gaps = [ratio_of(again) - search.estimate.ratio for search, again in pairs]
    raw = [ratio_of(again) - ratio_of(search) for search, again in pairs if not search.is_predicted]
    errors = [math.hypot(search.estimate.error, ratio_error(again)) for search, again in pairs]
    return Clock(
        noise=noise,
        blocks=len(null),
        spread=None if noise is None else time_spread(trials, name, noise),
        cost=stand_in.cost if stand_in else None,
        text=stand_in.text if stand_in else "",
        again=len(pairs),
        within=sum(abs(gap) <= Z95 * error for gap, error in zip(gaps, errors, strict=True)),
        gap=statistics.fmean(gaps) if gaps else None,
        raw_gap=statistics.fmean(raw) if raw else None,
        model=times.prediction_error(name),
    )


def ratio_of(entry: Measurement) -> float:
    """The measured ratio of a time to that of dense."""
    return entry.value / (entry.dense or math.nan)


def ratio_error(entry: Measurement) -> float:
    """Standard error of the ratio of a time that was measured again."""
    return (entry.stderr or 0.0) / (entry.dense or math.nan)
