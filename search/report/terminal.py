"""What `run`, `report` and `eval` print on standard output, as tables or JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.table import Table

from ...evaluators.base import Measurement, Split
from ..analysis.assessment import selection_bias, was_measured
from ..analysis.baseline_comparison import quality_metric
from ..analysis.forecast import AHEAD
from ..analysis.study_record import RecoveryOutcome, StudyRecord, all_files, policy_files
from ..analysis.transfer import accuracy_by_task, searched_accuracy
from ..space.units import EXAMPLE_UNITS, amount, phrase, unit_of, with_error
from ..trial.modelled_time import ModelledTime
from ..trial.pareto import objective_value
from ..trial.trial_result import TrialResult
from .console import Output
from .recovery_rows import columns, recovery_rows
from .sentences import assessment_lines, gap_line, recovery_line, selection_bias_line, share_text, transfer_line
from .time_sentences import time_data, time_lines


def summary_data(record: StudyRecord, folder: Path) -> dict[str, Any]:
    """The result of a search as plain data, for JSON."""
    files = all_files(record)
    return {
        "study": record.name,
        "folder": str(folder),
        "model": record.model_id,
        "front": [row(record, record.trial(number), files.get(number)) for number in record.front],
        "in_gaps": [row(record, record.trial(number), files[number]) for number in record.in_gaps],
        "hypervolume": record.hypervolume[-1] if record.recovery is None else record.recovery.hypervolume[1],
        "reference": dict(record.reference),
        "summary": dict(record.summary),
        "ended": record.ended,
        "verdict": assessment_data(record),
        "transfer": asdict(record.assessment.transfer) if record.assessment.transfer else None,
        "times": time_data(record),
        **({} if record.recovery is None else {"recovery": recovery_data(record, record.recovery)}),
    }


def recovery_data(record: StudyRecord, found: RecoveryOutcome) -> dict[str, Any]:
    """What trainings of the best policies achieved as plain data."""
    return {
        "settings": dict(found.settings),
        "policies": [row.data() for row in recovery_rows(record)],
        "ranks": asdict(found.ranks) if found.ranks else None,
        "report_ranks": asdict(found.report_ranks) if found.report_ranks else None,
        "hypervolume": found.hypervolume,
        "report_hypervolume": found.report_hypervolume,
    }


def assessment_data(record: StudyRecord) -> dict[str, Any]:
    """The assessment as plain data; an interval that is unknown is null."""
    assessment = record.assessment
    return {
        "rules": [
            {"trial": number, "rule": record.searched.trial(number).baseline} for number in assessment.best_baselines
        ],
        "gain": asdict(assessment.gain) if assessment.gain else None,
        "confirmed_gain": asdict(assessment.confirmed_gain) if assessment.confirmed_gain else None,
        "outlook": {"trials": AHEAD, **asdict(assessment.forecast)} if assessment.forecast else None,
        "tied": [{"trial": number, "with": other} for number, other in assessment.ties.items()],
        "mean_gap": selection_bias(record),
        "by_rule": [asdict(result) for result in assessment.baseline_results],
        "random": random_data(record),
        "divergence_ranks_accuracy": asdict(assessment.agreement) if assessment.agreement else None,
    }


def random_data(record: StudyRecord) -> dict[str, Any] | None:
    """The front beside random choices of image tokens as plain data; null where none was measured."""
    found = record.assessment.random
    if found is None:
        return None
    return {"as_well": found.as_well, "gains": {number: asdict(gain) for number, gain in found.gains.items()}}


def row(record: StudyRecord, trial: TrialResult, file: str | None) -> dict[str, Any]:
    """The objectives of one trial as plain data; each `share` is relative to dense."""
    found: dict[str, Any] = {"trial": trial.number, "policy": f"policies/{file}" if file else None}
    for name in record.objectives:
        dense, entry = record.dense.search[name], trial.search[name]
        value = objective_value(name, entry, dense)
        found[name] = {"value": value, "dense": dense.value, "share": value / dense.value if dense.value else None}
        if isinstance(entry, ModelledTime):
            found[name] |= {"share_stderr": entry.estimate.error, "predicted": entry.is_predicted}
        if name in trial.report:
            confirmed, dense_report = trial.report[name], record.dense.report.get(name)
            found[name]["report"] = confirmed.value
            found[name]["report_stderr"] = confirmed.stderr
            found[name]["report_dense"] = dense_report.value if dense_report else None
            found[name]["report_share"] = confirmed.value / confirmed.dense if confirmed.dense else None
    return found


def front_table(
    record: StudyRecord,
    rows: Mapping[str, dict[str, Any]],
    in_gaps: Mapping[str, dict[str, Any]] = MappingProxyType({}),
) -> Table:
    """A table of policies beneath the dense model.

    Args:
        record: The study.
        rows: Objectives by the policy's name, as `row` gives them.
        in_gaps: The same of policies in wide gaps of the front, which stand beneath it.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("policy", no_wrap=True)
    for heading in headings(record):
        table.add_column(heading, justify="right")
    table.add_row("dense", *cells(record, row(record, record.dense, None), absolute=True), end_section=True)
    for name, entry in rows.items():
        table.add_row(name, *cells(record, entry))
    table.add_section()
    for name, entry in in_gaps.items():
        table.add_row(name, *cells(record, entry))
    return table


def print_summary(record: StudyRecord, folder: Path, console: Output | None = None) -> None:
    """Print the front as a table, the assessment, what the search cost, and where its files are.

    Args:
        record: The study.
        folder: Its folder.
        console: Where to print; None for standard output.
    """
    console = console or Output()
    data = summary_data(record, folder)
    rows, in_gaps = (
        {Path(entry["policy"]).stem: entry for entry in data[key] if entry["policy"]} for key in ("front", "in_gaps")
    )
    console.print_table(front_table(record, rows, in_gaps))
    if in_gaps:
        console.print(gap_line(record), highlight=False, markup=False)
    if not rows:
        console.print("no policy was better than dense within the constraints: loosen them, or raise search.trials")
    reference = ", ".join(f"{name} {amount(value, unit_of(name))}" for name, value in record.reference.items())
    if any(entry.floor for entry in record.dense.search.values()):
        reference += "; accuracy is measured from chance level"
    console.print(f"hypervolume {data['hypervolume']:.4f} (reference point: {reference})", highlight=False)
    further = (recovery_line(record), tie_line(record), selection_bias_line(record), *time_lines(record))
    for line in (*assessment_lines(record), *further):
        if line:
            console.print(line, highlight=False, markup=False)
    if record.recovery is not None:
        console.print_table(trained_table(record))
    if record.assessment.transfer is not None:
        console.print_table(transfer_table(record))
        console.print(transfer_line(record), highlight=False, markup=False)
    console.print(cost_line(record), highlight=False)
    if reuse_line(record):
        console.print(reuse_line(record), highlight=False)
    where = f"report {folder / 'report.html'}, policies in {folder / 'policies'}"
    console.print(where, highlight=False, soft_wrap=True)


def trained_table(record: StudyRecord) -> Table:
    """A table of the policies that were trained, before and after."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trained", no_wrap=True)
    for name, split in columns(record):
        table.add_column(f"{name}, {split} split", justify="right")
    for heading in ("rank", "minutes"):
        table.add_column(heading, justify="right")
    for row in recovery_rows(record):
        own = Path(row.file).stem if row.file else f"trial {row.trial}"
        changes = [" → ".join("–" if value is None else amount(value, unit_of(one.metric))
                              for value in (one.before, one.after)) for one in row.changes]  # fmt: skip
        ranks = f"{row.ranks[0]} → {row.ranks[1]}" if row.ranks else f"failed: {row.failure}"
        table.add_row(own, *changes, ranks, f"{row.minutes:.1f}")
    return table


def transfer_table(record: StudyRecord) -> Table:
    """A table of the share of dense that each policy keeps on the searched tasks and on each transfer task."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("kept, % of dense", no_wrap=True)
    found, dense = record.assessment.transfer, accuracy_by_task(record.dense.transfer)
    for heading in ("searched tasks", *dense):
        table.add_column(heading, justify="right")
    values = [searched_accuracy(record.dense).value, *(task.value for task in dense.values())]
    table.add_row(
        "dense, accuracy", *(amount(value, "fraction").removesuffix(" %") for value in values), end_section=True
    )
    for number, file in policy_files(record).items():
        kept = found.kept.get(number) if found is not None else None
        shares = [] if found is None or kept is None else [found.searched[number], *kept.values()]
        cells = ["dense at chance level" if share is None else share_text(share, "") for share in shares]
        table.add_row(Path(file).stem, *(cells or ["not measured"] * len(values)))
    return table


def tie_line(record: StudyRecord) -> str:
    """Which policies of the table are tied; empty where none are."""
    names = {number: Path(file).stem for number, file in policy_files(record).items()} | {record.dense.number: "dense"}
    pairs = [f"{names[number]} with {names[other]}" for number, other in record.assessment.ties.items()]
    return f"Tied in {phrase(quality_metric(record) or '')} by a paired test: {', '.join(pairs)}." if pairs else ""


def headings(record: StudyRecord) -> list[str]:
    """The columns of the table: one per objective, and a second one where it was confirmed."""
    found = []
    for name in record.objectives:
        found.append(name)
        if name in record.dense.report:
            found.append("timed again" if unit_of(name) == "ms" else "on report split")
    return found


def cells(record: StudyRecord, entry: dict[str, Any], absolute: bool = False) -> list[str]:
    """One line of the table: accuracy and divergence in their own unit, costs as shares of dense unless absolute."""
    line = []
    for name in record.objectives:
        objective, unit = entry[name], unit_of(name)
        in_own_unit = absolute or unit in EXAMPLE_UNITS or objective["share"] is None
        text = amount(objective["value"], unit) if in_own_unit else f"{objective['share']:.0%}"
        line.append(f"{text} (predicted)" if objective.get("predicted") else text)
        if name in record.dense.report:
            line.append(confirmed_cell(objective, unit, absolute) if "report" in objective else "not confirmed")
    return line


def confirmed_cell(objective: Mapping[str, Any], unit: str, absolute: bool) -> str:
    """An objective on the report split; a time that was measured again as a share of dense unless absolute."""
    value, stderr, share = objective["report"], objective["report_stderr"], objective["report_share"]
    if unit != "ms" or absolute or share is None:
        return with_error(value, None if absolute and unit == "ms" else stderr, unit)
    return f"{share:.0%}" + ("" if stderr is None else f" ± {100 * share * stderr / value:.1f}")


def cost_line(record: StudyRecord) -> str:
    """How many trials were measured, the time of each against its forward passes, and what early stopping saved."""
    cost = record.summary
    if not cost:
        return "no trial was timed"
    duplicates = sum(trial.duplicate_of is not None for trial in record.trials)
    failed = sum(trial.state == "failed" for trial in record.trials)
    measured = sum(was_measured(trial) and trial.state == "complete" and not trial.is_probe for trial in record.trials)
    partial = sum(bool(trial.estimates) and trial.duplicate_of is None for trial in record.trials)
    spared = cost.get("examples_spared", 0)
    examples = cost.get("examples", 0) + spared
    probes = f" after {cost['probes']} probes" if "probes" in cost else ""
    saved = f"; early stopping saved {spared:,} of {examples:,} answers ({partial} trials)"
    return (
        f"{measured} trials measured{probes}, {duplicates} duplicates, {failed} failed; "
        f"{cost['seconds_per_trial']:.2f} s per trial, of which {cost['forward_seconds_per_trial']:.2f} s are forward "
        f"passes (overhead {cost['overhead']:.0%}){saved if partial else ''}"
    )


def reuse_line(record: StudyRecord) -> str:
    """How many layer executions prefix reuse saved; empty where no given answers were scored."""
    requested, run = (record.summary.get(f"layers_{key}", 0) for key in ("asked", "run"))
    if not requested:
        return ""
    share = f"prefix reuse: {1 - run / requested:.0%} of the layer executions that score given answers were saved"
    return f"{share}, {requested / run:.2f} times fewer"


def print_evaluation(
    found: Mapping[str, Measurement], dense: Mapping[str, Measurement], split: Split, as_json: bool
) -> None:
    """Print the measurements of a policy beside those of the dense model, as a table or as JSON."""
    dense_values = {
        name: entry.dense if entry.dense is not None else dense[name].value for name, entry in found.items()
    }
    if as_json:
        data = {
            name: {"value": entry.value, "dense": dense_values[name], "stderr": entry.stderr, "n": entry.n}
            | {key: entry.detail[key] for key in ("ratio", "warnings") if key in entry.detail}
            for name, entry in found.items()
        }
        print(json.dumps({"split": split, "measured": data}))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("metric", "policy", "dense", "of dense"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for name, entry in found.items():
        value, unit = dense_values[name], unit_of(name)
        share = f"{entry.value / value:.1%}" if value else ""
        if "ratio" in entry.detail:
            share += " ({low:.1%} to {high:.1%})".format(**entry.detail["ratio"])
        table.add_row(name, with_error(entry.value, entry.stderr, unit), amount(value, unit), share)
    console = Output()
    console.print_table(table)
    for name, entry in found.items():
        for text in entry.detail.get("warnings", {}).values():
            console.print(f"{name}: {text}", highlight=False)
    on_examples = [name for name in found if unit_of(name) in EXAMPLE_UNITS]
    if on_examples:
        console.print(f"{' and '.join(on_examples)} on the {split} split", highlight=False)
