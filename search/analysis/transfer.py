"""Whether the policies of a front keep their accuracy on tasks that the search did not use."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from ...evaluators.base import Measurement
from ..guide.rank_correlation import kendall
from ..space.guide_metrics import QUALITY
from ..trial.paired_tests import DRAWS, LEVELS, bootstrap_weights, example_scores
from ..trial.scores import task_sizes
from ..trial.trial_result import IntervalEstimate, TrialResult

MIN_POLICIES = 3  # A rank correlation of fewer policies is not reported.


@dataclass(frozen=True)
class TaskAccuracy:
    """The accuracy of one policy on one task.

    Attributes:
        metric: lm-eval's metric and filter.
        value: The accuracy.
        stderr: Its standard error, where it has one.
        n: Number of examples.
        scores: The score of each example, shape (n,); None where the metric has none.
        floor: The accuracy of guessing; 0 where it is unknown.
    """

    metric: str
    value: float
    stderr: float | None
    n: int
    scores: np.ndarray | None
    floor: float


@dataclass(frozen=True)
class Transfer:
    """How the front does on the transfer tasks.

    Attributes:
        tasks: The tasks.
        searched: By trial, the kept share on the searched tasks, on the report split where that is confirmed.
        kept: By trial and task, the kept share: of what dense has above the chance level, how much the policy has. None
            where dense has nothing above it.
        ranks: By task, Kendall's tau-b between a policy's accuracy on the searched tasks and on this one; None with too
            few policies, or where all are equal.
        policies: How many policies of the front were measured; dense is not counted.
    """

    tasks: tuple[str, ...]
    searched: Mapping[int, IntervalEstimate | None] = field(default_factory=dict)
    kept: Mapping[int, Mapping[str, IntervalEstimate | None]] = field(default_factory=dict)
    ranks: Mapping[str, IntervalEstimate | None] = field(default_factory=dict)
    policies: int = 0


def accuracy_by_task(measured: Mapping[str, Measurement]) -> dict[str, TaskAccuracy]:
    """The accuracy on each task of a measurement on transfer tasks; empty without one."""
    entry = measured.get(QUALITY)
    if entry is None:
        return {}
    scores, ends = example_scores(entry), np.cumsum(task_sizes(entry))
    parts: Iterator[np.ndarray] = iter(() if scores is None else np.split(scores, ends[:-1]))
    floors = entry.detail.get("floors", {})
    return {
        name: TaskAccuracy(
            task["metric"], task["value"], task["stderr"], task["n"], next(parts, None), floors.get(name, 0.0)
        )
        for name, task in entry.detail["tasks"].items()
    }


def transfer(dense: TrialResult, front: list[TrialResult]) -> Transfer | None:
    """How a front does on the transfer tasks, beside dense; None where dense was not measured on any.

    Args:
        dense: The dense model's trial.
        front: The other trials of the front; those that were not measured there are left out.
    """
    references = accuracy_by_task(dense.transfer)
    measured = {trial.number: (trial, accuracy_by_task(trial.transfer)) for trial in front if trial.transfer}
    if not references:
        return None
    kept = {
        number: {name: kept_share(tasks[name], reference) for name, reference in references.items()}
        for number, (_, tasks) in measured.items()
    }
    ranks = {}
    for name in references:
        pairs = [(searched_accuracy(trial).value, tasks[name].value) for trial, tasks in measured.values()]
        ranks[name] = kendall(*np.array(pairs).T) if len(pairs) >= MIN_POLICIES else None
    searched = {number: searched_share(trial, dense) for number, (trial, _) in measured.items()}
    return Transfer(tuple(references), searched, kept, ranks, len(measured))


def searched_accuracy(trial: TrialResult) -> Measurement:
    """The accuracy on the searched tasks, on the report split where that is confirmed."""
    return trial.report.get(QUALITY, trial.search[QUALITY])


def searched_share(trial: TrialResult, dense: TrialResult) -> IntervalEstimate | None:
    """The kept share on the searched tasks; on the report split where both trials are confirmed."""
    both = [one.report for one in (trial, dense)]
    if any(QUALITY not in measured for measured in both):
        both = [one.search for one in (trial, dense)]
    ours, theirs = (whole(measured[QUALITY]) for measured in both)
    return kept_share(ours, theirs, task_sizes(both[0][QUALITY]))


def whole(entry: Measurement) -> TaskAccuracy:
    """A measurement on all its tasks together."""
    return TaskAccuracy("", entry.value, entry.stderr, entry.n, example_scores(entry), entry.floor)


def kept_share(ours: TaskAccuracy, dense: TaskAccuracy, sizes: list[int] | None = None) -> IntervalEstimate | None:
    """Of what dense has above the chance level, how much a policy has, with a paired bootstrap interval.

    Both resample the same examples, within each task; draws in which dense has nothing above the chance level are left
    out.

    Args:
        ours: The policy's accuracy.
        dense: The dense model's, on the same examples.
        sizes: Examples per task, where they are of several.
    """
    if dense.value <= dense.floor:
        return None
    share = (ours.value - dense.floor) / (dense.value - dense.floor)
    if ours.scores is None or dense.scores is None or len(ours.scores) != len(dense.scores):
        return IntervalEstimate(share)
    weights = bootstrap_weights(sizes or [dense.n], DRAWS, np.random.default_rng(0))
    above = [weights @ scores - dense.floor for scores in (ours.scores, dense.scores)]
    usable = above[1] > 0
    low, high = np.percentile(above[0][usable] / above[1][usable], LEVELS)
    return IntervalEstimate(share, float(low), float(high))
