"""Words and numbers of a comparison, which the page and the terminal share."""

import math
from collections.abc import Sequence

from ....evaluators.base import Measurement, Split
from ...analysis.compare.fronts import FrontVolume, coordinate, is_cost, measured_on
from ...analysis.compare.pairs import PairedTest
from ...analysis.compare.studies import ComparedStudy
from ...analysis.paired_tests import SIGNIFICANCE
from ...space.units import amount, phrase, signed_points, with_error
from ...trial.trial_result import TrialResult
from .comparison import Comparison


def axis_unit(comparison: Comparison, name: str) -> str:
    """The unit of an axis: percent, nats, or percent of a dense model."""
    first = comparison.studies[0]
    if not is_cost(first, name):
        return {"fraction": "%"}.get(first.record.metrics[name].unit, first.record.metrics[name].unit)
    is_one_model = all(study.model == first.model for study in comparison.studies)
    return "% of dense" if is_one_model else f"% of the dense model of {first.name}"


def on_axis(comparison: Comparison, study: ComparedStudy, trial: TrialResult, name: str, split: Split) -> float:
    """A trial's place on an axis of a plane, in the unit of `axis_unit`."""
    first = comparison.studies[0]
    value = coordinate(first, study, trial, name, split)
    in_percent = is_cost(first, name) or first.record.metrics[name].unit == "fraction"
    return 100 * value if in_percent else value


def cell(comparison: Comparison, study: ComparedStudy, trial: TrialResult, name: str, split: Split) -> tuple[str, str]:
    """A measurement as text, and its absolute value in small print; dashes where it was not measured."""
    entry: Measurement | None = measured_on(trial, split).get(name) if split == "search" else trial.report.get(name)
    unit = study.record.metrics[name].unit
    if entry is None:
        return "–", ""
    if not is_cost(study, name):
        return with_error(entry.value, entry.stderr, unit), ""
    share = on_axis(comparison, study, trial, name, split)
    return (f"{share:.1f} %" if math.isfinite(share) else "not a number"), amount(entry.value, unit)


def has_report(comparison: Comparison, name: str) -> bool:
    """True for an axis that some study measured again on the report split."""
    return any(name in study.record.dense.report for study in comparison.studies)


def reference_text(comparison: Comparison) -> str:
    """The common reference point."""
    first, parts = comparison.studies[0], []
    for name, value in comparison.reference.items():
        unit = first.record.metrics[name].unit
        text = f"{100 * value:.0f} {axis_unit(comparison, name)}" if is_cost(first, name) else amount(value, unit)
        parts.append(f"{phrase(name)} {text}")
    return ", ".join(parts)


def front_notes(comparison: Comparison) -> list[str]:
    """What limits the comparison of fronts."""
    left_out = ", ".join(phrase(name) for name in comparison.left_out)
    notes = [f"Left out, as not all studies have it as an objective: {left_out}."] if left_out else []
    running = [study.name for study in comparison.studies if study.record.ended is None]
    return notes + [f"{name} has not ended, so its front may still change." for name in running]


def report_volume(volume: FrontVolume) -> str:
    """The hypervolume on the report split, and of how many policies where not all are confirmed."""
    if volume.report is None:
        return "not confirmed"
    part = "" if volume.confirmed == volume.policies else f" ({volume.confirmed} of {volume.policies})"
    return f"{volume.report:.4f}{part}"


def pair_sentence(comparison: Comparison, test: PairedTest) -> str:
    """The result of a paired test."""
    name = comparison.quality or ""
    unit = comparison.studies[0].record.metrics[name].unit
    one, other = (f"{study} (trial {comparison.chosen[study].number})" for study in (test.one, test.other))
    result = "differ" if test.p <= SIGNIFICANCE else "do not differ significantly"
    size = signed_points if unit == "fraction" else lambda value: f"{value:+.3g} {unit}"
    ends = [size(end) for end in (test.difference.low, test.difference.high) if end is not None]
    interval = f" (95 % interval {ends[0].removesuffix(' points')} to {ends[1]})" if ends else ""
    return (
        f"{one} and {other} {result} in {phrase(name)} on the {test.split} split: {size(test.difference.value)}"
        f"{interval}, p = {test.p:.3g}, n = {test.n}; {test.only_one} examples only the first answers better, "
        f"{test.only_other} only the second."
    )


def pair_notes(comparison: Comparison) -> list[str]:
    """What limits the tests."""
    notes = []
    if any(test.split == "search" for test in comparison.tests):
        notes.append("On the search split, results are biased in favour of policies that were selected there.")
    if len(comparison.tests) > 1:
        notes.append(f"The p-values are not adjusted for {len(comparison.tests)} tests.")
    return [*notes, *(f"Not tested: {line}." for line in [*comparison.not_chosen, *comparison.untested])]


def subset_sentence(tasks: Sequence[tuple[str, int]], split: Split) -> str:
    """How many examples came from each task."""
    parts = ", ".join(f"{count} from {name}" for name, count in tasks)
    return f"On the {split} split, {sum(count for _, count in tasks)} examples: {parts}."
