"""The headline, the front's summary and the measurement details of a report, as plain values for the templates."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...evaluators.base import Measurement, Split
from ..analysis.study_record import StudyRecord, accuracy_objective, percent_of_dense, policy_files
from ..space.objectives import first_cost
from ..space.units import EXAMPLE_UNITS, amount, phrase, signed_points, with_error
from ..trial.trial_result import TrialResult

# The headline policy is the cheapest one that loses at most one point of accuracy. By divergence, 0.01 nats mean that
# answer probabilities differ by less than 7 points on average (Pinsker's inequality).
TOLERANCE = 0.01


@dataclass(frozen=True)
class EmptyFront:
    """Why the front holds no policy besides dense.

    Attributes:
        reasons: Each as text and a piece of code that follows it, which may be empty.
        advice: What to do.
        example: A piece of a space that does it; empty where there is none.
    """

    reasons: list[tuple[str, str]]
    advice: str
    example: str = ""


def headline_metric(record: StudyRecord) -> str | None:
    """The metric that the headline speaks of: accuracy, or else the divergence."""
    divergences = (name for name in record.objectives if record.metrics[name].unit == "nats")
    return accuracy_objective(record) or next(divergences, None)


def headline_trial(record: StudyRecord) -> TrialResult | None:
    """The trial whose policy the headline describes.

    It is selected on the search split alone, so that its result on the report split is free of selection bias.
    """
    candidates = [record.trial(number) for number in policy_files(record)]
    name, cost = headline_metric(record), first_cost(record.objectives)
    if name is None:
        return candidates[-1] if candidates else None
    losses = {trial.number: _loss(record, trial, name, "search") for trial in candidates}
    tolerable = [trial for trial in candidates if losses[trial.number] <= TOLERANCE]
    if tolerable and cost is not None:
        return min(tolerable, key=lambda trial: percent_of_dense(record, trial, cost))
    return min(candidates, key=lambda trial: losses[trial.number], default=None)


def headline(record: StudyRecord) -> str:
    """The result in one sentence."""
    trial, name, cost = headline_trial(record), headline_metric(record), first_cost(record.objectives)
    if trial is None:
        return "No policy was found that improves on the dense model."
    trained = "" if trial.policy.weights is None else ", with trained weights, "
    sentence = f"The policy of trial {trial.number}{trained or ' '}"
    if cost is not None:
        sentence += f"needs {percent_of_dense(record, trial, cost):.0f}\u00a0% of the dense {phrase(cost)}"
    if name is None:
        return sentence + "."
    confirmed = _is_confirmed(record, trial, name)
    sentence += f"{' and ' if cost is not None else ''}{_change(record, trial, name, confirmed)} "
    if confirmed:
        return sentence + "on examples the search never saw."
    return sentence + "on the search's own examples; it is not confirmed on others."


def _change(record: StudyRecord, trial: TrialResult, name: str, confirmed: bool) -> str:
    """What a policy loses or gains, as the predicate of a sentence."""
    loss = _loss(record, trial, name, "report" if confirmed else "search")
    if record.metrics[name].unit == "nats":
        return f"is {amount(loss, 'nats')} from dense"
    if abs(loss) < 0.0005:
        return f"loses no {phrase(name)}"
    return f"{'gains' if loss < 0 else 'loses'} {abs(100 * loss):.1f} points of {phrase(name)}"


def headline_criterion(record: StudyRecord) -> str:
    """How the headline's policy was selected, and its result on the report split with its standard error."""
    trial, name = headline_trial(record), headline_metric(record)
    if trial is None or name is None:
        return ""
    if first_cost(record.objectives) is None:
        criterion = f"It has the best {phrase(name)} on the search split."
    elif _loss(record, trial, name, "search") <= TOLERANCE:
        criterion = f"It is the cheapest policy within {_tolerance(record, name)} on the search split."
    else:
        criterion = f"No policy is within {_tolerance(record, name)} on the search split; this one loses least."
    if _is_confirmed(record, trial, name):
        ours, dense = (measurement_text(record, name, one.report[name]) for one in (trial, record.dense))
        reference = "" if record.metrics[name].unit == "nats" else f", dense {dense}"
        criterion += f" On the report split it has {ours}{reference}, n = {trial.report[name].n}."
    return criterion


def _is_confirmed(record: StudyRecord, trial: TrialResult, name: str) -> bool:
    return name in trial.report and name in record.dense.report


def _tolerance(record: StudyRecord, name: str) -> str:
    if record.metrics[name].unit == "nats":
        return f"{amount(TOLERANCE, 'nats')} of dense"
    return f"one point of dense {phrase(name)}"


def tiles(record: StudyRecord) -> list[tuple[str, str]]:
    """Large numbers with a caption each: what the headline's policy measured, and how many trials there are."""
    trial = headline_trial(record)
    if trial is None:
        return []
    found = []
    for name in record.objectives:
        split: Split = "report" if _is_confirmed(record, trial, name) else "search"
        if record.metrics[name].unit == "fraction":
            change = signed_points(gain_over_dense(record, trial, name, split)).removesuffix(" points")
            found.append((change, f"points of {phrase(name)}, {split} split"))
        elif record.metrics[name].unit == "nats":
            found.append((amount(_loss(record, trial, name, split), "nats"), f"of {phrase(name)}, {split} split"))
        else:
            found.append((f"{percent_of_dense(record, trial, name, split):.0f} %", f"of the dense {phrase(name)}"))
    return [*found, (str(len(record.trials)), "trials")]


def empty_front(record: StudyRecord) -> EmptyFront | None:
    """Why the front holds no policy, and what to do; None where it holds one."""
    if policy_files(record):
        return None
    trials = [trial for trial in record.trials if trial.number != record.dense.number]
    failed = sum(trial.state == "failed" for trial in trials)
    broken = Counter(name for trial in trials for name, excess in trial.violations.items() if excess > 0)
    dominated = sum(trial.feasible for trial in trials)
    reasons = [(f"{failed} of {len(trials)} trials failed", "")] if failed else []
    reasons += [(f"{n} broke", f"{name} {record.constraints.get(name, '')}") for name, n in broken.most_common()]
    reasons += [(f"{dominated} kept every constraint but are no better than dense", "")] if dominated else []
    reasons = reasons or [("no trial besides the dense baseline has finished", "")]
    if failed > len(trials) / 2:
        return EmptyFront(
            reasons, "fix what made the trials fail (listed under “How it was measured”) and resume the study"
        )
    if broken:
        advice = "loosen the constraint, or offer gentler choices such as"
        return EmptyFront(reasons, advice, "{token_ratio: [0.75]}")
    return EmptyFront(reasons, "give the search more trials, or offer choices in more layers")


def reference_text(record: StudyRecord) -> str:
    """The reference point, which is printed beside every hypervolume."""
    parts = [f"{phrase(name)} {amount(value, record.metrics[name].unit)}" for name, value in record.reference.items()]
    return ", ".join(parts)


def measured_sections(record: StudyRecord) -> list[tuple[str, dict[str, str]]]:
    """Titles with definitions: what each metric means, on how many examples and on which machine it was measured."""
    metrics = {}
    for name, metric in record.metrics.items():
        facts = [f"Unit {metric.unit}", metric.direction, sample_counts(record, name)]
        metrics[name] = f"{metric.text.rstrip('.')}. {', '.join(filter(None, facts))}."
    sections = [
        ("Metrics", metrics),
        ("Constraints", dict(record.constraints) or {"none": "every trial that finished may be on the front"}),
        ("Trials", _trial_counts(record)),
        ("Run", {key.replace("_", " "): f"{value:.4g}" for key, value in record.summary.items()}),
        (
            "Model and machine",
            {"model": record.model_id, "layers": str(record.num_layers), **_flat(record.environment)},
        ),
    ]
    return [(title, entries) for title, entries in sections if entries]


def sample_counts(record: StudyRecord, name: str) -> str:
    """On how many examples or repeats a metric was measured, and for costs on which prompt."""
    if record.metrics[name].unit not in EXAMPLE_UNITS:
        entry = record.dense.search.get(name)
        repeats = f"{entry.n} repeats " if entry and entry.n > 1 else ""
        prompt = entry.detail.get("prompt") if entry else None
        return f"{repeats}on {prompt}" if prompt else repeats.strip()
    splits = (("search", record.dense.search), ("report", record.dense.report))
    return ", ".join(f"{split} split n = {measured[name].n}" for split, measured in splits if name in measured)


def gain_over_dense(record: StudyRecord, trial: TrialResult, name: str, split: Split) -> float:
    """A trial's value of a metric minus that of dense; NaN where either is missing."""
    ours, dense = getattr(trial, split).get(name), getattr(record.dense, split).get(name)
    return ours.value - dense.value if ours and dense else math.nan


def measurement_text(record: StudyRecord, name: str, entry: Measurement) -> str:
    """A measurement with its standard error and unit."""
    return with_error(entry.value, entry.stderr, record.metrics[name].unit)


def _loss(record: StudyRecord, trial: TrialResult, name: str, split: Split) -> float:
    """How much worse than dense a trial is."""
    gain = gain_over_dense(record, trial, name, split)
    return gain if record.metrics[name].direction == "minimize" else -gain


def _trial_counts(record: StudyRecord) -> dict[str, str]:
    states = Counter(trial.state for trial in record.trials)
    entries: dict[str, str] = {state: str(count) for state, count in states.items()}
    complete = [trial for trial in record.trials if trial.state == "complete"]
    duplicates = sum(trial.duplicate_of is not None for trial in record.trials)
    entries["beyond a constraint"] = str(sum(trial.violates_constraint for trial in complete))
    entries["on few examples only"] = str(sum(bool(trial.estimates) for trial in complete))
    entries["duplicates, measured once"] = str(duplicates)
    failures: dict[str, list[int]] = defaultdict(list)
    for trial in record.trials:
        if trial.state == "failed":
            failures[trial.failure or "no reason recorded"].append(trial.number)
    for reason, numbers in failures.items():
        entries[f"failed: {reason}"] = "trial " + ", ".join(map(str, numbers))
    return entries


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as one, with keys joined by dots."""
    entries: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            entries |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
            for number, entry in enumerate(value, 1):
                entries |= _flat(entry, f"{prefix}{key} {number}.")
        else:
            entries[f"{prefix}{key}"] = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return entries
