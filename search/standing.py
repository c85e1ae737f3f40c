"""Where candidates stand that answered only some of the examples, and which of them are to answer more.

Everyone answers a few examples at first. What that says of all examples is told by those who have answered them all:
who answered alike so far is taken to find the rest as easy. Who is then expected to add something to the front answers
as many again, for as long as that is so, the most promising first. So all examples are answered by few that do not end
up on the front, as in successive halving (Jamieson and Talwalkar, arXiv:1502.07943); and when a search ends, nobody is
left who is expected to add anything to the front that is worth the answers.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..evaluators.base import Measurement
from .front import Point, objective_point, objective_value, pareto, reference_point
from .gain import Gain, budgets
from .racing import weights_of
from .record import TrialRecord
from .samplers import expensive
from .space import Space

ENOUGH = 50  # examples to begin with: an accuracy is known to some 5 points then, one close to dense to 2
WORTH = 0.0015  # what share of the front's hypervolume is worth answering more for
WORTH_OF_RULES = 0.005  # the same of the front of the rules, which is only compared with
CLEAR = 2.0  # standard errors by which a bound must look broken
FINE = 100  # a cost is told apart in some hundreds of steps

Floats = NDArray[np.float64]
Standing: TypeAlias = tuple[TrialRecord, Point]


@dataclass(frozen=True)
class Known:
    """Who has answered all examples; by them is told what the scores of some examples say of all.

    Attributes:
        dense: What the dense model measured.
        scores: By metric, (policies, examples): the score of each example.
    """

    dense: Mapping[str, Measurement]
    scores: Mapping[str, Floats]
    _told: dict[tuple[int, str, int], Measurement] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, records: Sequence[TrialRecord]) -> "Known":
        """Read it from trials, of which the first is dense."""
        dense = records[0].search
        scores = {}
        for name, entry in dense.items():
            found = [record.search[name].detail.get("per_example", ()) for record in records if name in record.search]
            whole = [each for each in found if each and len(each) == len(entry.detail.get("per_example", ()))]
            if whole:
                scores[name] = np.array(whole, float)
        return cls(dense, scores)

    def expected(self, record: TrialRecord) -> dict[str, Measurement]:
        """A trial's figures; those of some examples as they would be on all of them, as far as that can be told."""
        rough = {name: part for name, part in record.estimates.items() if name in self.dense}
        for name, part in rough.items():
            key = record.number, name, part.n
            if key not in self._told:
                self._told[key] = self.levelled(name, part)
            rough[name] = self._told[key]
        return {**rough, **record.search}

    def levelled(self, name: str, part: Measurement) -> Measurement:
        """A figure of some examples as it is expected to be on all of them, with the standard error of that.

        It is the figure of those who answered alike, and by how much it was better or worse than theirs: a difference
        estimator (Cochran, Sampling Techniques, 1977, chapter 7), which strays only as far as the differences do.
        """
        places, own = part.detail.get("places", []), np.array(part.detail.get("per_example", []), float)
        if name not in self.scores or not len(own):
            return replace(part, stderr=part.stderr or 1.0)
        weights = np.array(weights_of(self.dense[name]))
        beside = weights * self._alike(self.scores[name], places, own)
        differences = weights[places] * own - beside[places]
        count, total = len(own), part.detail["total"]
        # Of few examples that all go alike the next may still differ: a quarter of one counts as if it did.
        variance = (count * differences.var() + 0.25) / (count + 0.25)
        error = math.sqrt(variance / count * max(1 - count / total, 1 / total))
        return replace(part, value=float(beside.mean() + differences.mean()), stderr=error)

    @staticmethod
    def _alike(scores: Floats, places: Sequence[int], own: Floats) -> Floats:
        """(examples,): what those who answered these examples alike score on every example, on average."""
        apart = ((scores[:, places] - own) ** 2).mean(1)
        # Nobody is the same for having answered the same so far.
        weights = (apart + 2 * apart.mean() / len(own) + 1e-12) ** -2.0
        found: Floats = weights @ scores / weights.sum()
        return found


def standing(record: TrialRecord, known: Known, space: Space) -> Point | None:
    """A trial's objectives as far as they can be told; None where it is out, or says nothing of one of them."""
    if record.state != "complete" or record.dropped is not None or any(over > 0 for over in record.violations.values()):
        return None
    found, dense = known.expected(record), known.dense
    bounds = {name: bound for name, bound in space.constraints.items() if name in found and name in dense}
    for name, bound in bounds.items():
        # The chance that an objective is better than it looks counts elsewhere: see `worth`.
        rough = name in record.estimates and name not in space.objectives
        doubt = CLEAR * (found[name].stderr or 0.0) if rough else 0.0
        if bound.excess(objective_value(name, found[name], dense[name]), dense[name].value) > doubt:
            return None
    return objective_point(found, dense, space.objectives)


def due(
    records: Sequence[TrialRecord], known: Known, space: Space, patience: float, going_on: Collection[int] = ()
) -> TrialRecord | None:
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
    records = [record for record in records if record.shared_from is None]
    if not any(record.estimates and not record.dropped and record.number not in going_on for record in records):
        return None
    stands = [(record, point) for record in records if (point := standing(record, known, space)) is not None]
    gains = {number: gain / WORTH for number, gain in worth(stands, known, space, going_on).items()}
    if patience:
        old = records[: int((len(records) - 1) / patience) + 1]
        may = {record.number for record in old} & looking_best(stands, space)
        gains = {number: gain for number, gain in gains.items() if number in may}
    else:
        rules = [(record, point) for record, point in stands if record.rule is not None or record.policy.is_dense]
        for number, gain in worth(rules, known, space, going_on).items():
            gains[number] = max(gains[number], gain / WORTH_OF_RULES)
    best = max(gains, key=lambda number: (gains[number], -number), default=None)
    return next((record for record in records if record.number == best and gains[record.number] > 1), None)


def looking_best(stands: Sequence[Standing], space: Space) -> set[int]:
    """The numbers of those that look like members of the front."""
    front = pareto([point for _, point in stands], list(space.objectives.values()))
    return {stands[place][0].number for place in front}


def worth(stands: Sequence[Standing], known: Known, space: Space, going_on: Collection[int]) -> dict[int, float]:
    """By number, what those who answered some examples are expected to add to the front of the others.

    It is a share of that front's hypervolume, and holds the chance that they are better than they look: see `Gain`.
    """
    aside = np.array([bool(record.estimates) and record.number not in going_on for record, _ in stands], bool)
    if not aside.any():
        return {}
    place = expensive(space)
    name = list(space.objectives)[place]
    signs = np.array([1.0 if direction == "minimize" else -1.0 for direction in space.objectives.values()])
    levels = {metric: entry.value for metric, entry in known.dense.items()}
    corner = signs * [*reference_point(levels, space.objectives, space.metrics()).values()]
    points = signs * np.array([point for _, point in stands])
    losses, costs = points[:, place], np.delete(points, place, 1)
    limits = budgets(costs.min(0), np.delete(corner, place), FINE)
    front = Gain(limits, losses[~aside], costs[~aside], corner[place])
    waiting = [record for (record, _), waits in zip(stands, aside, strict=True) if waits]
    errors = [known.expected(record)[name].stderr if name in record.estimates else 0.0 for record in waiting]
    found = front.expected(losses[aside], np.array(errors), costs[aside], lambda loss: loss, np.ones_like)
    return {record.number: float(gain) / front.volume for record, gain in zip(waiting, found, strict=True)}


def examples(record: TrialRecord) -> int:
    """How many examples a trial that was set aside has answered."""
    return min(entry.n for entry in record.estimates.values())
