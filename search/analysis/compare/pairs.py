"""Paired tests between the chosen policies of several studies, on the same examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ....evaluators.base import Measurement, Split
from ...trial.paired_tests import example_scores, p_value, paired_difference
from ...trial.scores import task_sizes
from ...trial.trial_result import IntervalEstimate, TrialResult
from ..baseline_comparison import quality_metric
from .studies import ComparedStudy


@dataclass(frozen=True)
class PairedTest:
    """Two policies on the same examples.

    Attributes:
        one: The study of the first.
        other: The study of the second.
        split: The examples; the search split is biased in favour of both.
        n: How many there are.
        only_one: How many of them only the first answers better.
        only_other: How many of them only the second answers better.
        difference: The first minus the second, with its interval.
        p: The two-sided p-value: McNemar's exact test for right and wrong answers, else a permutation test.
    """

    one: str
    other: str
    split: Split
    n: int
    only_one: int
    only_other: int
    difference: IntervalEstimate
    p: float


def paired_tests(
    studies: Sequence[ComparedStudy], chosen: Mapping[str, TrialResult]
) -> tuple[str | None, list[PairedTest], list[str]]:
    """A test for each pair of studies.

    Args:
        studies: The studies, on common axes.
        chosen: By the name of a study, its policy.

    Returns:
        The metric that is tested, the tests, and why a pair has none, one line each.
    """
    name = quality_metric(studies[0].record)
    if name is None:
        return None, [], ["no objective is measured on examples"]
    tests, reasons = [], []
    for one, other in combinations([study.name for study in studies if study.name in chosen], 2):
        found = paired_test(name, (one, chosen[one]), (other, chosen[other]))
        if found is None:
            reasons.append(f"{one} and {other}: no scores of the same single examples are kept")
        else:
            tests.append(found)
    return name, tests, reasons


def paired_test(name: str, one: tuple[str, TrialResult], other: tuple[str, TrialResult]) -> PairedTest | None:
    """The test on the report split where both are confirmed there, else on the search split.

    Args:
        name: The metric.
        one: The name of a study, and its policy.
        other: The same of another study.

    Returns:
        None where the examples are not the same.
    """
    splits: tuple[tuple[Split, Measurement | None, Measurement | None], ...] = (
        ("report", one[1].report.get(name), other[1].report.get(name)),
        ("search", one[1].search.get(name), other[1].search.get(name)),
    )
    for split, ours, theirs in splits:
        p, difference = p_value(ours, theirs), paired_difference(ours, theirs)
        scores, others = example_scores(ours), example_scores(theirs)
        if p is None or difference is None or scores is None or others is None:
            continue
        better, worse = int(np.sum(scores > others)), int(np.sum(scores < others))
        return PairedTest(one[0], other[0], split, len(scores), better, worse, difference, p)
    return None


def task_table(
    studies: Sequence[ComparedStudy], chosen: Mapping[str, TrialResult], split: Split
) -> tuple[dict[str, int], dict[str, dict[str, Measurement]]]:
    """What dense and the chosen policies score on each task, where there are several.

    Args:
        studies: The studies.
        chosen: By the name of a study, its policy.
        split: The examples.

    Returns:
        How many examples are of each task, and the scores by row and task; both empty for a single task.
    """
    name = quality_metric(studies[0].record)
    rows = {f"{study.name}, dense": getattr(study.record.dense, split).get(name) for study in studies}
    rows |= {f"{study}, trial {trial.number}": getattr(trial, split).get(name) for study, trial in chosen.items()}
    found = {row: entry for row, entry in rows.items() if entry is not None and len(task_sizes(entry)) > 1}
    if not found:
        return {}, {}
    tasks = next(iter(found.values())).detail["tasks"]
    scores = {
        row: {task: Measurement(one["value"], one["n"], stderr=one["stderr"])
              for task, one in entry.detail["tasks"].items()}
        for row, entry in found.items()
    }  # fmt: skip
    return {task: int(one["n"]) for task, one in tasks.items()}, scores
