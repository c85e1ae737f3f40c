"""Compares the front of a search with each of the baselines that it started from."""

from collections.abc import Sequence
from dataclasses import replace

from ...evaluators.base import Direction
from ..study.expected_results import ScorePredictor, with_predicted_scores
from ..trial.hypervolume import Point, hypervolume_history
from ..trial.paired_tests import example_scores, paired_difference
from ..trial.pareto import evenly_spaced, front_trials, objective_point
from ..trial.trial_result import IntervalEstimate, TrialResult
from .reselect import combined_bounds, violations
from .study_record import BaselineComparison, BaselineResult, StudyRecord, accuracy_objective

MAX_COMPARED = 3  # policies per baseline that are compared with the front


def baseline_results(record: StudyRecord) -> tuple[BaselineResult, ...]:
    """Every baseline of a study, by falling hypervolume."""
    names = dict.fromkeys(name for trial in record.trials for name in trial.baseline_settings)
    results = [baseline_result(record, name) for name in names]
    return tuple(sorted(results, key=lambda result: -result.hypervolume))


def baseline_result(record: StudyRecord, name: str) -> BaselineResult:
    """The front and the hypervolume of one baseline's trials."""
    predictor = ScorePredictor.fit(record.trials)
    trials = {trial.number: with_expected_scores(record, trial, predictor)
              for trial in record.trials if name in trial.baseline_settings}  # fmt: skip
    numbers = front_trials([record.dense, *trials.values()], record.objectives)
    front = [trials[number] for number in numbers if number in trials]
    return BaselineResult(
        name=name,
        settings=len({trial.policy.fingerprint for trial in trials.values()}),
        front=tuple(trial.number for trial in front),
        hypervolume=hypervolume_of(record, front),
        confirmed=sum(bool(trial.report) for trial in front),
        report=confirmed_hypervolume(record, front),
        beside=tuple(compare(record, trial) for trial in evenly_spaced(front, MAX_COMPARED)),
    )


def with_expected_scores(record: StudyRecord, trial: TrialResult, predictor: ScorePredictor) -> TrialResult:
    """A trial whose scores on some of the examples are replaced by those expected on all of them."""
    bounds = combined_bounds(record, (), ())
    return with_predicted_scores(trial, predictor, lambda whole: violations(record, whole, bounds))


def hypervolume_of(record: StudyRecord, trials: Sequence[TrialResult]) -> float:
    """The hypervolume of some trials on the search split."""
    points = [objective_point(trial.search, record.dense.search, record.objectives) for trial in trials]
    return front_volume(record, points)


def confirmed_hypervolume(record: StudyRecord, trials: Sequence[TrialResult]) -> float | None:
    """The hypervolume of the confirmed trials on the report split; None without any."""
    confirmed = [on_report_split(trial) for trial in trials if trial.report]
    if not confirmed:
        return None
    return hypervolume_of(replace(record, trials=(on_report_split(record.dense),)), confirmed)


def on_report_split(trial: TrialResult) -> TrialResult:
    """A trial whose report measurements take the place of those of the search."""
    return replace(trial, search={**trial.search, **trial.report}, early_stopped=None, estimates={})


def front_volume(record: StudyRecord, points: Sequence[Point | None]) -> float:
    """Hypervolume of some points under the study's directions and reference point."""
    directions: list[Direction] = [*record.objectives.values()]
    reference = [record.reference[name] for name in record.objectives]
    return hypervolume_history([*points, None], directions, reference)[-1]


def quality_metric(record: StudyRecord) -> str | None:
    """The objective that measures quality: accuracy, or else the first one with per-example scores."""
    scored = (name for name in record.objectives if example_scores(record.dense.search.get(name)) is not None)
    return accuracy_objective(record) or next(scored, None)


def minimised_objectives(record: StudyRecord, trial: TrialResult) -> dict[str, float]:
    """The objectives of a trial, with the sign of maximised ones flipped; empty where one is missing."""
    point = objective_point(trial.search, record.dense.search, record.objectives) or ()
    pairs = zip(record.objectives.items(), point, strict=True)
    return {name: -value if direction == "maximize" else value for (name, direction), value in pairs}


def compare(record: StudyRecord, trial: TrialResult) -> BaselineComparison:
    """Compares a baseline's policy with the best policy of the front that costs no more, which may be the same."""
    quality, own = quality_metric(record), minimised_objectives(record, trial)
    front = {number: minimised_objectives(record, record.trial(number)) for number in record.front}
    candidates = front | {trial.number: own}
    affordable = {number: objectives for number, objectives in candidates.items()
                  if all(objectives[name] <= own[name] for name in own if name != quality)}  # fmt: skip
    if quality is None:
        return BaselineComparison(trial.number, next(iter(affordable)), None, None)
    number = min(affordable, key=lambda number: (affordable[number][quality], number != trial.number))
    if number == trial.number:
        return BaselineComparison(number, number, None, None)
    baseline, best = record.trial(trial.number), record.trial(number)
    search = paired_difference(best.search.get(quality), {**baseline.estimates, **baseline.search}.get(quality))
    report = paired_difference(best.report.get(quality), baseline.report.get(quality))
    if record.objectives[quality] == "minimize":
        search, report = negated(search), negated(report)
    return BaselineComparison(trial.number, number, search, report)


def negated(estimate: IntervalEstimate | None) -> IntervalEstimate | None:
    """An estimate and its interval with the opposite sign."""
    if estimate is None:
        return None
    low, high = (None if end is None else -end for end in (estimate.high, estimate.low))
    return replace(estimate, value=-estimate.value, low=low, high=high)
