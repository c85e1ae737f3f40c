"""The part of a report that sets the search beside the published rules it began with."""

import re
from html import escape

from ..analysis.baseline_comparison import as_told, confirmed_hypervolume, quality_metric
from ..analysis.study_record import BaselineComparison, BaselineResult, StudyRecord, percent_of_dense, policy_files
from ..baselines.registry import SOURCES
from ..space.units import amount, phrase, signed_points
from ..study.expected_results import Known
from ..trial.trial_result import Estimate

ARXIV = re.compile(r"arXiv:([0-9.]+[0-9])")
LEAD = (
    "Each rule at its best settings, and the best policy of the front that costs no more. A gain is told with its 95 % "
    "interval, from the same examples for both; on the search split it flatters the front, which was chosen there, on "
    "the report split, told where both are confirmed, it does not. A rule that answered only some of the examples "
    "stands where it is expected to on all. A hypervolume is that of the rule by itself."
)


def rules_section(record: StudyRecord) -> str:
    """The whole section; empty where the search began with no rules."""
    if not record.assessment.by_rule:
        return ""
    name = quality_metric(record)
    costs = [one for one in record.objectives if one != name]
    head = [("rule", ""), ("hypervolume", "search split"), ("setting", "")]
    head += [(phrase(cost), "of dense") for cost in costs]
    if name is not None:
        head += [(phrase(name), "search split"), ("the search", "at no more cost"), ("gain", "search split")]
    rows = [search_row(record, len(head))]
    for result in record.assessment.by_rule:
        rows += rule_rows(record, result, costs, name, len(head))
    titles = "".join(f"<th>{escape(title)}<small>{note}</small></th>" for title, note in head)
    return (
        f"<section><h2>What the search gained over published rules</h2><p>{LEAD}</p>"
        f'<div class="scroll"><table class="rules"><thead><tr>{titles}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def search_row(record: StudyRecord, width: int) -> str:
    """The search's own front, for its hypervolume."""
    front = [record.trial(number) for number in policy_files(record)]
    confirmed = sum(bool(trial.report) for trial in front)
    figures = volumes(record.hypervolume[-1], confirmed_hypervolume(record, front), confirmed, len(front))
    head = f"<th>the search<small>policies: {len(front)}</small></th>"
    return f"<tr>{head}<td>{figures}</td>{'<td></td>' * (width - 2)}</tr>"


def rule_rows(record: StudyRecord, result: BaselineResult, costs: list[str], name: str | None, width: int) -> list[str]:
    """One row a policy that is shown; one that says so where a rule has none."""
    source = escape(SOURCES.get(result.name, ""))
    linked = ARXIV.sub(r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>', source)
    head = f"<th>{escape(result.name)}<small>{linked}</small><small>settings: {result.settings}</small></th>"
    if not result.beside:
        note = "none that keeps the constraints is better than dense"
        return [f'<tr>{head}<td>–</td><td colspan="{width - 2}"><em>{note}</em></td></tr>']
    head += f"<td>{volumes(result.hypervolume, result.report, result.confirmed, len(result.front))}</td>"
    rows = []
    for one in result.beside:
        rows.append(f"<tr>{head}{cells(record, result.name, one, costs, name)}</tr>")
        head = "<th></th><td></td>"
    return rows


def volumes(search: float, report: float | None, confirmed: int, count: int) -> str:
    """A hypervolume on both splits; of how many policies, where they are not all confirmed."""
    part = "" if confirmed == count else f" ({confirmed} of {count})"
    return f"{search:.4f}<small>{'' if report is None else f'report {report:.4f}{part}'}</small>"


def cells(record: StudyRecord, rule: str, one: BaselineComparison, costs: list[str], name: str | None) -> str:
    """A policy of a rule, what it costs, and what the front has instead."""
    trial = as_told(record, record.trial(one.trial), Known.of(record.trials))
    found = [f"{escape(trial.rules[rule])}<small>trial {trial.number}</small>"]
    found += [f"{percent_of_dense(record, trial, cost):.0f} %" for cost in costs]
    if name is None:
        return "".join(f"<td>{cell}</td>" for cell in found)
    unit, entry = record.metrics[name].unit, trial.search[name]
    part = f"from {entry.n} of {entry.detail['total']}" if entry.is_partial else ""
    found.append(f"{amount(entry.value, unit)}<small>{part}</small>")
    if one.best == one.trial:
        found += ["itself" if one.best in record.front else "nothing better", ""]
    else:
        best = record.trial(one.best)
        notes = [f"{percent_of_dense(record, best, cost):.0f} %" for cost in costs[:1]] + [*best.rules]
        found.append(f'<a href="#trial-{best.number}">trial {best.number}</a><small>{escape(", ".join(notes))}</small>')
        found.append(gain(one.search, unit) + (f"report {gain(one.report, unit)}" if one.report else ""))
    return "".join(f"<td>{cell}</td>" for cell in found)


def gain(estimate: Estimate | None, unit: str) -> str:
    """A gain with its interval."""
    if estimate is None:
        return ""

    def told(value: float) -> str:
        return signed_points(value).removesuffix(" points") if unit == "fraction" else f"{value:+.3g} {unit}"

    ends = " to ".join(told(end) for end in (estimate.low, estimate.high) if end is not None)
    return f"{signed_points(estimate.value) if unit == 'fraction' else told(estimate.value)}<small>{ends}</small>"
