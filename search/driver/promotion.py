"""Decides which paused trials are promoted: measured on more examples.

Every trial starts on a few examples. Its scores on all examples are predicted from trials that answered all of them:
those that scored alike so far are expected to score alike on the rest. A trial that is expected to add hypervolume to
the front answers twice as many examples, the most promising first, for as long as that holds. As in successive halving
(Jamieson and Talwalkar, arXiv:1502.07943), few trials that do not end up on the front answer all examples. When a
search ends, no paused trial is left whose expected gain is worth its examples.
"""

from collections.abc import Collection, Sequence
from typing import TypeAlias

import numpy as np

from ..guide.guide import min_useful_accuracy
from ..guide.wide_gaps import APART, WIDE
from ..sampler.ehvi import HypervolumeImprovement, budget_grid
from ..space.guide_metrics import QUALITY
from ..space.objectives import expensive_objective, first_cost
from ..space.space import Space
from ..study.expected_results import ScorePredictor
from ..trial.hypervolume import Point, reference_point
from ..trial.pareto import at_chance_level, objective_point, objective_value, pareto
from ..trial.trial_result import TrialResult

FIRST_EXAMPLES = 50  # of a new trial; the accuracy then has a standard error of 5 points, or 2 when close to dense
MIN_GAIN = 0.0015  # share of the front's hypervolume that is worth a promotion
MIN_GAIN_GUIDED = 0.0005  # the same where a loss has already selected the few candidates for the front
MIN_GAIN_BASELINES = 0.005  # the same for the front of the baselines, which only serves as a comparison
VIOLATION_ERRORS = 2.0  # standard errors by which an estimate must violate a constraint to exclude a trial
COST_STEPS = 100  # resolution of the grid of costs

Candidate: TypeAlias = tuple[TrialResult, Point]


def expected_point(result: TrialResult, predictor: ScorePredictor, space: Space) -> Point | None:
    """A trial's expected objectives; None where it cannot be on the front, or an objective cannot be predicted."""
    violates = any(excess > 0 for excess in result.violations.values())
    if result.state != "complete" or result.early_stopped is not None or violates:
        return None
    found, dense = predictor.predict(result), predictor.dense
    if at_chance_level(result.search, dense, space.objectives):
        return None
    bounds = {name: bound for name, bound in space.constraints.items() if name in found and name in dense}
    for name, bound in bounds.items():
        # The uncertainty of an objective counts in `expected_gains`.
        is_estimate = name in result.estimates and name not in space.objectives
        margin = VIOLATION_ERRORS * (found[name].stderr or 0.0) if is_estimate else 0.0
        value = objective_value(name, found[name], dense[name])
        if bound.excess(value, dense[name].value, dense[name].floor) > margin:
            return None
    return objective_point(found, dense, space.objectives)


def next_promotion(
    results: Sequence[TrialResult],
    predictor: ScorePredictor,
    space: Space,
    patience: float,
    promoted: Collection[int] = (),
) -> TrialResult | None:
    """The paused trial to promote next; None where none is worth it.

    Args:
        results: All trials; the first is dense.
        predictor: Predicts scores on all examples.
        space: The search space.
        patience: A trial is promoted when it still looks Pareto-optimal after the study has grown by this factor. 0 at
            the end of a search; then the best baselines are promoted too, so that the search's gain over them is known.
        promoted: Numbers of the trials that are being promoted; they count as measured on all examples.
    """
    results = [result for result in results if result.duplicate_of is None]
    if not any(is_paused(result, predictor) and result.number not in promoted for result in results):
        return None
    candidates = expected_points(results, predictor, space)
    threshold = MIN_GAIN if predictor.guide is None else MIN_GAIN_GUIDED
    gains = _relative_gains(candidates, predictor, space, promoted, threshold)
    if patience:
        old = [*results[: int((len(results) - 1) / patience) + 1], *(result for result in results if result.is_probe)]
        eligible = {result.number for result in old} & apparent_front(candidates, space)
        gains = {number: gain for number, gain in gains.items() if number in eligible}
    else:
        baselines = [(result, point) for result, point in candidates
                     if result.baseline is not None or result.policy.is_dense]  # fmt: skip
        baseline_gains = _relative_gains(baselines, predictor, space, promoted, MIN_GAIN_BASELINES)
        gains |= {number: max(gains[number], gain) for number, gain in baseline_gains.items()}
    best = max(gains, key=lambda number: (gains[number], -number), default=None)
    if best is None or gains[best] <= 1:
        best = None if patience else gap_filler(candidates, predictor, space, gains)
    return next((result for result in results if result.number == best), None)


def expected_points(results: Sequence[TrialResult], predictor: ScorePredictor, space: Space) -> list[Candidate]:
    """The trials that may be on the front, with their expected objectives."""
    points = ((result, expected_point(result, predictor, space)) for result in results)
    return [(result, point) for result, point in points if point is not None]


def _relative_gains(
    candidates: Sequence[Candidate],
    predictor: ScorePredictor,
    space: Space,
    promoted: Collection[int],
    threshold: float,
) -> dict[int, float]:
    """Expected gains in units of the gain that is worth a promotion."""
    return {number: gain / threshold for number, gain in expected_gains(candidates, predictor, space, promoted).items()}


def gap_filler(
    candidates: Sequence[Candidate], predictor: ScorePredictor, space: Space, paused: Collection[int]
) -> int | None:
    """The paused trial to promote for the widest gap of the front that has one.

    It is the one nearest to the middle of the gap among those that look Pareto-optimal. Where a policy that was lucky
    dominates all in the gap, and none there has answered all examples, it is the one with the best expected objective;
    see `guide.wide_gaps`.

    Args:
        candidates: Trials that may be on the front, with their expected objectives.
        predictor: Predicts scores on all examples.
        space: The search space.
        paused: Numbers of the paused trials.
    """
    cost = first_cost(space.objectives)
    if cost is None or not predictor.dense[cost].value:
        return None
    place, unit = list(space.objectives).index(cost), predictor.dense[cost].value
    shares = {result.number: point[place] / unit for result, point in candidates}
    expensive = expensive_objective(space)
    sign = 1.0 if [*space.objectives.values()][expensive] == "minimize" else -1.0
    losses = {result.number: sign * point[expensive] for result, point in candidates}
    optimal = apparent_front(candidates, space)
    front = sorted({*(shares[number] for number in optimal if number not in paused), 1.0})
    gaps = [(low, high) for low, high in zip(front, front[1:], strict=False) if high - low > WIDE]
    for low, high in sorted(gaps, key=lambda gap: gap[0] - gap[1]):
        inside = [number for number in optimal & {*paused} if low < shares[number] < high]
        if inside:
            return min(inside, key=lambda number: (abs(shares[number] - (low + high) / 2), number))
        middle = [number for number, share in shares.items() if low + APART <= share <= high - APART]
        if middle and {*middle} <= {*paused}:
            return min(middle, key=lambda number: (losses[number], number))
    return None


def apparent_front(candidates: Sequence[Candidate], space: Space) -> set[int]:
    """Numbers of the trials that are Pareto-optimal by their expected objectives."""
    front = pareto([point for _, point in candidates], list(space.objectives.values()))
    return {candidates[place][0].number for place in front}


def expected_gains(
    candidates: Sequence[Candidate], predictor: ScorePredictor, space: Space, promoted: Collection[int]
) -> dict[int, float]:
    """Expected hypervolume improvement of each paused trial over the front of all others, as a share of that front's.

    Args:
        candidates: Trials that may be on the front, with their expected objectives.
        predictor: Predicts scores on all examples.
        space: The search space.
        promoted: Numbers of the trials that are being promoted.

    Returns:
        The improvement by trial number; it accounts for the uncertainty of the expected objective.
    """
    paused = np.array(
        [is_paused(result, predictor) and result.number not in promoted for result, _ in candidates], bool
    )
    if not paused.any():
        return {}
    place = expensive_objective(space)
    name = list(space.objectives)[place]
    signs = np.array([1.0 if direction == "minimize" else -1.0 for direction in space.objectives.values()])
    reference = reference_point(predictor.dense, space.objectives, space.metrics())
    if predictor.guide is not None:
        reference[QUALITY] = min_useful_accuracy(predictor.dense[QUALITY], space.constraints.get(QUALITY))
    corner = signs * [*reference.values()]
    points = signs * np.array([point for _, point in candidates])
    losses, costs = points[:, place], np.delete(points, place, 1)
    budgets = budget_grid(costs.min(0), np.delete(corner, place), COST_STEPS)
    improvement = HypervolumeImprovement(budgets, losses[~paused], costs[~paused], corner[place])
    waiting = [result for (result, _), waits in zip(candidates, paused, strict=True) if waits]
    errors = [predictor.predict(result)[name].stderr if name not in result.search else 0.0 for result in waiting]
    gains = improvement.expected(losses[paused], np.array(errors), costs[paused])
    return {result.number: float(gain) / improvement.volume for result, gain in zip(waiting, gains, strict=True)}


def is_paused(result: TrialResult, predictor: ScorePredictor) -> bool:
    """True for a trial that can be promoted: measured on some examples, or only by the loss that guides the search."""
    if result.state != "complete" or result.early_stopped is not None or result.violates_constraint:
        return False
    guide = predictor.guide
    has_loss_alone = guide is not None and QUALITY not in result.search and guide.loss(result.search) is not None
    return bool(result.estimates) or has_loss_alone


def examples_answered(result: TrialResult) -> int:
    """How many examples a paused trial has answered; 0 before its first ones."""
    return min((entry.n for entry in result.estimates.values()), default=0)
