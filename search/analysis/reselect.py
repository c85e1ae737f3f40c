"""Selects from the measured trials of a study under other constraints than those of the search."""

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


def parse_bounds(texts: Sequence[str], flag: str, record: StudyRecord) -> list[Constraint]:
    """Bounds as given on the command line, such as `ttft_ms<=0.6*dense`.

    Args:
        texts: The bounds.
        flag: The option that they were given with, for error messages.
        record: The study.

    Raises:
        UsageError: a bound cannot be parsed, or the study did not measure its metric.
    """
    bounds, problems = [], []
    for text in texts:
        name, sign, rest = re.split(r"([<>]=)", text, maxsplit=1) if re.search(r"[<>]=", text) else ("", "", "")
        name = name.strip()
        try:
            bounds.append(Constraint.parse(sign + rest, name))
        except ValueError:
            problems.append(f"found {short(text)}, expected a metric and a bound, such as 'ttft_ms<=0.6*dense'")
            continue
        if name not in record.dense.search:
            problems.append(f"the study did not measure {short(name)}; {nearest(name, [*record.dense.search])}")
    if problems:
        raise UsageError(f"{flag} takes a measured metric with a bound", problems)
    return bounds


def combined_bounds(
    record: StudyRecord, replacing: Sequence[Constraint], added: Sequence[Constraint]
) -> list[Constraint]:
    """The bounds that a policy must keep.

    Args:
        record: The study, whose own constraints apply to all other metrics.
        replacing: Bounds in the place of the study's own constraints on the same metrics.
        added: Further bounds.
    """
    replaced = {bound.metric for bound in replacing}
    own = [Constraint.parse(text, name) for name, text in record.constraints.items() if name not in replaced]
    return [*own, *replacing, *added]


def under_bounds(record: StudyRecord, bounds: Sequence[Constraint]) -> StudyRecord:
    """The study with violations and front by these bounds alone.

    A trial that stopped before a bounded metric was measured counts as violating the bound.
    """
    trials = tuple(replace(trial, violations=violations(record, trial, bounds)) for trial in record.trials)
    return replace(record, trials=trials, front=front_trials(trials, record.objectives))


def violations(record: StudyRecord, trial: TrialResult, bounds: Sequence[Constraint]) -> dict[str, float]:
    """By metric, the largest excess of a trial over its bounds; infinity where the metric was not measured."""
    found: dict[str, float] = {}
    for bound in bounds:
        found[bound.metric] = max(found.get(bound.metric, -math.inf), excess(record, trial, bound))
    return found


def excess(record: StudyRecord, trial: TrialResult, bound: Constraint) -> float:
    """How far a trial lies beyond a bound, in the metric's unit; infinity where the metric was not measured."""
    entry, dense = trial.search.get(bound.metric), record.dense.search[bound.metric]
    if entry is None:
        return math.inf
    return bound.excess(objective_value(bound.metric, entry, dense), dense.value, dense.floor)


def best_trial(record: StudyRecord) -> TrialResult | None:
    """The best feasible trial by the first objective, ties broken by the next ones; None where no trial is feasible."""
    signs = [-1 if direction == "maximize" else 1 for direction in record.objectives.values()]
    points = feasible_points(record.trials, record.objectives)
    ranked = [
        ([sign * value for sign, value in zip(signs, point, strict=True)], trial.number)
        for trial, point in zip(record.trials, points, strict=True)
        if point is not None
    ]
    return record.trial(min(ranked)[1]) if ranked else None


def no_feasible_policy(record: StudyRecord, bounds: Sequence[Constraint]) -> StudyError:
    """The error where no measured policy keeps the bounds; it names the one with the smallest relative violation."""

    def distance(trial: TrialResult) -> float:
        dense = record.dense.search
        terms = ((excess(record, trial, bound), abs(dense[bound.metric].value)) for bound in bounds)
        return sum(max(0.0, beyond) / (scale or 1.0) for beyond, scale in terms)

    candidates = [trial for trial in record.trials if trial.full_fidelity and math.isfinite(distance(trial))]
    closest = min(candidates, key=distance, default=None)
    lines = (
        [] if closest is None else [f"nearest: trial {closest.number} with {bounded_values(record, closest, bounds)}"]
    )
    hint = "loosen a bound, or search under it: `skipsearch run … --set constraints.METRIC='BOUND' --name NEW`"
    what = f"no measured policy keeps {' and '.join(bound.label for bound in bounds)}"
    return StudyError(what, [*lines, *undecided_lines(record, bounds)], hint)


def undecided_lines(record: StudyRecord, bounds: Sequence[Constraint]) -> list[str]:
    """How many trials stopped before it was known whether they keep the bounds, by what stopped them."""
    names = {*record.objectives, *(bound.metric for bound in bounds)}
    undecided = [
        trial
        for trial in record.trials
        if trial.state == "complete" and trial.duplicate_of is None and not names <= {*trial.search}
        and all(beyond <= 0 or beyond == math.inf for beyond in (excess(record, trial, bound) for bound in bounds))
    ]  # fmt: skip
    partial = sum(not trial.full_fidelity for trial in undecided)
    stopped = len(undecided) - partial
    lines = {
        f"{stopped} trials stopped at the study's own constraints before these metrics were measured": stopped,
        f"{partial} trials answered only some of the examples": partial,
    }
    return [line for line, count in lines.items() if count]


def bounded_values(record: StudyRecord, trial: TrialResult, bounds: Sequence[Constraint]) -> str:
    """A trial's values beside the bounds on them."""
    parts = []
    for bound in bounds:
        unit, dense = unit_of(bound.metric), record.dense.search[bound.metric]
        value = objective_value(bound.metric, trial.search[bound.metric], dense)
        limit = bound.limit(dense.value, dense.floor)
        sign = ">=" if bound.at_least else "<="
        parts.append(f"{bound.metric} {amount(value, unit)} (bound: {sign} {amount(limit, unit)})")
    return ", ".join(parts)
