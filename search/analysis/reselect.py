"""The archive of a study: what was measured, asked again under other bounds than those of the search."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace

from ...policies.errors import StudyError, UsageError
from ...policies.wording import nearest, short
from ..space.constraint import Constraint
from ..space.units import amount, unit_of
from ..trial.pareto import feasible_points, front_trials, objective_value
from ..trial.trial_result import TrialResult
from .study_record import StudyRecord


def parsed(texts: Sequence[str], flag: str, record: StudyRecord) -> list[Constraint]:
    """Bounds as they are given on the command line, such as `ttft_ms<=0.6*dense`.

    Raises:
        UsageError: one is no bound, or bounds what the study did not measure.
    """
    found, problems = [], []
    for text in texts:
        name, sign, rest = re.split(r"([<>]=)", text, maxsplit=1) if re.search(r"[<>]=", text) else ("", "", "")
        try:
            found.append(Constraint.parse(sign + rest, name.strip()))
        except ValueError:
            problems.append(f"found {short(text)}, expected a metric and a bound, such as 'ttft_ms<=0.6*dense'")
            continue
        if name.strip() not in record.dense.search:
            problems.append(f"nobody measured {short(name.strip())}; {nearest(name.strip(), [*record.dense.search])}")
    if problems:
        raise UsageError(f"{flag} takes a measured metric with a bound", problems)
    return found


def bounds_of(record: StudyRecord, instead: Sequence[Constraint], besides: Sequence[Constraint]) -> list[Constraint]:
    """What a policy must keep: the study's own constraints, but on metrics that have new ones, and what is added."""
    changed = {bound.metric for bound in instead}
    own = [Constraint.parse(text, name) for name, text in record.constraints.items() if name not in changed]
    return [*own, *instead, *besides]


def under(record: StudyRecord, bounds: Sequence[Constraint]) -> StudyRecord:
    """The study as if it had searched under these bounds and no others: what it measured, and the front of that.

    A trial that stopped before a bounded metric was measured cannot be told to keep the bound.
    """
    trials = tuple(replace(trial, violations=violations(record, trial, bounds)) for trial in record.trials)
    return replace(record, trials=trials, front=front_trials(trials, record.objectives))


def violations(record: StudyRecord, trial: TrialResult, bounds: Sequence[Constraint]) -> dict[str, float]:
    """By metric, how far a trial lies beyond the bound that it breaks most; infinity where it was not measured."""
    found: dict[str, float] = {}
    for bound in bounds:
        found[bound.metric] = max(found.get(bound.metric, -math.inf), excess(record, trial, bound))
    return found


def excess(record: StudyRecord, trial: TrialResult, bound: Constraint) -> float:
    """How far a trial lies beyond a bound, in the metric's unit."""
    entry, dense = trial.search.get(bound.metric), record.dense.search[bound.metric]
    if entry is None:
        return math.inf
    return bound.excess(objective_value(bound.metric, entry, dense), dense.value, dense.floor)


def best(record: StudyRecord) -> TrialResult | None:
    """The best trial of a front by the first objective, then by the next ones; None where nothing is on it."""
    signs = [-1 if direction == "maximize" else 1 for direction in record.objectives.values()]
    points = feasible_points(record.trials, record.objectives)
    ranked = [
        ([sign * value for sign, value in zip(signs, point, strict=True)], trial.number)
        for trial, point in zip(record.trials, points, strict=True)
        if point is not None
    ]
    return record.trial(min(ranked)[1]) if ranked else None


def none_keeps(record: StudyRecord, bounds: Sequence[Constraint]) -> StudyError:
    """The error where no measured policy keeps some bounds: it names the one that comes nearest."""

    def distance(trial: TrialResult) -> float:
        dense = record.dense.search
        steps = ((excess(record, trial, bound), abs(dense[bound.metric].value)) for bound in bounds)
        return sum(max(0.0, beyond) / (scale or 1.0) for beyond, scale in steps)

    whole = [trial for trial in record.trials if trial.full_fidelity and math.isfinite(distance(trial))]
    nearest_trial = min(whole, key=distance, default=None)
    lines = (
        [f"nearest: trial {nearest_trial.number} with {figures(record, nearest_trial, bounds)}"]
        if nearest_trial
        else []
    )
    hint = "loosen a bound, or search under it: `skipsearch run … --set constraints.METRIC='BOUND' --name NEW`"
    what = f"no measured policy keeps {' and '.join(bound.label for bound in bounds)}"
    return StudyError(what, [*lines, *untold_lines(record, bounds)], hint)


def untold_lines(record: StudyRecord, bounds: Sequence[Constraint]) -> list[str]:
    """How many trials may keep the bounds and stopped too early to tell, by what stopped them."""
    names = {*record.objectives, *(bound.metric for bound in bounds)}
    unknown = [
        trial
        for trial in record.trials
        if trial.state == "complete" and trial.duplicate_of is None and not names <= {*trial.search}
        and all(step <= 0 or step == math.inf for step in (excess(record, trial, bound) for bound in bounds))
    ]  # fmt: skip
    few = sum(not trial.full_fidelity for trial in unknown)
    told = {"stopped at the study's own constraints": len(unknown) - few, "answered few examples only": few}
    return [f"{count} trials {why}, before it could be told" for why, count in told.items() if count]


def figures(record: StudyRecord, trial: TrialResult, bounds: Sequence[Constraint]) -> str:
    """A trial's figures beside the bounds on them."""
    parts = []
    for bound in bounds:
        unit, dense = unit_of(bound.metric), record.dense.search[bound.metric]
        value = objective_value(bound.metric, trial.search[bound.metric], dense)
        limit = bound.limit(dense.value, dense.floor)
        sign = ">=" if bound.at_least else "<="
        parts.append(f"{bound.metric} {amount(value, unit)} (asked: {sign} {amount(limit, unit)})")
    return ", ".join(parts)
