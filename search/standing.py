"""Where candidates stand that answered only some of the examples, and which of them are to answer more.

Everyone answers a few examples at first. Who then looks like a member of the front is set aside until the search has
grown old enough to have found something better, if there is anything; who still looks like one then answers more. So
all examples are answered by few that do not end up on the front, as in successive halving (Jamieson and Talwalkar,
arXiv:1502.07943), but by all of those that do: when a search ends, nobody who looks like a member has answered less.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..evaluators.base import Measurement
from .front import Point, objective_point, objective_value, pareto
from .record import TrialRecord
from .space import Space

ENOUGH = 50  # examples to begin with: an accuracy is known to some 7 points then, a difference of two policies better


def expected(record: TrialRecord, dense: Mapping[str, Measurement]) -> dict[str, Measurement]:
    """A trial's figures; those of some examples as they would be on all of them, as far as that can be told."""
    levelled = {name: against(entry, dense[name]) for name, entry in record.estimates.items() if name in dense}
    return {**levelled, **record.search}


def against(part: Measurement, dense: Measurement) -> Measurement:
    """A figure of some examples as it would be on all of them, were they as hard for it as for the dense model."""
    scores = dense.detail.get("per_example", [])
    places = [place for place in part.detail.get("places", []) if place < len(scores)]
    easier = sum(scores[place] for place in places) / len(places) - dense.value if places else 0.0
    return replace(part, value=part.value - easier)


def error(part: Measurement, dense: Measurement) -> float:
    """The standard error of a figure by `against`: of the mean difference to dense, drawn without replacement."""
    scores, places = dense.detail.get("per_example", []), part.detail.get("places", [])
    pairs = zip(part.detail["per_example"], places, strict=False)  # There may be no scores at all.
    differences = [score - scores[place] for score, place in pairs if place < len(scores)] or [1.0]
    count, total = len(differences), part.detail["total"]
    # Of few examples that all go alike the next may still differ: one more counts as if it did.
    variance = (count * statistics.pvariance(differences) + 1) / (count + 1)
    return math.sqrt(variance / count * max(1 - count / total, 1 / total))


def standing(record: TrialRecord, dense: Mapping[str, Measurement], space: Space) -> Point | None:
    """A trial's objectives as far as they can be told; None where it is out, or says nothing of one of them."""
    if record.state != "complete" or record.dropped is not None or any(over > 0 for over in record.violations.values()):
        return None
    found = expected(record, dense)
    bounds = {name: bound for name, bound in space.constraints.items() if name in found and name in dense}
    values = {name: objective_value(name, found[name], dense[name]) for name in bounds}
    if any(bound.excess(values[name], dense[name].value) > 0 for name, bound in bounds.items()):
        return None
    return objective_point(found, dense, space.objectives)


def due(records: Sequence[TrialRecord], space: Space, patience: float) -> list[TrialRecord]:
    """Those that were set aside and are to answer more, who answered the fewest examples first.

    Args:
        records: All trials; the first is dense.
        space: The search space.
        patience: How many times as old as a trial the search has to be; 0 at its end. Then the best of the rules that
            it began with answer everything too, for what the search gained is told against them.
    """
    front = looking_best(records, records[0], space)
    if not patience:
        rules = [record for record in records if record.rule is not None or record.policy.is_dense]
        front |= looking_best(rules, records[0], space)
    old = records if not patience else records[: int((len(records) - 1) / patience) + 1]
    return sorted((record for record in old if record.estimates and record.number in front), key=examples)


def looking_best(records: Sequence[TrialRecord], dense: TrialRecord, space: Space) -> set[int]:
    """The numbers of those that look like members of the front."""
    nowhere = (math.nan,) * len(space.objectives)
    points = [standing(record, dense.search, space) or nowhere for record in records]
    return {records[place].number for place in pareto(points, list(space.objectives.values()))}


def examples(record: TrialRecord) -> int:
    """How many examples a trial that was set aside has answered."""
    return min(entry.n for entry in record.estimates.values())
