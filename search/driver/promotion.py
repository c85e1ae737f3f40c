"""Where candidates stand that answered only some of the examples, and which of them are to answer more.

Everyone answers a few examples at first. What that says of all examples is told by those who have answered them all:
who answered alike so far is taken to find the rest as easy. Who is then expected to add something to the front answers
as many again, for as long as that is so, the most promising first. So all examples are answered by few that do not end
up on the front, as in successive halving (Jamieson and Talwalkar, arXiv:1502.07943); and when a search ends, nobody is
left who is expected to add anything to the front that is worth the answers.
"""

from collections.abc import Collection, Sequence
from typing import TypeAlias

import numpy as np

from ..guide.guide import least_of_use
from ..sampler.ehvi import Gain, budgets
from ..space.guide_metrics import QUALITY
from ..space.objectives import expensive_objective, first_cost
from ..space.space import Space
from ..study.expected_results import Known
from ..trial.hypervolume import Point, reference_point
from ..trial.pareto import objective_point, objective_value, only_guesses, pareto
from ..trial.trial_result import TrialResult

ENOUGH = 50  # examples to begin with: an accuracy is known to some 5 points then, one close to dense to 2
WORTH = 0.0015  # what share of the front's hypervolume is worth answering more for
WORTH_WHEN_GUIDED = 0.0005  # the same where a loss has told already which few may be on the front
WORTH_OF_RULES = 0.005  # the same of the front of the rules, which is only compared with
CLEAR = 2.0  # standard errors by which a bound must look broken
WIDE = 0.1  # of the cost of dense: no gap of the front is wider where there are policies
FINE = 100  # a cost is told apart in some hundreds of steps

Standing: TypeAlias = tuple[TrialResult, Point]


def standing(record: TrialResult, known: Known, space: Space) -> Point | None:
    """A trial's objectives as far as they can be told; None where it is out, or says nothing of one of them."""
    if (
        record.state != "complete"
        or record.early_stopped is not None
        or any(over > 0 for over in record.violations.values())
    ):
        return None
    found, dense = known.expected(record), known.dense
    if only_guesses(record.search, dense, space.objectives):
        return None
    bounds = {name: bound for name, bound in space.constraints.items() if name in found and name in dense}
    for name, bound in bounds.items():
        # The chance that an objective is better than it looks counts elsewhere: see `worth`.
        rough = name in record.estimates and name not in space.objectives
        doubt = CLEAR * (found[name].stderr or 0.0) if rough else 0.0
        value = objective_value(name, found[name], dense[name])
        if bound.excess(value, dense[name].value, dense[name].floor) > doubt:
            return None
    return objective_point(found, dense, space.objectives)


def due(
    records: Sequence[TrialResult], known: Known, space: Space, patience: float, going_on: Collection[int] = ()
) -> TrialResult | None:
    """Who is to answer more next, of those that were set aside; None while nobody is.

    Args:
        records: All trials; the first is dense.
        known: Who has answered all examples.
        space: The search space.
        patience: How many times as old as a trial the search has to be, and then the trial must still look like a
            member of the front; 0 at the end of the search. Then the best of the rules that it began with answer
            everything too, for what the search gained is told against them.
        going_on: The numbers of those that are answering more, and count as if they had answered everything.
    """
    records = [record for record in records if record.duplicate_of is None]
    if not any(is_paused(record, known) and record.number not in going_on for record in records):
        return None
    stands = [(record, point) for record in records if (point := standing(record, known, space)) is not None]
    enough = WORTH if known.guide is None else WORTH_WHEN_GUIDED
    gains = {number: gain / enough for number, gain in worth(stands, known, space, going_on).items()}
    if patience:
        old = [*records[: int((len(records) - 1) / patience) + 1], *(one for one in records if one.is_probe)]
        may = {record.number for record in old} & looking_best(stands, space)
        gains = {number: gain for number, gain in gains.items() if number in may}
    else:
        rules = [(record, point) for record, point in stands if record.baseline is not None or record.policy.is_dense]
        for number, gain in worth(rules, known, space, going_on).items():
            gains[number] = max(gains[number], gain / WORTH_OF_RULES)
    best = max(gains, key=lambda number: (gains[number], -number), default=None)
    if best is None or gains[best] <= 1:
        best = None if patience else gap_filler(stands, known, space, gains)
    return next((record for record in records if record.number == best), None)


def gap_filler(stands: Sequence[Standing], known: Known, space: Space, waiting: Collection[int]) -> int | None:
    """The number of a paused trial that looks like a member of the front, in the middle of a wide gap in its costs.

    Args:
        stands: Trials that may be on the front, with their points.
        known: Which trials have answered all examples.
        space: The search space.
        waiting: The numbers of those that are paused.
    """
    cost = first_cost(space.objectives)
    if cost is None or not known.dense[cost].value:
        return None
    place, unit = list(space.objectives).index(cost), known.dense[cost].value
    shares = {record.number: point[place] / unit for record, point in stands}
    best = looking_best(stands, space)
    front = sorted(shares[number] for number in best if number not in waiting)
    gaps = [(low, high) for low, high in zip(front, front[1:], strict=False) if high - low > WIDE]
    for low, high in sorted(gaps, key=lambda gap: gap[0] - gap[1]):
        inside = [number for number in best & {*waiting} if low < shares[number] < high]
        if inside:
            return min(inside, key=lambda number: (abs(shares[number] - (low + high) / 2), number))
    return None


def looking_best(stands: Sequence[Standing], space: Space) -> set[int]:
    """The numbers of those that look like members of the front."""
    front = pareto([point for _, point in stands], list(space.objectives.values()))
    return {stands[place][0].number for place in front}


def worth(stands: Sequence[Standing], known: Known, space: Space, going_on: Collection[int]) -> dict[int, float]:
    """By number, what those who answered some examples are expected to add to the front of the others.

    It is a share of that front's hypervolume, and holds the chance that they are better than they look: see `Gain`.
    """
    aside = np.array([is_paused(record, known) and record.number not in going_on for record, _ in stands], bool)
    if not aside.any():
        return {}
    place = expensive_objective(space)
    name = list(space.objectives)[place]
    signs = np.array([1.0 if direction == "minimize" else -1.0 for direction in space.objectives.values()])
    reference = reference_point(known.dense, space.objectives, space.metrics())
    if known.guide is not None:
        reference[QUALITY] = least_of_use(known.dense[QUALITY], space.constraints.get(QUALITY))
    corner = signs * [*reference.values()]
    points = signs * np.array([point for _, point in stands])
    losses, costs = points[:, place], np.delete(points, place, 1)
    limits = budgets(costs.min(0), np.delete(corner, place), FINE)
    front = Gain(limits, losses[~aside], costs[~aside], corner[place])
    waiting = [record for (record, _), waits in zip(stands, aside, strict=True) if waits]
    errors = [known.expected(record)[name].stderr if name not in record.search else 0.0 for record in waiting]
    found = front.expected(losses[aside], np.array(errors), costs[aside], lambda loss: loss, np.ones_like)
    return {record.number: float(gain) / front.volume for record, gain in zip(waiting, found, strict=True)}


def is_paused(record: TrialResult, known: Known) -> bool:
    """True for a trial that may answer more: some examples only, or none yet where a loss guides the search."""
    if record.state != "complete" or record.early_stopped is not None or record.breaks_a_bound:
        return False
    unscored = known.guide is not None and QUALITY not in record.search and known.guide.loss(record.search) is not None
    return bool(record.estimates) or unscored


def examples(record: TrialResult) -> int:
    """How many examples a paused trial has answered; 0 before its first ones."""
    return min((entry.n for entry in record.estimates.values()), default=0)
