"""Where one cost predicts another: the dearer one, a time, is not measured any more in further trials."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...evaluators.base import evaluator_class
from ..space.space import Space
from ..space.units import phrase, unit_of
from ..trial.modelled_time import ModelledTime, is_time
from ..trial.trial_result import TrialResult
from .smoothed import counts

LEAST = 12  # policies over which a correlation is told
ALIKE = 0.95  # rank correlation above which two costs say the same


@dataclass(frozen=True)
class StandIn:
    """A counted cost that tells a time.

    Attributes:
        metric: The time.
        cost: The counted cost.
        correlation: Spearman's, over the measured policies.
        policies: How many those were.
    """

    metric: str
    cost: str
    correlation: float
    policies: int

    @property
    def text(self) -> str:
        """What the search says of it."""
        return (
            f"{phrase(self.cost)} ranks policies as {phrase(self.metric)} does (rank correlation "
            f"{self.correlation:.3f} over {self.policies} measured policies): from here on {phrase(self.metric)} is "
            "predicted from what was measured, and measured again for the front alone"
        )


def asked(space: Space) -> list[str]:
    """The metrics that a search goes by."""
    return [*dict.fromkeys((*space.objectives, *space.constraints))]


def timers(space: Space) -> dict[str, frozenset[str]]:
    """The evaluators that need the device for themselves, with what they measure."""
    kinds = {name: evaluator_class(name) for name in space.evaluate}
    return {name: frozenset(kind.metrics) for name, kind in kinds.items() if kind.exclusive}


def stand_ins(
    records: Sequence[TrialResult], space: Space, clocks: Mapping[str, frozenset[str]], known: Collection[str]
) -> list[StandIn]:
    """Times that a counted cost has come to predict.

    Args:
        records: All trials with what they measured; the first is dense.
        space: The search space.
        clocks: See `timers`.
        known: Times that are predicted already.
    """
    timed, dense = frozenset().union(*clocks.values()), records[0].search
    times = [name for name in asked(space) if name in timed and name not in known and is_time(name, dense.get(name))]
    costs = [name for name in asked(space) if unit_of(name) in ("flops", "bytes") and name in dense]
    found = []
    for time in times:
        told = [one for cost in costs if (one := stand_in(records[1:], time, cost)).correlation > ALIKE]
        found += [max(told, key=lambda one: one.correlation)] if told else []
    return found


def stand_in(records: Sequence[TrialResult], time: str, cost: str) -> StandIn:
    """How well a cost tells a time: by smoothed times, if what was measured says the same but for its noise.

    Noise takes from a correlation (Spearman 1904, attenuation): what was measured cannot come to more than the root of
    its share that is no noise.
    """
    from scipy.stats import spearmanr

    both = [(one.search[time], one.search[cost].value) for one in records if counts(one) and measured(one, time, cost)]
    values = np.array([value for _, value in both])
    raw = np.array([entry.value / (entry.dense or math.nan) for entry, _ in both])
    told = [
        (entry.estimate.ratio if isinstance(entry, ModelledTime) else one)
        for (entry, _), one in zip(both, raw, strict=True)
    ]
    smoothed = np.array(told)
    if len(both) < LEAST or min(np.ptp(raw), np.ptp(smoothed), np.ptp(values)) <= 0:
        return StandIn(time, cost, 0.0, len(both))
    known = math.sqrt(max(0.0, 1 - float(np.var(raw - smoothed) / np.var(raw))))
    found, seen = (float(spearmanr(times, values).statistic) for times in (smoothed, raw))
    return StandIn(time, cost, found if seen > ALIKE * known else min(found, seen), len(both))


def measured(record: TrialResult, time: str, cost: str) -> bool:
    """True where a trial has both figures, and the time is no prediction."""
    entry = record.search.get(time)
    predicted = isinstance(entry, ModelledTime) and entry.is_predicted
    return cost in record.search and is_time(time, entry) and not predicted


def left_out(space: Space, clocks: Mapping[str, frozenset[str]], known: Collection[str]) -> set[str]:
    """The evaluators that further trials do without: all that they are asked for is predicted.

    Args:
        space: The search space.
        clocks: See `timers`.
        known: Times that are predicted.
    """
    wanted = {*asked(space)}
    return {name for name, metrics in clocks.items() if (needed := wanted & metrics) and needed <= {*known}}
