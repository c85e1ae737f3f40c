"""What trials that answered only some of the examples are expected to score on all of them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...evaluators.base import Direction, Measurement
from ..guide.accuracy_curve import Quality
from ..guide.guide import Guide
from ..space.guide_metrics import QUALITY
from ..space.space import Space
from ..trial.arrays import Floats
from ..trial.pareto import front_trials, objective_value
from ..trial.scores import weights_of
from ..trial.trial_result import TrialResult

MAX_CONFIRMED = 12  # of their front, at most, are confirmed beside the front of the search


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
    def of(cls, records: Sequence[TrialResult], guide: Guide | None = None, space: Space | None = None) -> "Known":
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

    def expected(self, record: TrialResult) -> dict[str, Measurement]:
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

    def _guided(self, record: TrialResult, part: Measurement | None) -> dict[str, Measurement]:
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
    record: TrialResult, known: Known, violations: Callable[[TrialResult], Mapping[str, float]]
) -> TrialResult:
    """A trial as if it had answered all examples: figures of some examples become those expected of all.

    Args:
        record: The trial.
        known: Which trials have answered all examples.
        violations: How far a trial lies beyond each bound, by what stands in its `search`.
    """
    if not record.estimates:
        return record
    whole = replace(record, search=known.expected(record), early_stopped=None, estimates={})
    return replace(whole, violations=violations(whole))


def baseline_front(
    records: Sequence[TrialResult],
    objectives: Mapping[str, Direction],
    violations: Callable[[TrialResult], Mapping[str, float]],
) -> list[TrialResult]:
    """The baselines on the front that they make together with dense, the most expensive first.

    Args:
        records: All trials; the first is dense.
        objectives: Direction by metric.
        violations: See `as_expected`.
    """
    known = Known.of(records)
    told = [as_expected(record, known, violations) for record in records if record.baseline is not None]
    by_number = {record.number: record for record in told}
    return [by_number[number] for number in front_trials([records[0], *told], objectives) if number in by_number]


def rates(records: Sequence[TrialResult], objectives: Iterable[str]) -> dict[str, tuple[str, float]]:
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
