"""What `run`, `report` and `eval` print when they are done."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from ...evaluators.base import Measurement, Split
from ..analysis.assessment import counts, selection_bias
from ..analysis.baseline_comparison import quality_metric
from ..analysis.forecast import AHEAD
from ..analysis.study_record import StudyRecord, policy_files
from ..space.units import EXAMPLE_UNITS, amount, phrase, unit_of, with_error
from ..trial.modelled_time import ModelledTime
from ..trial.pareto import objective_value
from ..trial.trial_result import TrialResult
from .console import Output
from .sentences import assessment_lines, selection_bias_line
from .time_sentences import time_data, time_lines


def summary_data(record: StudyRecord, folder: Path) -> dict[str, Any]:
    """The result of a search as plain data."""
    files = policy_files(record)
    return {
        "study": record.name,
        "folder": str(folder),
        "model": record.model_id,
        "front": [row(record, record.trial(number), files.get(number)) for number in record.front],
        "hypervolume": record.hypervolume[-1],
        "reference": dict(record.reference),
        "summary": dict(record.summary),
        "ended": record.ended,
        "assessment": assessment_data(record),
        "times": time_data(record),
    }


def assessment_data(record: StudyRecord) -> dict[str, Any]:
    """What the search was worth; an interval that is not known is null."""
    assessment = record.assessment
    return {
        "rules": [{"trial": number, "rule": record.trial(number).baseline} for number in assessment.rules],
        "gain": asdict(assessment.gain) if assessment.gain else None,
        "confirmed_gain": asdict(assessment.confirmed_gain) if assessment.confirmed_gain else None,
        "forecast": {"trials": AHEAD, **asdict(assessment.forecast)} if assessment.forecast else None,
        "tied": [{"trial": number, "with": other} for number, other in assessment.ties.items()],
        "mean_gap": selection_bias(record),
        "by_rule": [asdict(result) for result in assessment.by_rule],
        "divergence_ranks_accuracy": asdict(assessment.agreement) if assessment.agreement else None,
    }


def row(record: StudyRecord, trial: TrialResult, file: str | None) -> dict[str, Any]:
    """One policy of the front; `share` is of the dense model."""
    found: dict[str, Any] = {"trial": trial.number, "policy": f"policies/{file}" if file else None}
    for name in record.objectives:
        dense = record.dense.search[name]
        value = objective_value(name, trial.search[name], dense)
        found[name] = {"value": value, "dense": dense.value, "share": value / dense.value if dense.value else None}
        searched = trial.search[name]
        if isinstance(searched, ModelledTime):
            found[name] |= {"share_stderr": searched.estimate.error, "predicted": searched.is_predicted}
        if name in trial.report:
            confirmed, beside = trial.report[name], record.dense.report.get(name)
            found[name]["report"] = confirmed.value
            found[name]["report_stderr"] = confirmed.stderr
            found[name]["report_dense"] = beside.value if beside else None
            found[name]["report_share"] = confirmed.value / confirmed.dense if confirmed.dense else None
    return found


def front_table(record: StudyRecord, rows: Mapping[str, dict[str, Any]]) -> Table:
    """Policies by what they are called, beneath the dense model."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("policy", no_wrap=True)
    for heading in headings(record):
        table.add_column(heading, justify="right")
    table.add_row("dense", *cells(record, row(record, record.dense, None), absolute=True), end_section=True)
    for name, entry in rows.items():
        table.add_row(name, *cells(record, entry))
    return table


def print_summary(record: StudyRecord, folder: Path) -> None:
    """The front as a table, what it cost to find, and where everything is."""
    console = Output()
    data = summary_data(record, folder)
    rows = {Path(entry["policy"]).stem: entry for entry in data["front"] if entry["policy"]}
    console.print(front_table(record, rows))
    if not rows:
        console.print("no policy was better than dense within the constraints: loosen them, or raise search.trials")
    reference = ", ".join(f"{name} {amount(value, unit_of(name))}" for name, value in record.reference.items())
    if any(entry.floor for entry in record.dense.search.values()):
        reference += "; accuracy counts from guessing"
    console.print(f"hypervolume {data['hypervolume']:.4f} (reference point: {reference})", highlight=False)
    for line in (*assessment_lines(record), tie_line(record), selection_bias_line(record), *time_lines(record)):
        if line:
            console.print(line, highlight=False, markup=False)
    console.print(cost_line(record), highlight=False)
    if reuse_line(record):
        console.print(reuse_line(record), highlight=False)
    where = f"report {folder / 'report.html'}, policies in {folder / 'policies'}"
    console.print(where, highlight=False, soft_wrap=True)


def tie_line(record: StudyRecord) -> str:
    """Which policies of the table are tied; empty where none is."""
    names = {number: Path(file).stem for number, file in policy_files(record).items()} | {record.dense.number: "dense"}
    pairs = [f"{names[number]} with {names[other]}" for number, other in record.assessment.ties.items()]
    return f"Tied in {phrase(quality_metric(record) or '')} by a paired test: {', '.join(pairs)}." if pairs else ""


def headings(record: StudyRecord) -> list[str]:
    """One column for each objective, two for what was confirmed on the report split."""
    found = []
    for name in record.objectives:
        found.append(name)
        if name in record.dense.report:
            found.append("timed again" if unit_of(name) == "ms" else "on report split")
    return found


def cells(record: StudyRecord, entry: dict[str, Any], absolute: bool = False) -> list[str]:
    """One line of the table: figures of examples as they are, costs as shares of dense, or absolute."""
    line = []
    for name in record.objectives:
        figure = entry[name]
        plain = absolute or unit_of(name) in EXAMPLE_UNITS or figure["share"] is None
        line.append(amount(figure["value"], unit_of(name)) if plain else f"{figure['share']:.0%}")
        if name in record.dense.report:
            known = "report" in figure
            line.append(confirmed_cell(figure, unit_of(name), absolute) if known else "not confirmed")
    return line


def confirmed_cell(figure: Mapping[str, Any], unit: str, absolute: bool) -> str:
    """A figure on the report split, or a time that was measured again; times as shares of dense."""
    value, stderr, share = figure["report"], figure["report_stderr"], figure["report_share"]
    if unit != "ms" or absolute or share is None:
        return with_error(value, None if absolute and unit == "ms" else stderr, unit)
    return f"{share:.0%}" + ("" if stderr is None else f" ± {100 * share * stderr / value:.1f}")


def cost_line(record: StudyRecord) -> str:
    """Time of a trial against the time of its bare forward passes."""
    cost = record.summary
    if not cost:
        return "no trial was timed"
    shared = sum(trial.duplicate_of is not None for trial in record.trials)
    failed = sum(trial.state == "failed" for trial in record.trials)
    measured = sum(counts(trial) and trial.state == "complete" and not trial.is_probe for trial in record.trials)
    few = sum(bool(trial.estimates) and trial.duplicate_of is None for trial in record.trials)
    every = cost.get("examples", 0) + cost.get("examples_spared", 0)
    probes = f" after {cost['probes']} probes" if "probes" in cost else ""
    race = f"; {few} that answered few examples spared {cost['examples_spared']} of {every} answers" if few else ""
    return (
        f"{measured} trials measured{probes}, {shared} duplicates answered from them, {failed} failed; "
        f"{cost['seconds_per_trial']:.2f} s a trial, of which {cost['forward_seconds_per_trial']:.2f} s bare forward "
        f"passes (everything else adds {cost['overhead']:.0%}){race}"
    )


def reuse_line(record: StudyRecord) -> str:
    """How much was not computed again for policies that begin alike; empty where no given answers were scored."""
    asked, run = (record.summary.get(f"layers_{key}", 0) for key in ("asked", "run"))
    if not asked:
        return ""
    share = f"prefix reuse: {1 - run / asked:.0%} of the layer executions that score given answers were saved"
    return f"{share}, {asked / run:.2f} times fewer"


def print_evaluation(
    found: Mapping[str, Measurement], dense: Mapping[str, Measurement], split: Split, as_json: bool
) -> None:
    """A policy's figures beside the dense model's."""
    besides = {name: entry.dense if entry.dense is not None else dense[name].value for name, entry in found.items()}
    if as_json:
        data = {
            name: {"value": entry.value, "dense": besides[name], "stderr": entry.stderr, "n": entry.n}
            for name, entry in found.items()
        }
        print(json.dumps({"split": split, "measured": data}))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("metric", "policy", "dense", "of dense"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name, entry in found.items():
        beside = besides[name]
        unit, share = unit_of(name), f"{entry.value / beside:.1%}" if beside else ""
        table.add_row(name, with_error(entry.value, entry.stderr, unit), amount(beside, unit), share)
    console = Output()
    console.print(table)
    on_examples = [name for name in found if unit_of(name) in EXAMPLE_UNITS]
    if on_examples:
        console.print(f"{' and '.join(on_examples)} on the {split} split", highlight=False)
