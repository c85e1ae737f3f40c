"""What the search gained over each rule that it began with: what the rule comes to by itself, beside the front."""

from collections.abc import Sequence
from dataclasses import replace

from ...evaluators.base import Direction
from ..study.expected_results import Known, as_expected
from ..trial.hypervolume import Point, history
from ..trial.pareto import evenly, front_trials, objective_point
from ..trial.trial_result import Estimate, TrialResult
from .paired_tests import difference, examples
from .reselect import bounds_of, violations
from .study_record import BaselineComparison, BaselineResult, StudyRecord, quality

SHOWN = 3  # policies of a rule that are set beside the front


def by_rule(record: StudyRecord) -> tuple[BaselineResult, ...]:
    """Every rule of a study, that of the largest hypervolume first."""
    names = dict.fromkeys(name for trial in record.trials for name in trial.rules)
    found = [result(record, name) for name in names]
    return tuple(sorted(found, key=lambda one: -one.hypervolume))


def result(record: StudyRecord, name: str) -> BaselineResult:
    """What the trials of one rule come to."""
    known = Known.of(record.trials)
    own = {trial.number: as_told(record, trial, known) for trial in record.trials if name in trial.rules}
    numbers = front_trials([record.dense, *own.values()], record.objectives)
    front = [own[number] for number in numbers if number in own]
    return BaselineResult(
        name=name,
        settings=len({trial.policy.fingerprint for trial in own.values()}),
        front=tuple(trial.number for trial in front),
        hypervolume=hypervolume_of(record, front),
        confirmed=sum(bool(trial.report) for trial in front),
        report=confirmed_hypervolume(record, front),
        beside=tuple(beside(record, trial) for trial in evenly(front, SHOWN)),
    )


def as_told(record: StudyRecord, trial: TrialResult, known: Known) -> TrialResult:
    """A trial with all that is known: what was measured on some of the examples as it is expected to be on all."""
    return as_expected(trial, known, lambda whole: violations(record, whole, bounds_of(record, (), ())))


def hypervolume_of(record: StudyRecord, trials: Sequence[TrialResult]) -> float:
    """The hypervolume of some trials on the search split."""
    return volume(record, [objective_point(trial.search, record.dense.search, record.objectives) for trial in trials])


def confirmed_hypervolume(record: StudyRecord, trials: Sequence[TrialResult]) -> float | None:
    """The hypervolume, on the report split, of those that are confirmed; None where none is."""
    confirmed = [on_report(trial) for trial in trials if trial.report]
    return hypervolume_of(replace(record, trials=(on_report(record.dense),)), confirmed) if confirmed else None


def on_report(trial: TrialResult) -> TrialResult:
    """A trial by what it measured on the report split, and by its costs."""
    return replace(trial, search={**trial.search, **trial.report}, early_stopped=None, estimates={})


def volume(record: StudyRecord, points: Sequence[Point | None]) -> float:
    """Hypervolume of some points, as the study counts it."""
    directions: list[Direction] = [*record.objectives.values()]
    return history([*points, None], directions, [record.reference[name] for name in record.objectives])[-1]


def quality_metric(record: StudyRecord) -> str | None:
    """The objective that tells how good a policy is: a fraction, or else one that is measured on examples."""
    on_examples = (name for name in record.objectives if examples(record.dense.search.get(name)) is not None)
    return quality(record) or next(on_examples, None)


def minimised(record: StudyRecord, trial: TrialResult) -> dict[str, float]:
    """The objectives of a trial that has them all, so that less is better."""
    point = objective_point(trial.search, record.dense.search, record.objectives) or ()
    pairs = zip(record.objectives.items(), point, strict=True)
    return {name: -value if direction == "maximize" else value for (name, direction), value in pairs}


def beside(record: StudyRecord, trial: TrialResult) -> BaselineComparison:
    """A policy of a rule and the best policy of the front that costs no more, which may be itself."""
    name, own = quality_metric(record), minimised(record, trial)
    front = {number: minimised(record, record.trial(number)) for number in record.front} | {trial.number: own}
    affordable = {number: costs for number, costs in front.items()
                  if all(costs[cost] <= own[cost] for cost in own if cost != name)}  # fmt: skip
    if name is None:
        return BaselineComparison(trial.number, next(iter(affordable)), None, None)
    number = min(affordable, key=lambda number: (affordable[number][name], number != trial.number))
    if number == trial.number:
        return BaselineComparison(number, number, None, None)
    asked, best = record.trial(trial.number), record.trial(number)
    search = difference(best.search.get(name), {**asked.estimates, **asked.search}.get(name))
    report = difference(best.report.get(name), asked.report.get(name))
    flip = record.objectives[name] == "minimize"
    return BaselineComparison(trial.number, number, turned(search, flip), turned(report, flip))


def turned(estimate: Estimate | None, flip: bool) -> Estimate | None:
    """A difference as a gain."""
    if estimate is None or not flip:
        return estimate
    low, high = (None if end is None else -end for end in (estimate.high, estimate.low))
    return replace(estimate, value=-estimate.value, low=low, high=high)
