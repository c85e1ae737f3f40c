"""A smaller model beside a bigger one that leaves something out, at the cost of the smaller one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...trial.trial_result import TrialResult
from .fronts import coordinate, is_cost
from .pairs import PairedTest, paired_test
from .studies import ComparedStudy

ROUNDING = 1 + 1e-9  # so that costs that are equal count as equal


@dataclass(frozen=True)
class EqualCost:
    """The best policies of bigger models that cost no more than a smaller model does without a policy.

    Attributes:
        metric: The cost.
        smaller: The study of the smaller model.
        best: By study of a bigger model, its best policy within the cost; a study without one is left out.
        tests: For each of them, the test of the policy against the smaller model on the same examples.
        untested: The studies without one, and why, one line each.
    """

    metric: str
    smaller: ComparedStudy
    best: Mapping[str, TrialResult]
    tests: Sequence[PairedTest]
    untested: Sequence[str]


def equal_costs(studies: Sequence[ComparedStudy], quality: str | None) -> list[EqualCost]:
    """What bigger models achieve at the cost of each smaller one, by each cost that is an axis.

    Args:
        studies: The studies, on common axes.
        quality: The metric on examples, by which policies are chosen on the search split; None where there is none.

    Returns:
        Nothing for studies of one model.
    """
    first, found = studies[0], []
    for metric in (name for name in first.record.objectives if is_cost(first, name)):
        dense = {one.name: coordinate(first, one, one.record.dense, metric, "search") for one in studies}
        for smaller in studies:
            bigger = [one for one in studies if one.model != smaller.model and dense[one.name] > dense[smaller.name]]
            if bigger and quality is not None:
                found.append(_at_cost(first, metric, quality, smaller, bigger))
    return found


def _at_cost(
    first: ComparedStudy, metric: str, quality: str, smaller: ComparedStudy, bigger: Sequence[ComparedStudy]
) -> EqualCost:
    sign = 1 if first.record.objectives[quality] == "maximize" else -1
    budget = coordinate(first, smaller, smaller.record.dense, metric, "search")
    best: dict[str, TrialResult] = {}
    tests, untested = [], []
    for study in bigger:
        front = [study.record.trial(number) for number in study.record.front]
        within = [one for one in front if coordinate(first, study, one, metric, "search") <= budget * ROUNDING]
        if not within:
            untested.append(f"{study.name}: no policy on its front costs as little")
            continue
        best[study.name] = max(within, key=lambda trial: sign * trial.search[quality].value)
        test = paired_test(quality, (study.name, best[study.name]), (smaller.name, smaller.record.dense))
        if test is None:
            untested.append(f"{study.name} and {smaller.name}: no scores of the same single examples are kept")
        else:
            tests.append(test)
    return EqualCost(metric, smaller, best, tests, untested)
