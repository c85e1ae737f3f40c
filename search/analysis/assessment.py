"""What a search was worth: its gain over the rules it began with, what more trials would add, and which points tie."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..study.expected_results import Known
from ..trial.hypervolume import history
from ..trial.pareto import feasible_points, front_trials
from ..trial.trial_result import Estimate, TrialResult
from .agreement import agreement
from .baseline_comparison import as_told, by_rule, on_report, quality_metric, volume
from .forecast import forecast
from .paired_tests import TOLD_APART, chance, examples, resampled, task_sizes
from .study_record import Assessment, StudyRecord, policy_files

DRAWS = 500
DIGITS = 12  # of a difference: the volume of equal fronts depends on the order of their points beyond that
LEVELS = (2.5, 97.5)


def assess(record: StudyRecord) -> StudyRecord:
    """A study with its verdict."""
    rules = [trial for trial in record.trials if trial.baseline is not None]
    numbers = front_trials([record.dense, *rules], record.objectives)
    # Of fractions and costs, whose unit is the reference, the best point there can be has a volume of 1.
    best = [name for name, direction in record.objectives.items() if direction == "maximize"]
    ceiling = 1.0 if all(record.metrics[name].unit == "fraction" for name in best) else math.inf
    assessment = Assessment(
        rules=tuple(number for number in numbers if number != record.dense.number),
        gain=gain(record, [record.trial(number) for number in numbers]) if rules else None,
        confirmed_gain=confirmed_gain(record, rules),
        forecast=forecast(growth(record), ceiling=ceiling),
        ties=ties(record),
        by_rule=by_rule(record),
        agreement=agreement(record),
    )
    return replace(record, assessment=assessment)


def counts(trial: TrialResult) -> bool:
    """True where a trial was measured for itself."""
    return trial.duplicate_of is None and trial.state != "running" and bool(trial.seconds)


def growth(record: StudyRecord) -> list[float]:
    """The hypervolume after each trial that was measured for itself, in their order.

    One that was set aside counts as it is expected to be: what is measured in full at the end was found before.
    """
    known = Known.of(record.trials)
    told = [trial if trial.early_stopped else as_told(record, trial, known) for trial in record.trials]
    points = feasible_points(told, record.objectives)
    curve = history(points, [*record.objectives.values()], [record.reference[name] for name in record.objectives])
    return [reached for reached, trial in zip(curve, record.trials, strict=True) if counts(trial)]


def gain(record: StudyRecord, rules: Sequence[TrialResult]) -> Estimate:
    """Hypervolume of the search's front beyond that of its rules, on the search's own examples.

    The interval is a paired bootstrap: the same examples are drawn again for all policies, within each task, and both
    fronts keep their members. It holds the luck of the examples, not that of having chosen the best of many on them:
    `confirmed_gain` is free of that.

    Args:
        record: The study.
        rules: The front of the rules.
    """
    return volume_difference(record, [record.trial(number) for number in record.front], rules)


def confirmed_gain(record: StudyRecord, rules: Sequence[TrialResult]) -> Estimate | None:
    """The gain over the rules on the report split, where neither front was chosen.

    Args:
        record: The study.
        rules: All trials that were rules.

    Returns:
        None where the search's front is not confirmed, or none of the rules is.
    """
    name = quality_metric(record)
    front = [record.trial(number) for number in policy_files(record)]
    confirmed = [trial for trial in rules if name in trial.report]
    if not front or not confirmed or any(name not in trial.report for trial in (record.dense, *front)):
        return None
    unseen = replace(record, trials=tuple(on_report(trial) for trial in (record.dense, *front, *confirmed)))
    dense, *others = unseen.trials
    return volume_difference(unseen, [dense, *others[: len(front)]], [dense, *others[len(front) :]])


def volume_difference(record: StudyRecord, front: Sequence[TrialResult], rules: Sequence[TrialResult]) -> Estimate:
    """Hypervolume of one front beyond that of another, by the trials' figures on the search split."""
    trials = [*front, *rules]
    able = feasible_points([record.dense, *trials], record.objectives)[1:]
    kept = [place for place, point in enumerate(able) if point is not None]
    if not kept:
        return Estimate(0.0)
    members, points = [trials[place] for place in kept], np.array([able[place] for place in kept], dtype=float)
    split = sum(place < len(front) for place in kept)
    drawn = {place: values for place, name in enumerate(record.objectives)
             if (values := redrawn(members, name)) is not None}  # fmt: skip

    def difference(values: np.ndarray) -> float:
        searched, given = (volume(record, [*map(tuple, side)]) for side in (values[:split], values[split:]))
        return round(float(searched - given), DIGITS)

    value = difference(points)
    if not drawn:
        return Estimate(value)
    again = []
    for draw in range(DRAWS):
        changed = points.copy()
        for place, values in drawn.items():
            changed[:, place] = values[:, draw]
        again.append(difference(changed))
    low, high = np.percentile(again, LEVELS)
    return Estimate(value, float(low), float(high))


def redrawn(members: Sequence[TrialResult], name: str) -> np.ndarray | None:
    """A metric of each trial in every draw of examples, shape (trials, draws); None where examples were not kept."""
    entries = [trial.search[name] for trial in members]
    scores = [examples(entry) for entry in entries]
    known = [score for score in scores if score is not None]
    if len(known) < len(entries) or any(task_sizes(entry) != task_sizes(entries[0]) for entry in entries):
        return None
    # One seed for all metrics: those on the same examples draw the same.
    weights = resampled(task_sizes(entries[0]), DRAWS, np.random.default_rng(0))
    return np.stack(known) @ weights.T


def ties(record: StudyRecord) -> Mapping[int, int]:
    """By front trial, the next dearer one that the paired test cannot tell it from, on the report split if it can."""
    name = quality_metric(record)
    if name is None:
        return {}
    found = {}
    for dearer, cheaper in zip(record.front, record.front[1:], strict=False):
        one, other = record.trial(dearer), record.trial(cheaper)
        tests = [chance(a.get(name), b.get(name)) for a, b in ((one.report, other.report), (one.search, other.search))]
        if next((known for known in tests if known is not None), 0.0) > TOLD_APART:
            found[cheaper] = dearer
    return found


def selection_bias(record: StudyRecord) -> float | None:
    """How much better, against dense, the front looks on the search split than on the report split.

    The mean over its policies that are confirmed, in the unit of what tells how good they are; None where none is.
    """
    name, dense = quality_metric(record) or "", record.dense
    trials = [record.trial(number) for number in policy_files(record)]
    splits = [(trial.search, dense.search, trial.report, dense.report) for trial in trials]
    known = [[split[name].value for split in four] for four in splits if all(name in split for split in four)]
    sign = -1 if record.objectives.get(name) == "minimize" else 1
    gaps = [sign * ((chosen - before) - (unseen - beside)) for chosen, before, unseen, beside in known]
    finite = [gap for gap in gaps if math.isfinite(gap)]
    return sum(finite) / len(finite) if finite else None
