"""What `run`, `report` and `eval` print when they are done."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from ..evaluators.base import Measurement, Split
from .console import Output
from .front import objective_value
from .layermap import amount, unit_of
from .record import StudyRecord, TrialRecord
from .report_page import policy_files


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
    }


def row(record: StudyRecord, trial: TrialRecord, file: str | None) -> dict[str, Any]:
    """One policy of the front; `share` is of the dense model."""
    found: dict[str, Any] = {"trial": trial.number, "policy": f"policies/{file}" if file else None}
    for name in record.objectives:
        dense = record.dense.search[name]
        value = objective_value(name, trial.search[name], dense)
        found[name] = {"value": value, "dense": dense.value, "share": value / dense.value if dense.value else None}
        if name in trial.report:
            confirmed, beside = trial.report[name], record.dense.report.get(name)
            found[name]["report"] = confirmed.value
            found[name]["report_stderr"] = confirmed.stderr
            found[name]["report_dense"] = beside.value if beside else None
    return found


def print_summary(record: StudyRecord, folder: Path) -> None:
    """The front as a table, what it cost to find, and where everything is."""
    console = Output()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("policy")
    for name in record.objectives:
        table.add_column(name, justify="right")
        table.add_column("of dense", justify="right")
        if any(name in trial.report for trial in record.trials):
            table.add_column("on report split", justify="right")
    data = summary_data(record, folder)
    for entry in data["front"]:
        table.add_row(*cells(record, entry))
    console.print(table)
    reference = ", ".join(f"{name} {amount(value, unit_of(name))}" for name, value in record.reference.items())
    console.print(f"hypervolume {data['hypervolume']:.4f} (reference point: {reference})", highlight=False)
    console.print(cost_line(record), highlight=False)
    console.print(f"report {folder / 'report.html'}  policies {folder / 'policies'}/", highlight=False, soft_wrap=True)


def cells(record: StudyRecord, entry: dict[str, Any]) -> list[str]:
    """One line of the table."""
    line = [Path(entry["policy"]).stem if entry["policy"] else "dense"]
    for name in record.objectives:
        figure = entry[name]
        share = figure["share"]
        line += [amount(figure["value"], unit_of(name)), "" if share is None else f"{share:.0%}"]
        if any(name in trial.report for trial in record.trials):
            stderr = f" ± {figure['report_stderr']:.3f}" if figure.get("report_stderr") is not None else ""
            line.append(f"{figure['report']:.3f}{stderr}" if "report" in figure else "not confirmed")
    return line


def cost_line(record: StudyRecord) -> str:
    """Time of a trial against the time of its bare forward passes."""
    cost = record.summary
    if not cost:
        return "no trial was timed"
    shared = sum(trial.shared_from is not None for trial in record.trials)
    failed = sum(trial.state == "failed" for trial in record.trials)
    return (
        f"{cost['trials']:.0f} trials measured, {shared} duplicates answered from them, {failed} failed; "
        f"{cost['seconds_per_trial']:.2f} s a trial, of which {cost['forward_seconds_per_trial']:.2f} s bare forward "
        f"passes (everything else adds {cost['overhead']:.0%})"
    )


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
        stderr = f" ± {entry.stderr:.3f}" if entry.stderr is not None else ""
        share = f"{entry.value / beside:.1%}" if beside else ""
        table.add_row(name, amount(entry.value, unit_of(name)) + stderr, amount(beside, unit_of(name)), share)
    console = Output()
    console.print(table)
    console.print(f"accuracy on the {split} split", highlight=False)
