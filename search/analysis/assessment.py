"""Assesses a search: its gain over the baselines, the forecast of further trials, ties and selection bias."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..study.expected_results import ScorePredictor
from ..trial.hypervolume import hypervolume_history
from ..trial.paired_tests import SIGNIFICANCE, bootstrap_weights, example_scores, p_value
from ..trial.pareto import feasible_points, front_trials
from ..trial.scores import task_sizes
from ..trial.trial_result import IntervalEstimate, TrialResult
from .agreement import agreement
from .baseline_comparison import baseline_results, front_volume, on_report_split, quality_metric, with_expected_scores
from .forecast import forecast
from .random_baseline import random_baseline
from .study_record import Assessment, StudyRecord, policy_files
from .transfer import transfer

DRAWS = 500
DIGITS = 12  # Rounds a difference: the order of the points changes the hypervolume of equal fronts beyond that.
LEVELS = (2.5, 97.5)


def assess(record: StudyRecord) -> StudyRecord:
    """The study with its assessment."""
    baselines = [trial for trial in record.trials if trial.baseline is not None]
    numbers = front_trials([record.dense, *baselines], record.objectives)
    # With fractions to maximise and costs relative to the reference point, the ideal point has a hypervolume of 1.
    maximised = [name for name, direction in record.objectives.items() if direction == "maximize"]
    ceiling = 1.0 if all(record.metrics[name].unit == "fraction" for name in maximised) else math.inf
    assessment = Assessment(
        best_baselines=tuple(number for number in numbers if number != record.dense.number),
        gain=gain(record, [record.trial(number) for number in numbers]) if baselines else None,
        confirmed_gain=confirmed_gain(record, baselines),
        forecast=forecast(hypervolume_curve(record), ceiling=ceiling),
        ties=ties(record),
        baseline_results=baseline_results(record),
        agreement=agreement(record),
        random=random_baseline(record),
        transfer=transfer(record.dense, [record.trial(number) for number in policy_files(record)]),
    )
    return replace(record, assessment=assessment)


def assess_trained(record: StudyRecord) -> StudyRecord:
    """A study whose policies were trained, with what depends on its front assessed again.

    The gain over the baselines, which are not trained, stays that of the front before the trainings.
    """
    if record.recovery is None:
        return record
    front = [record.trial(number) for number in policy_files(record)]
    changed = replace(
        record.assessment,
        ties=ties(record),
        random=random_baseline(record),
        transfer=transfer(record.dense, front),
    )
    return replace(record, assessment=changed)


def was_measured(trial: TrialResult) -> bool:
    """True for a trial that was measured itself, and is no duplicate of another."""
    return trial.duplicate_of is None and trial.state != "running" and bool(trial.seconds)


def hypervolume_curve(record: StudyRecord) -> list[float]:
    """The hypervolume after each measured trial, in their order.

    A paused trial counts with its expected result. A policy that was promoted at the end of the search therefore
    counts when it was found.
    """
    predictor = ScorePredictor.fit(record.trials)
    trials = [
        trial if trial.early_stopped else with_expected_scores(record, trial, predictor) for trial in record.trials
    ]
    points = feasible_points(trials, record.objectives)
    reference = [record.reference[name] for name in record.objectives]
    curve = hypervolume_history(points, [*record.objectives.values()], reference)
    return [volume for volume, trial in zip(curve, record.trials, strict=True) if was_measured(trial)]


def gain(record: StudyRecord, baselines: Sequence[TrialResult]) -> IntervalEstimate:
    """Hypervolume of the search's front minus that of its baselines, on the search split.

    The interval is a paired bootstrap: every draw resamples the same examples for all policies, within each task, and
    both fronts keep their members. It covers the sampling of examples. It does not cover the selection of the best
    policies on them; `confirmed_gain` is free of that bias.

    Args:
        record: The study.
        baselines: The front of the baselines.
    """
    return volume_difference(record, [record.trial(number) for number in record.front], baselines)


def confirmed_gain(record: StudyRecord, baselines: Sequence[TrialResult]) -> IntervalEstimate | None:
    """The gain over the baselines on the report split, on which neither front was selected.

    Args:
        record: The study.
        baselines: All trials that were baselines.

    Returns:
        None where the search's front is not confirmed, or no baseline is.
    """
    name = quality_metric(record)
    front = [record.trial(number) for number in policy_files(record)]
    confirmed = [trial for trial in baselines if name in trial.report]
    if not front or not confirmed or any(name not in trial.report for trial in (record.dense, *front)):
        return None
    reported = replace(record, trials=tuple(on_report_split(trial) for trial in (record.dense, *front, *confirmed)))
    dense, *others = reported.trials
    return volume_difference(reported, [dense, *others[: len(front)]], [dense, *others[len(front) :]])


def volume_difference(
    record: StudyRecord, front: Sequence[TrialResult], baselines: Sequence[TrialResult]
) -> IntervalEstimate:
    """Hypervolume of one front minus that of another, by their results on the search split."""
    trials = [*front, *baselines]
    feasible = feasible_points([record.dense, *trials], record.objectives)[1:]
    kept = [place for place, point in enumerate(feasible) if point is not None]
    if not kept:
        return IntervalEstimate(0.0)
    members, points = [trials[place] for place in kept], np.array([feasible[place] for place in kept], dtype=float)
    split = sum(place < len(front) for place in kept)

    def difference(values: np.ndarray) -> float:
        ours, theirs = (front_volume(record, [*map(tuple, side)]) for side in (values[:split], values[split:]))
        return round(float(ours - theirs), DIGITS)

    value = difference(points)
    samples = {place: values for place, name in enumerate(record.objectives)
               if (values := bootstrap_values(members, name)) is not None}  # fmt: skip
    if not samples:
        return IntervalEstimate(value)
    differences = []
    for draw in range(DRAWS):
        resampled = points.copy()
        for place, values in samples.items():
            resampled[:, place] = values[:, draw]
        differences.append(difference(resampled))
    low, high = np.percentile(differences, LEVELS)
    return IntervalEstimate(value, float(low), float(high))


def bootstrap_values(members: Sequence[TrialResult], name: str) -> np.ndarray | None:
    """A metric of each trial in every bootstrap draw, shape (trials, draws); None without the same examples for all."""
    entries = [trial.search[name] for trial in members]
    scores = [score for entry in entries if (score := example_scores(entry)) is not None]
    if len(scores) < len(entries) or any(task_sizes(entry) != task_sizes(entries[0]) for entry in entries):
        return None
    # All metrics share one seed, so that metrics on the same examples resample the same ones.
    weights = bootstrap_weights(task_sizes(entries[0]), DRAWS, np.random.default_rng(0))
    return np.stack(scores) @ weights.T


def ties(record: StudyRecord) -> Mapping[int, int]:
    """By front trial, the next more expensive one that does not differ significantly from it in quality.

    The paired test runs on the report split where both are confirmed there, and else on the search split.
    """
    name = quality_metric(record)
    if name is None:
        return {}
    found = {}
    for expensive, cheap in zip(record.front, record.front[1:], strict=False):
        one, other = record.trial(expensive), record.trial(cheap)
        tests = (p_value(a.get(name), b.get(name)) for a, b in ((one.report, other.report), (one.search, other.search)))
        if next((p for p in tests if p is not None), 0.0) > SIGNIFICANCE:
            found[cheap] = expensive
    return found


def selection_bias(record: StudyRecord) -> float | None:
    """How much better, relative to dense, the front looks on the search split than on the report split.

    The mean over its confirmed policies, in the unit of the quality metric; None without any.
    """
    name, dense = quality_metric(record) or "", record.dense
    trials = [record.trial(number) for number in policy_files(record)]
    splits = [(trial.search, dense.search, trial.report, dense.report) for trial in trials]
    values = [[split[name].value for split in four] for four in splits if all(name in split for split in four)]
    sign = -1 if record.objectives.get(name) == "minimize" else 1
    gaps = [sign * ((search - dense_search) - (report - dense_report))
            for search, dense_search, report, dense_report in values]  # fmt: skip
    finite = [gap for gap in gaps if math.isfinite(gap)]
    return sum(finite) / len(finite) if finite else None
