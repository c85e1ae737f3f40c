"""What the trainings of a search's best policies achieved: the front after them, and how policies ranked before."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..guide.rank_correlation import kendall
from ..space.space import Space
from ..trial.pareto import front_trials
from ..trial.recovery import Recovery, with_recoveries
from ..trial.recovery_attributes import TRAININGS, read_recoveries
from ..trial.trial_result import IntervalEstimate, TrialResult
from ..trial.violations import constraint_violations
from .baseline_comparison import confirmed_hypervolume, hypervolume_of, quality_metric
from .random_baseline import random_measurements
from .study_record import RecoveryOutcome, StudyRecord
from .transfer import MIN_POLICIES


def with_trained(record: StudyRecord, attrs: Mapping[str, Any], folder: Path) -> StudyRecord:
    """The study after the trainings of its best policies; the study itself where none was done.

    Args:
        record: The study before them.
        attrs: Its attributes.
        folder: Its folder.
    """
    space = Space.model_validate(attrs["space"])
    violations = partial(constraint_violations, space.constraints, dense=record.dense.search)
    found = read_recoveries(record.trials, attrs, folder, violations)
    if not found:
        return record
    trials = tuple(with_recoveries(record.trials, found, record.objectives))
    front = front_trials(trials, record.objectives)
    members = [
        [one.trial(number) for number in one.front] for one in (record, replace(record, trials=trials, front=front))
    ]
    return replace(
        record,
        trials=trials,
        front=front,
        in_gaps=(),
        random=random_measurements(members[1], attrs),
        recovery=RecoveryOutcome(
            recoveries=tuple(found),
            settings=attrs[TRAININGS]["settings"],
            ranks=quality_ranks(record, found, on_report=False),
            report_ranks=quality_ranks(record, found, on_report=True),
            hypervolume=(hypervolume_of(record, members[0]), hypervolume_of(record, members[1])),
            report_hypervolume=confirmed_volumes(record, members),
            searched=record,
        ),
    )


def quality_ranks(record: StudyRecord, recoveries: Sequence[Recovery], on_report: bool) -> IntervalEstimate | None:
    """Kendall's tau of the quality of policies before their training with that after it; None with too few of them."""
    name = quality_metric(record)
    pairs = []
    for one in recoveries:
        sides = (
            [] if one.after is None else [side.report if on_report else side.search for side in (one.before, one.after)]
        )
        if sides and all(name in side for side in sides):
            pairs.append([side[name].value for side in sides if name is not None])
    return kendall(*np.array(pairs).T) if len(pairs) >= MIN_POLICIES else None


def confirmed_volumes(record: StudyRecord, fronts: Sequence[Sequence[TrialResult]]) -> tuple[float, float] | None:
    """The hypervolumes of two fronts on the report split; None unless all their policies are confirmed."""
    if not all(trial.report for front in fronts for trial in front):
        return None
    before, after = (confirmed_hypervolume(record, front) for front in fronts)
    return None if before is None or after is None else (before, after)
