"""Racing: a candidate is judged on few examples first, and on more only while it may belong to the front.

Everyone answers the same examples in the same random order, so that a candidate is compared example by example with
who has answered all of them: the best of the front that costs no more, and the dense model where accuracy is bounded.
What a candidate costs is measured before it answers anything, so nothing about it is guessed. It drops out when
its answers are evidence that it ends up worse on the whole split: by a test that may be looked at after every example
without losing its confidence, that counts the examples as drawn without replacement, and that asks nothing of the
scores but a bound (Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, 2024).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...evaluators.base import Direction, Measurement, Metric
from ..space.space import Racing, Space
from ..trial.modelled_time import ModelledTime
from ..trial.pareto import as_time, front_trials, objective_point, objective_value
from ..trial.scores import weights_of
from ..trial.tied_times import no_slower
from ..trial.time_model import TimeEstimate
from ..trial.trial_result import TrialResult

# Shares of what may be bet at most, from cautious, for a small difference, to bold.
BETS = np.linspace(0.05, 0.95, 10)
# Differences are sums of scores and bounds; rounding is no evidence.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Rival:
    """A member of the front, with what it answered; a small plain value that crosses processes.

    Attributes:
        number: Of its trial.
        values: Its objectives.
        scores: Its score of each example, by the metrics that are measured on examples.
        times: Its times with their errors, by objective.
    """

    number: int
    values: Mapping[str, float]
    scores: Mapping[str, Sequence[float]]
    times: Mapping[str, TimeEstimate] = field(default_factory=dict)


@dataclass(frozen=True)
class Doubt:
    """One reason for which a candidate may be out.

    Attributes:
        text: The reason.
        differences: By how much the candidate is worse, example by example in the order drawn.
        floor: What no example's difference is below.
    """

    text: str
    differences: Sequence[float]
    floor: float


def shares(racing: Racing | Literal["none"]) -> tuple[float, ...]:
    """What share of the examples is answered before each look."""
    step = 1.0 if racing == "none" else racing.step
    return (*(step * number for number in range(1, math.ceil(1 / step))), 1.0)


def rivals_among(records: Sequence[TrialResult], objectives: Mapping[str, Direction]) -> list[Rival]:
    """The front so far; the first record is the dense model's."""
    front = {*front_trials(records, objectives)}
    found = []
    for record in records:
        values = objective_point(record.search, records[0].search, objectives) if record.number in front else None
        if values is not None:
            scores = {name: record.search[name].detail.get("per_example", ()) for name in objectives}
            times = {name: time for name in objectives if (time := as_time(record, name)) is not None}
            found.append(Rival(record.number, dict(zip(objectives, values, strict=True)), scores, times))
    return found


class Race:
    """Judges one candidate.

    Args:
        space: The search space.
        metrics: What is measured, by name.
        dense: What the dense model measured, on all examples.
        rivals: The front so far.
    """

    def __init__(
        self,
        space: Space,
        metrics: Mapping[str, Metric],
        dense: Mapping[str, Measurement],
        rivals: Sequence[Rival],
    ) -> None:
        self._space = space
        self._metrics = metrics
        self._dense = dense
        self._rivals = rivals

    def reason_to_stop(self, known: Mapping[str, Measurement], partial: Mapping[str, Measurement]) -> str | None:
        """Why a candidate is out; None while it may belong to the front.

        Args:
            known: What it measured before.
            partial: What it measured on some of the examples.
        """
        racing = self._space.search.racing
        for name, measured in partial.items():
            if not measured.is_partial:
                continue
            doubts = list(self._doubts(name, known, measured))
            total = measured.detail["total"]
            if racing == "none" or not doubts:
                continue
            found = np.array([betting_wealth(doubt.differences, total, doubt.floor) for doubt in doubts])
            # One that belongs to the front is innocent of all of them, and then to bet a part on each is fair as well.
            if found.mean(0).max() >= 1 / (1 - racing.confidence):
                return f"{doubts[found.max(1).argmax()].text} ({measured.n} of {total} examples)"
        return None

    def _doubts(self, name: str, known: Mapping[str, Measurement], measured: Measurement) -> Iterator[Doubt]:
        best, direction = best_score(self._metrics[name]), self._metrics[name].direction
        places, scores = measured.detail["places"], measured.detail["per_example"]
        dense = self._dense[name].detail.get("per_example", [])
        if not scores or best is None or any(worse_by(direction, score, best) < 0 for score in scores):
            return
        if len(dense) != measured.detail["total"]:
            return
        weights = weights_of(self._dense[name])

        def doubt(text: str, beside: Sequence[float], difference: Callable[[float, float], float]) -> Doubt:
            pairs = zip(places, scores, strict=True)
            differences = [weights[place] * difference(score, beside[place]) for place, score in pairs]
            floor = min(weight * difference(best, other) for weight, other in zip(weights, beside, strict=True))
            return Doubt(text, differences, floor)

        rival = self._strongest(name, known)
        if rival is not None and len(rival.scores[name]) == len(dense):
            beside = rival.scores[name]
            yield doubt(f"worse than trial {rival.number} in {name}", beside, lambda *both: worse_by(direction, *both))
        bound = self._space.constraints.get(name)
        if bound is not None and bound.at_least == (direction == "maximize"):
            floor = self._dense[name].floor
            yield doubt(f"{name} is not {bound.text}", dense, lambda own, other: bound.excess(own, other, floor))

    def _strongest(self, name: str, known: Mapping[str, Measurement]) -> Rival | None:
        """The best in one objective of those that are nowhere worse in the others.

        One is enough: whoever is worse than some of these is worse than the best of them.
        """
        objectives = self._space.objectives
        others = [other for other in objectives if other != name]
        if name not in objectives or any(other not in known or known[other].is_partial for other in others):
            return None
        able = [rival for rival in self._rivals if all(self._as_good(rival, other, known[other]) for other in others)]
        return min(able, key=lambda rival: worse_by(objectives[name], rival.values[name], 0.0), default=None)

    def _as_good(self, rival: Rival, name: str, ours: Measurement) -> bool:
        """True where a rival is no worse than the candidate in a figure; times that cannot be told apart are equal."""
        time = rival.times.get(name)
        if time is not None and isinstance(ours, ModelledTime):
            return no_slower(time, ours.estimate)
        value = objective_value(name, ours, self._dense.get(name))
        return worse_by(self._space.objectives[name], value, rival.values[name]) >= 0


def worse_by(direction: Direction, one: float, other: float) -> float:
    """By how much a figure is worse than another."""
    return other - one if direction == "maximize" else one - other


def best_score(metric: Metric) -> float | None:
    """What no example's score is better than; None where there is no such bound."""
    if metric.direction == "minimize":
        return 0.0
    return 1.0 if metric.unit == "fraction" else None


def betting_wealth(differences: Sequence[float], total: int, floor: float) -> NDArray[np.float64]:
    """How strongly differences speak against a mean of 0 or less over all examples, of which these are some.

    It is the fortune of who starts with 1 and bets, before each example, that its difference is above what is left on
    average if the mean of all is 0. Were it 0 or less, the bets would be fair or worse, so whatever the scores are, a
    fortune of 20 is ever reached with a probability of at most 1 in 20 (Ville's inequality).

    Args:
        differences: In the order drawn, at random and without replacement.
        total: How many examples there are.
        floor: What no difference is below, whichever is drawn next.

    Returns:
        (examples + 1,): at first and after each; infinite where the best scores on all that is left would not do.
    """
    found = np.asarray(differences, dtype=float)
    seen = np.concatenate([[0.0], np.cumsum(found)])
    remaining = total - np.arange(len(seen))
    left = -seen[:-1] / remaining[:-1]
    room = left - floor
    with np.errstate(over="ignore"):
        # Without room all that is left has to be at the floor, and is.
        gains = np.divide(found - left, room, out=np.zeros_like(found), where=room > ROUNDING)
        betted = np.r_[1.0, np.cumprod(1 + np.outer(gains, BETS), axis=0).mean(axis=1)]
    return np.where(seen + floor * remaining > ROUNDING, math.inf, betted)
