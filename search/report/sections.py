"""The text of a report: every section of the page as HTML, with everything that was measured escaped."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from html import escape
from typing import Any

from ...evaluators.base import Measurement, Split
from ..analysis.study_record import StudyRecord, percent_of_dense, policy_files, quality
from ..space.objectives import first_cost
from ..space.units import EXAMPLE_UNITS, amount, phrase, signed_points, with_error
from ..trial.modelled_time import ModelledTime
from ..trial.trial_result import TrialResult

# The headline policy is the cheapest that loses at most one point of accuracy; or, by its divergence, whose answers
# have a probability that is off by less than 7 points on average (Pinsker's inequality).
TOLERANCE = 0.01


def judge(record: StudyRecord) -> str | None:
    """What policies are told apart by: the quality, or else the divergence."""
    far = (name for name in record.objectives if record.metrics[name].unit == "nats")
    return quality(record) or next(far, None)


def headline_trial(record: StudyRecord) -> TrialResult | None:
    """The policy that the report's first sentence speaks of.

    It is chosen on the search split alone, so that what is said of it on the report split is no selection.
    """
    candidates = [record.trial(number) for number in policy_files(record)]
    name, cost = judge(record), first_cost(record.objectives)
    if name is None:
        return candidates[-1] if candidates else None
    losses = {trial.number: _loss(record, trial, name, "search") for trial in candidates}
    near = [trial for trial in candidates if losses[trial.number] <= TOLERANCE]
    if near and cost is not None:
        return min(near, key=lambda trial: percent_of_dense(record, trial, cost))
    return min(candidates, key=lambda trial: losses[trial.number], default=None)


def headline(record: StudyRecord) -> str:
    """The result in one sentence."""
    trial, name, cost = headline_trial(record), judge(record), first_cost(record.objectives)
    if trial is None:
        return "No policy was found that improves on the dense model."
    sentence = f"The policy of trial {trial.number} "
    if cost is not None:
        sentence += f"needs {percent_of_dense(record, trial, cost):.0f}\u00a0% of the dense {phrase(cost)}"
    if name is None:
        return sentence + "."
    confirmed = name in trial.report and name in record.dense.report
    sentence += f"{' and ' if cost is not None else ''}{_change(record, trial, name, confirmed)} "
    if confirmed:
        return sentence + "on examples the search never saw."
    return sentence + "on the search's own examples; it is not confirmed on others."


def _change(record: StudyRecord, trial: TrialResult, name: str, confirmed: bool) -> str:
    """What a policy loses, in words."""
    loss = _loss(record, trial, name, "report" if confirmed else "search")
    if record.metrics[name].unit == "nats":
        return f"is {amount(loss, 'nats')} from dense"
    if abs(loss) < 0.0005:
        return f"loses no {phrase(name)}"
    return f"{'gains' if loss < 0 else 'loses'} {abs(100 * loss):.1f} points of {phrase(name)}"


def headline_rule(record: StudyRecord) -> str:
    """How the policy of the first sentence was picked, and how sure its figure is."""
    trial, name = headline_trial(record), judge(record)
    if trial is None or name is None:
        return ""
    if first_cost(record.objectives) is None:
        rule = f"It has the best {phrase(name)} on the search split."
    elif _loss(record, trial, name, "search") <= TOLERANCE:
        rule = f"It is the cheapest policy within {_tolerance(record, name)} on the search split."
    else:
        rule = f"No cheaper policy is within {_tolerance(record, name)} on the search split; this one loses least."
    if name in trial.report and name in record.dense.report:
        ours, dense = (_with_error(record, name, one.report[name]) for one in (trial, record.dense))
        beside = "" if record.metrics[name].unit == "nats" else f", dense {dense}"
        rule += f" On the report split it has {ours}{beside}, n = {trial.report[name].n}."
    return escape(rule)


def _tolerance(record: StudyRecord, name: str) -> str:
    return (
        f"{amount(TOLERANCE, 'nats')} of dense"
        if record.metrics[name].unit == "nats"
        else (f"one point of dense {phrase(name)}")
    )


def tiles(record: StudyRecord) -> str:
    """The headline policy's figures, large."""
    trial = headline_trial(record)
    if trial is None:
        return ""
    found = []
    for name in record.objectives:
        split: Split = "report" if name in trial.report and name in record.dense.report else "search"
        if record.metrics[name].unit == "fraction":
            figure = signed_points(_gain(record, trial, name, split)).removesuffix(" points")
            found.append((figure, f"points of {phrase(name)}, {split} split"))
        elif record.metrics[name].unit == "nats":
            found.append((amount(_loss(record, trial, name, split), "nats"), f"of {phrase(name)}, {split} split"))
        else:
            found.append((f"{percent_of_dense(record, trial, name, split):.0f} %", f"of the dense {phrase(name)}"))
    found.append((str(len(record.trials)), "trials"))
    return "".join(f"<div><b>{escape(figure)}</b><span>{escape(text)}</span></div>" for figure, text in found)


def nothing_found(record: StudyRecord) -> str:
    """Why the front holds no policy, and what to do; empty where it holds one."""
    if policy_files(record):
        return ""
    tried = [trial for trial in record.trials if trial.number != record.dense.number]
    failed = sum(trial.state == "failed" for trial in tried)
    broken = Counter(name for trial in tried for name, excess in trial.violations.items() if excess > 0)
    reasons = [f"{failed} of {len(tried)} trials failed"] if failed else []
    bounds = {name: escape(f"{name} {record.constraints.get(name, '')}") for name in broken}
    reasons += [f"{count} broke <code>{bounds[name]}</code>" for name, count in broken.most_common()]
    dominated = sum(trial.feasible for trial in tried)
    reasons += [f"{dominated} kept every constraint but are no better than dense"] if dominated else []
    why = "; ".join(reasons) if reasons else "no trial besides the dense baseline has finished"
    if failed > len(tried) / 2:
        advice = "mend what made the trials fail (listed under “How it was measured”) and resume the study"
    elif broken:
        advice = "loosen the constraint, or offer gentler choices such as <code>{token_ratio: [0.75]}</code>"
    else:
        advice = "give the search more trials, or offer choices in more layers"
    return f'<p class="note"><b>The front holds no policy besides dense</b>: {why}. What helps: {advice}.</p>'


def table_section(record: StudyRecord) -> str:
    """One row a front policy, dense first."""
    files = policy_files(record)
    columns = [column for name in record.metrics if _worth_a_column(record, name) for column in _columns(record, name)]
    head = "".join(
        f"<th>{escape(phrase(name))}<small>{escape(_column_note(record, name, split))}</small></th>"
        for name, split in columns
    )
    rows = []
    for trial in [record.dense, *(record.trial(number) for number in files)]:
        file = files.get(trial.number)
        name = f'<a href="policies/{file}">{file}</a>' if file else "dense"
        cells = "".join(f"<td>{_figure(record, trial, metric, split)}</td>" for metric, split in columns)
        note = f"trial {trial.number}{_tie(record, trial)}"
        rows.append(f'<tr id="trial-{trial.number}"><th>{name}<small>{note}</small></th>{cells}</tr>')
    return (
        f'<div class="scroll"><table><thead><tr><th>policy</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def reference_text(record: StudyRecord) -> str:
    """The reference point, as it is always printed beside a hypervolume."""
    parts = [f"{phrase(name)} {amount(value, record.metrics[name].unit)}" for name, value in record.reference.items()]
    return escape(", ".join(parts))


def measured_section(record: StudyRecord) -> str:
    """What every figure means, on how many examples, on which machine, and what went wrong."""
    metrics = {}
    for name, metric in record.metrics.items():
        facts = [f"Unit {metric.unit}", metric.direction, sample_counts(record, name)]
        metrics[name] = f"{metric.text.rstrip('.')}. {', '.join(filter(None, facts))}."
    sections: list[tuple[str, Mapping[str, Any]]] = [
        ("Metrics", metrics),
        ("Constraints", dict(record.constraints) or {"none": "every trial that finished may be on the front"}),
        ("Trials", _trial_counts(record)),
        ("Run", {key.replace("_", " "): f"{value:.4g}" for key, value in record.summary.items()}),
        ("Model and machine", {"model": record.model_id, "layers": record.num_layers, **_flat(record.environment)}),
    ]
    return "".join(f"<h3>{title}</h3>{_definitions(entries)}" for title, entries in sections if entries)


def sample_counts(record: StudyRecord, name: str) -> str:
    """How many examples or repeats stand behind a metric, and for costs the prompt."""
    if record.metrics[name].unit not in EXAMPLE_UNITS:
        entry = record.dense.search.get(name)
        repeats = f"{entry.n} repeats " if entry and entry.n > 1 else ""
        prompt = entry.detail.get("prompt") if entry else None
        return f"{repeats}on {prompt}" if prompt else repeats.strip()
    splits = (("search", record.dense.search), ("report", record.dense.report))
    return ", ".join(f"{split} split n = {one[name].n}" for split, one in splits if name in one)


def _gain(record: StudyRecord, trial: TrialResult, name: str, split: Split) -> float:
    ours, dense = getattr(trial, split).get(name), getattr(record.dense, split).get(name)
    return ours.value - dense.value if ours and dense else math.nan


def _loss(record: StudyRecord, trial: TrialResult, name: str, split: Split) -> float:
    """How much worse than dense a policy is."""
    gain = _gain(record, trial, name, split)
    return gain if record.metrics[name].direction == "minimize" else -gain


def _worth_a_column(record: StudyRecord, name: str) -> bool:
    """Objectives always; other figures where some policy changes them."""
    measured = [record.trial(number).search.get(name) for number in record.front]
    values = {entry.value for entry in measured if entry}
    return name in record.objectives or len(values) > 1


def _columns(record: StudyRecord, name: str) -> list[tuple[str, Split]]:
    again = record.metrics[name].unit in EXAMPLE_UNITS or name in record.dense.report
    return [(name, "search"), (name, "report")] if again else [(name, "search")]


def _column_note(record: StudyRecord, name: str, split: Split) -> str:
    unit = record.metrics[name].unit
    if unit in EXAMPLE_UNITS:
        entry = getattr(record.dense, split).get(name)
        return f"{split} split" + (f", n {entry.n}" if entry else "")
    if unit == "ms":
        return "of dense, timed again (IQR)" if split == "report" else "of dense (IQR)"
    return "of dense"


def _figure(record: StudyRecord, trial: TrialResult, name: str, split: Split) -> str:
    """One cell: what decides, and beneath it the absolute figure and its spread."""
    entry: Measurement | None = getattr(trial, split).get(name)
    if entry is None:
        return f"<em>{'not confirmed' if split == 'report' else 'not measured'}</em>"
    unit = record.metrics[name].unit
    predicted = isinstance(entry, ModelledTime) and entry.is_predicted
    if unit in EXAMPLE_UNITS:
        main = _with_error(record, name, entry)
        gain = _gain(record, trial, name, split)
        plain = unit == "nats" or trial is record.dense or not math.isfinite(gain)
        note = "" if plain else signed_points(gain)
    else:
        share = percent_of_dense(record, trial, name, split)
        main = f"{share:.1f} %{_of_time(entry)}" if math.isfinite(share) else "not a number"
        spread = "" if entry.iqr is None else f" ({amount(entry.iqr, unit).removesuffix(f' {unit}')})"
        note = "predicted" if predicted else amount(entry.value, unit) + spread
    return f"{escape(main)}<small>{escape(note)}</small>"


def _of_time(entry: Measurement) -> str:
    """The standard error of a time, in points of dense; empty where none is known."""
    if isinstance(entry, ModelledTime):
        return f" ± {100 * entry.estimate.error:.1f}"
    return f" ± {100 * entry.stderr / entry.dense:.1f}" if entry.stderr is not None and entry.dense else ""


def _with_error(record: StudyRecord, name: str, entry: Measurement) -> str:
    return with_error(entry.value, entry.stderr, record.metrics[name].unit)


def _tie(record: StudyRecord, trial: TrialResult) -> str:
    """What a policy of the table is tied with."""
    other = record.assessment.ties.get(trial.number)
    if other is None:
        return ""
    return f", tied with {'dense' if other == record.dense.number else f'trial {other}'}"


def _trial_counts(record: StudyRecord) -> dict[str, str]:
    states = Counter(trial.state for trial in record.trials)
    entries: dict[str, str] = {state: str(count) for state, count in states.items()}
    complete = [trial for trial in record.trials if trial.state == "complete"]
    shared = sum(trial.duplicate_of is not None for trial in record.trials)
    entries["beyond a constraint"] = str(sum(trial.breaks_a_bound for trial in complete))
    entries["on few examples only"] = str(sum(bool(trial.estimates) for trial in complete))
    entries["duplicates, measured once"] = str(shared)
    reasons: dict[str, list[int]] = defaultdict(list)
    for trial in record.trials:
        if trial.state == "failed":
            reasons[trial.failure or "no reason recorded"].append(trial.number)
    for reason, numbers in reasons.items():
        entries[f"failed: {reason}"] = "trial " + ", ".join(map(str, numbers))
    return entries


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
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


def _definitions(entries: Mapping[str, Any]) -> str:
    items = (f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in entries.items())
    return f"<dl>{''.join(items)}</dl>"
