"""Policies for the wide gaps of a front.

A policy that was lucky on the examples of the search dominates every policy that costs more, up to the dense model, and
leaves a gap there. Held-out examples often show that some of those are better. So in each wide gap this finds the
policy with the highest expected accuracy, which is confirmed and reported beside the front.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ...evaluators.base import Direction
from ..space.guide_metrics import QUALITY
from ..space.objectives import first_cost
from ..trial.arrays import Floats
from ..trial.paired_tests import SIGNIFICANCE, p_value
from ..trial.pareto import feasible_points, objective_value
from ..trial.trial_result import TrialResult
from .guide import Guide

WIDE = 0.1  # a gap that is wider has a policy sought for it, as a share of the dense model's cost
APART = 0.05  # how far that policy is from both ends of the gap, at least


def policies_in_gaps(
    trials: Sequence[TrialResult], front: Sequence[int], objectives: Mapping[str, Direction], guide: Guide | None
) -> tuple[int, ...]:
    """Numbers of the trials that fill wide gaps of the front, by falling cost.

    Such a trial answered all examples, keeps the constraints, and is not significantly worse on the same examples than
    the next cheaper policy of the front, which dominates it.

    Args:
        trials: All trials; the first is dense.
        front: Numbers of the trials on the front.
        objectives: Direction by metric.
        guide: The loss that guided the search; without one, the expected accuracy is the measured one.
    """
    cost = first_cost(objectives)
    dense = trials[0].search
    if cost is None or QUALITY not in objectives or not front or cost not in dense or not dense[cost].value:
        return ()
    points = zip(trials, feasible_points(trials, objectives), strict=True)
    usable = [trial for trial, point in points if point is not None and trial.duplicate_of is None]
    shares = {
        trial.number: objective_value(cost, trial.search[cost], dense[cost]) / dense[cost].value for trial in usable
    }
    expected = dict(zip(shares, expected_accuracies(trials, usable, guide), strict=True))
    by_number = {trial.number: trial for trial in usable}
    ends = sorted({trials[0].number, *front} & shares.keys(), key=lambda number: shares[number])
    found: list[int] = []
    gaps = [*zip(ends, ends[1:], strict=False)]
    while gaps:
        low, high = gaps.pop()
        if shares[high] - shares[low] <= WIDE:
            continue
        inside = [
            number for number, share in shares.items() if shares[low] + APART <= share <= shares[high] - APART
            and not is_worse(by_number[number], by_number[low])
        ]  # fmt: skip
        if inside:
            best = max(inside, key=lambda number: (expected[number], -shares[number]))
            found.append(best)
            gaps += [(low, best), (best, high)]
    return tuple(sorted(found, key=lambda number: -shares[number]))


def expected_accuracies(trials: Sequence[TrialResult], chosen: Sequence[TrialResult], guide: Guide | None) -> Floats:
    """(chosen,): the accuracies that policies are expected to have on other examples.

    The answers tell one estimate, with its standard error, and the guide's loss another; their precision weighs them.

    Args:
        trials: All trials, the first of them dense; they tell how accuracy depends on the loss.
        chosen: Some of them, with an accuracy.
        guide: The loss; None leaves the measured accuracies.
    """
    accuracies = np.array([trial.search[QUALITY].value for trial in chosen])
    curve = None if guide is None else guide.accuracy_curve(trials, trials[0].search)
    if guide is None or curve is None:
        return accuracies
    losses = np.array([guide.loss(trial.search) for trial in chosen], float)
    errors = np.array([trial.search[QUALITY].stderr or 0.0 for trial in chosen])
    means = -curve.posterior(losses, -accuracies, errors)[0]
    return np.where(np.isfinite(losses), means, accuracies)


def is_worse(trial: TrialResult, other: TrialResult) -> bool:
    """True where a paired test tells that a trial is less accurate than another, or has no examples to test."""
    p = p_value(trial.search[QUALITY], other.search[QUALITY])
    return p is None or (p <= SIGNIFICANCE and trial.search[QUALITY].value < other.search[QUALITY].value)
