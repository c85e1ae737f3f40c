"""Where candidates stand that answered only some of the examples, and which of them are to answer more.

Everyone answers a few examples at first. What that says of all examples is told by those who have answered them all:
who answered alike so far is taken to find the rest as easy. Who is then expected to add something to the front answers
as many again, for as long as that is so, the most promising first. So all examples are answered by few that do not end
up on the front, as in successive halving (Jamieson and Talwalkar, arXiv:1502.07943); and when a search ends, nobody is
left who is expected to add anything to the front that is worth the answers.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..evaluators.base import Direction, Measurement
from .guide.accuracy_curve import Quality
from .guide.guide import Guide, least_of_use
from .sampler.ehvi import Gain, budgets
from .space.guide_metrics import QUALITY
from .space.objectives import expensive, first_cost
from .space.space import Space
from .trial.hypervolume import Point, reference_point
from .trial.pareto import front_trials, objective_point, objective_value, only_guesses, pareto
from .trial.scores import weights_of
from .trial.trial_result import TrialRecord

ENOUGH = 50  # examples to begin with: an accuracy is known to some 5 points then, one close to dense to 2
WORTH = 0.0015  # what share of the front's hypervolume is worth answering more for
WORTH_WHEN_GUIDED = 0.0005  # the same where a loss has told already which few may be on the front
WORTH_OF_RULES = 0.005  # the same of the front of the rules, which is only compared with
CLEAR = 2.0  # standard errors by which a bound must look broken
WIDE = 0.1  # of the cost of dense: no gap of the front is wider where there are policies
BASELINES = 12  # of their front, at most, are confirmed beside the front of the search
FINE = 100  # a cost is told apart in some hundreds of steps

Floats = NDArray[np.float64]
Standing: TypeAlias = tuple[TrialRecord, Point]


@dataclass(frozen=True)
class Known:
    """Who has answered all examples; by them is told what the scores of some examples say of all.

    Attributes:
        dense: What the dense model measured.
        scores: By metric, (policies, examples): the score of each example.
        guide: What guides the search; None where nothing does.
        quality: How accuracy depends on the guide's loss.
        rates: By cost that is not measured at first, how it follows one that is: that one's name, and the part of what
            that one saves which this one saves too.
    """

    dense: Mapping[str, Measurement]
    scores: Mapping[str, Floats]
    guide: Guide | None = None
    quality: Quality | None = None
    rates: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    _told: dict[tuple[int, str, int], Measurement] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, records: Sequence[TrialRecord], guide: Guide | None = None, space: Space | None = None) -> "Known":
        """Read it from trials, of which the first is dense.

        Args:
            records: The trials.
            guide: What guides the search.
            space: The search space, where it is guided.
        """
        dense = records[0].search
        scores = {}
        for name, entry in dense.items():
            found = [record.search[name].detail.get("per_example", ()) for record in records if name in record.search]
            whole = [each for each in found if each and len(each) == len(entry.detail.get("per_example", ()))]
            if whole:
                scores[name] = np.array(whole, float)
        if guide is None or space is None:
            return cls(dense, scores)
        return cls(dense, scores, guide, guide.quality(records, dense), rates(records, space.objectives))

    def expected(self, record: TrialRecord) -> dict[str, Measurement]:
        """A trial's figures; those of some examples as they would be on all of them, as far as that can be told."""
        rough = {name: part for name, part in record.estimates.items() if name in self.dense}
        for name, part in rough.items():
            key = record.number, name, part.n
            if key not in self._told:
                self._told[key] = self.levelled(name, part)
            rough[name] = self._told[key]
        if self.guide is not None and self.quality is not None and QUALITY not in record.search:
            rough |= self._guided(record, rough.get(QUALITY))
        return {**rough, **record.search}

    def _guided(self, record: TrialRecord, part: Measurement | None) -> dict[str, Measurement]:
        """The accuracy that the loss lets expect, and few answers where there are any; and costs to be measured yet."""
        loss = self.guide.loss(record.search) if self.guide else None
        if loss is None or self.quality is None:
            return {}
        score, error = (math.nan, 1.0) if part is None else (-part.value, part.stderr or 0.0)
        mean, deviation = self.quality.posterior(np.array([loss]), np.array([score]), np.array([error]))
        found = {QUALITY: Measurement(-float(mean[0]), part.n if part else 0, stderr=float(deviation[0]))}
        for name, (other, rate) in self.rates.items():
            if name not in record.search and other in record.search:
                share = 1 - record.search[other].value / self.dense[other].value
                found[name] = Measurement(self.dense[name].value * (1 - rate * share))
        return found

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


def as_expected(
    record: TrialRecord, known: Known, violations: Callable[[TrialRecord], Mapping[str, float]]
) -> TrialRecord:
    """A trial as if it had answered all examples: figures of some examples become those expected of all.

    Args:
        record: The trial.
        known: Which trials have answered all examples.
        violations: How far a trial lies beyond each bound, by what stands in its `search`.
    """
    if not record.estimates:
        return record
    whole = replace(record, search=known.expected(record), dropped=None, estimates={})
    return replace(whole, violations=violations(whole))


def baseline_front(
    records: Sequence[TrialRecord],
    objectives: Mapping[str, Direction],
    violations: Callable[[TrialRecord], Mapping[str, float]],
) -> list[TrialRecord]:
    """The baselines on the front that they make together with dense, the most expensive first.

    Args:
        records: All trials; the first is dense.
        objectives: Direction by metric.
        violations: See `as_expected`.
    """
    known = Known.of(records)
    told = [as_expected(record, known, violations) for record in records if record.rule is not None]
    by_number = {record.number: record for record in told}
    return [by_number[number] for number in front_trials([records[0], *told], objectives) if number in by_number]


def rates(records: Sequence[TrialRecord], objectives: Iterable[str]) -> dict[str, tuple[str, float]]:
    """How each cost that some trials lack follows the first that all have: the part of its saving, by least squares."""
    dense, paused = records[0].search, [record for record in records if QUALITY not in record.search]
    costs = [name for name in objectives if name != QUALITY and dense[name].value]
    whole = [name for name in costs if all(name in record.search for record in paused)]
    found = {}
    for name in costs:
        if name in whole or not whole:
            continue
        both = [record.search for record in records if {name, whole[0]} <= record.search.keys()]
        ours = np.array([1 - objective_value(name, one[name], dense[name]) / dense[name].value for one in both])
        theirs = np.array([1 - one[whole[0]].value / dense[whole[0]].value for one in both])
        # One policy that saves as much of the one as of the other is taken as seen.
        found[name] = whole[0], float((ours @ theirs + 1) / (theirs @ theirs + 1))
    return found


def standing(record: TrialRecord, known: Known, space: Space) -> Point | None:
    """A trial's objectives as far as they can be told; None where it is out, or says nothing of one of them."""
    if record.state != "complete" or record.dropped is not None or any(over > 0 for over in record.violations.values()):
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
        rules = [(record, point) for record, point in stands if record.rule is not None or record.policy.is_dense]
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
    place = expensive(space)
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


def is_paused(record: TrialRecord, known: Known) -> bool:
    """True for a trial that may answer more: some examples only, or none yet where a loss guides the search."""
    if record.state != "complete" or record.dropped is not None or record.breaks_a_bound:
        return False
    unscored = known.guide is not None and QUALITY not in record.search and known.guide.loss(record.search) is not None
    return bool(record.estimates) or unscored


def examples(record: TrialRecord) -> int:
    """How many examples a paused trial has answered; 0 before its first ones."""
    return min((entry.n for entry in record.estimates.values()), default=0)
