"""What a study says of its clock: noise, what stood in for what, and how the front's times came out again."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluators.base import Measurement
from .space.units import phrase, points
from .times.noise import noise_line, noise_of, spread_of, warning
from .times.stand_ins import StandIn
from .trial.modelled_time import SURE, ModelledTime, is_time
from .trial.trial_result import Clock, StudyRecord, TrialRecord


def clocks(
    trials: Sequence[TrialRecord],
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
    trials: Sequence[TrialRecord],
    members: Sequence[TrialRecord],
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


def time_lines(record: StudyRecord) -> list[str]:
    """All of it in sentences; the selection bias of times is told for the front's policies that were timed again."""
    lines = []
    for name, one in record.clocks.items():
        if one.noise is not None:
            lines.append(noise_line(name, one.noise, one.blocks))
            if one.spread is not None and name in record.objectives and (said := warning(name, one.noise, one.spread)):
                lines.append(said)
        lines += [f"{one.text[0].upper()}{one.text[1:]}."] if one.text else []
        lines += [gap_line(name, one)] if one.gap is not None else []
    return lines


def gap_line(name: str, one: Clock) -> str:
    """The mean gap between what the search took times for, and what they are when they are measured again."""
    gap, raw = one.gap or 0.0, one.raw_gap
    lucky = "" if raw is None else f"; as it was measured, without the model, by {points(raw)}"
    return (
        "Selection bias of times: timed again, in turns with dense and with each other, the "
        f"{one.again} policies of the front differ in {phrase(name)} by {points(gap)} of dense from what the search "
        f"took them for, on average{lucky}; {one.within} of {one.again} are within their 95 % intervals."
    )


def time_data(record: StudyRecord) -> dict[str, Any]:
    """The same as plain data."""
    return {
        name: {
            "noise": one.noise,
            "measurements_of_noise": one.blocks,
            "spread": one.spread,
            "predicted_by": one.cost,
            "gap": one.gap,
            "raw_gap": one.raw_gap,
            "timed_again": one.again,
            "within_interval": one.within,
        }
        for name, one in record.clocks.items()
    }
