"""Racing: a candidate stops early when its scores on some examples show that it cannot end on the front.

All candidates answer the same examples in the same random order. So a candidate is compared example by example with
trials that have answered all examples: the best trial of the front that costs no more, and the dense model where
accuracy has a bound. The costs of a candidate are measured before its first example, so none of them is estimated.

The test is sequential: it may be evaluated after every example without losing its confidence. It accounts for drawing
without replacement, and assumes nothing of the scores but a bound (Waudby-Smith and Ramdas, Estimating means of bounded
random variables by betting, 2024).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...evaluators.base import Direction, Measurement, Metric
from ..space.search_settings import Racing
from ..space.space import Space
from ..trial.modelled_time import ModelledTime
from ..trial.pareto import front_trials, objective_point, objective_value, time_estimate
from ..trial.scores import example_weights, task_sizes
from ..trial.tied_times import not_slower
from ..trial.time_model import TimeEstimate
from ..trial.trial_result import TrialResult

# Fractions of the largest possible bet, from cautious, for a small difference, to bold.
BET_FRACTIONS = np.linspace(0.05, 0.95, 10)
# A trial that belongs to the current front is not stopped early with this probability.
CONFIDENCE = 0.95
# Share of the examples between two tests, at least one batch; the tests of a race are evenly spaced.
STEP = 1 / 16
RUNG_FRACTIONS = tuple(STEP * number for number in range(1, 17))
# Differences below this are rounding errors in sums of scores and bounds.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Rival:
    """A trial on the front that candidates race against; a plain value that crosses processes.

    Attributes:
        number: The number of the trial.
        values: Its objectives by metric.
        scores: Its score of each example, by metric that is measured on examples.
        times: Its times with their errors, by objective.
    """

    number: int
    values: Mapping[str, float]
    scores: Mapping[str, Sequence[float]]
    times: Mapping[str, TimeEstimate] = field(default_factory=dict)


@dataclass(frozen=True)
class StoppingTest:
    """A test of the null hypothesis that a candidate is no worse than another trial, or keeps a bound.

    Attributes:
        reason: Why the candidate stops if the hypothesis is rejected.
        differences: By example in the order drawn, how much worse the candidate is.
        floor: The lower bound of the differences of all examples.
    """

    reason: str
    differences: Sequence[float]
    floor: float


def rung_fractions(racing: Racing | Literal["none"]) -> tuple[float, ...]:
    """The fraction of the examples that is answered at each rung, ascending; the last is 1."""
    return (1.0,) if racing == "none" else RUNG_FRACTIONS


def rivals_among(results: Sequence[TrialResult], objectives: Mapping[str, Direction]) -> list[Rival]:
    """The trials on the front as rivals.

    Args:
        results: All trials; the first is dense.
        objectives: Direction by metric.
    """
    front = {*front_trials(results, objectives)}
    rivals = []
    for result in results:
        values = objective_point(result.search, results[0].search, objectives) if result.number in front else None
        if values is not None:
            scores = {name: result.search[name].detail.get("per_example", ()) for name in objectives}
            times = {name: time for name in objectives if (time := time_estimate(result, name)) is not None}
            rivals.append(Rival(result.number, dict(zip(objectives, values, strict=True)), scores, times))
    return rivals


class Race:
    """Decides at each rung whether a candidate can still end on the front.

    Args:
        space: The search space.
        metrics: The metrics that are measured, by name.
        dense: The measurements of the dense model on all examples.
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

    def reason_to_stop(self, measured: Mapping[str, Measurement], partial: Mapping[str, Measurement]) -> str | None:
        """Why a candidate stops; None while it may end on the front.

        Args:
            measured: Its measurements before the rung, with all its costs.
            partial: Its measurements on the examples answered so far.
        """
        racing = self._space.search.racing
        for name, part in partial.items():
            tests = [*self._tests(name, measured, part)] if part.is_partial else []
            if racing == "none" or not tests:
                continue
            total = part.detail["total"]
            wealth = np.array([betting_wealth(test.differences, total, test.floor) for test in tests])
            # For a candidate of the front all hypotheses hold. Then an equal share of the stake on each test is a fair
            # bet too, so the mean keeps the confidence for all tests together.
            if wealth.mean(0).max() >= 1 / (1 - CONFIDENCE):
                return f"{tests[wealth.max(1).argmax()].reason} ({part.n} of {total} examples)"
        return None

    def _tests(self, name: str, measured: Mapping[str, Measurement], part: Measurement) -> Iterator[StoppingTest]:
        """The tests of a metric: against the best rival, and against the bound.

        Args:
            name: The metric.
            measured: The candidate's measurements before the rung.
            part: The metric on the examples answered so far.
        """
        best, direction = best_score(self._metrics[name]), self._metrics[name].direction
        answered, scores = part.detail["places"], part.detail["per_example"]
        dense = self._dense[name].detail.get("per_example", [])
        if not scores or best is None or any(worse_by(direction, score, best) < 0 for score in scores):
            return
        if len(dense) != part.detail["total"]:
            return
        weights = example_weights(task_sizes(self._dense[name])).tolist()

        def test(reason: str, others: Sequence[float], difference: Callable[[float, float], float]) -> StoppingTest:
            pairs = zip(answered, scores, strict=True)
            differences = [weights[index] * difference(score, others[index]) for index, score in pairs]
            floor = min(weight * difference(best, other) for weight, other in zip(weights, others, strict=True))
            return StoppingTest(reason, differences, floor)

        rival = self._best_rival(name, measured)
        if rival is not None and len(rival.scores[name]) == len(dense):
            reason = f"worse than trial {rival.number} in {name}"
            yield test(reason, rival.scores[name], lambda *both: worse_by(direction, *both))
        bound = self._space.constraints.get(name)
        if bound is not None and bound.at_least == (direction == "maximize"):
            floor = self._dense[name].floor
            yield test(f"{name} is not {bound.text}", dense, lambda own, other: bound.excess(own, other, floor))

    def _best_rival(self, name: str, measured: Mapping[str, Measurement]) -> Rival | None:
        """The best rival in one objective among those that are no worse in the others; None where there is none.

        One rival is enough: a candidate that is worse than any of them is worse than the best.
        """
        objectives = self._space.objectives
        others = [other for other in objectives if other != name]
        if name not in objectives or any(other not in measured or measured[other].is_partial for other in others):
            return None
        able = [rival for rival in self._rivals if all(self._no_worse(rival, one, measured[one]) for one in others)]
        return min(able, key=lambda rival: worse_by(objectives[name], rival.values[name], 0.0), default=None)

    def _no_worse(self, rival: Rival, name: str, candidate: Measurement) -> bool:
        """True where a rival is no worse than the candidate; times within the interval of their difference tie."""
        time = rival.times.get(name)
        if time is not None and isinstance(candidate, ModelledTime):
            return not_slower(time, candidate.estimate)
        value = objective_value(name, candidate, self._dense.get(name))
        return worse_by(self._space.objectives[name], value, rival.values[name]) >= 0


def worse_by(direction: Direction, value: float, other: float) -> float:
    """How much worse a value is than another; negative where it is better."""
    return other - value if direction == "maximize" else value - other


def best_score(metric: Metric) -> float | None:
    """The best score that an example can have; None where scores have no such bound."""
    if metric.direction == "minimize":
        return 0.0
    return 1.0 if metric.unit == "fraction" else None


def betting_wealth(differences: Sequence[float], total: int, floor: float) -> NDArray[np.float64]:
    """The wealth of bets against the hypothesis that the mean difference over all examples is at most 0.

    The wealth starts at 1. Before each example a fraction of it is bet that the difference exceeds the mean of the
    examples left, under the hypothesis that the mean of all is 0. If the hypothesis holds, the bets are fair or worse,
    and the wealth reaches 20 with a probability of at most 1/20, whatever the scores are (Ville's inequality). The
    result is the mean wealth over `BET_FRACTIONS`.

    Args:
        differences: Of the examples answered so far, drawn at random without replacement.
        total: The number of all examples.
        floor: The lower bound of every difference.

    Returns:
        (answered + 1,): the wealth at the start and after each example; infinite where even the lowest differences on
        the examples left would give a mean above 0.
    """
    found = np.asarray(differences, dtype=float)
    sums = np.concatenate([[0.0], np.cumsum(found)])
    remaining = total - np.arange(len(sums))
    null_means = -sums[:-1] / remaining[:-1]
    max_losses = null_means - floor
    with np.errstate(over="ignore"):
        # Where the null mean equals the floor, the next difference is the floor, and there is nothing to bet on.
        payoffs = np.divide(found - null_means, max_losses, out=np.zeros_like(found), where=max_losses > ROUNDING)
        wealth = np.r_[1.0, np.cumprod(1 + np.outer(payoffs, BET_FRACTIONS), axis=0).mean(axis=1)]
    return np.where(sums + floor * remaining > ROUNDING, math.inf, wealth)
