"""Words and numbers of a comparison, which the page and the terminal share."""

import math
from collections.abc import Sequence
from pathlib import Path

from ....evaluators.base import Measurement, Split
from ...analysis.compare.equal_cost import EqualCost
from ...analysis.compare.fronts import FrontVolume, coordinate, is_cost, measured_on
from ...analysis.compare.pairs import PairedTest
from ...analysis.compare.studies import ComparedStudy
from ...space.units import amount, phrase, signed_points, with_error
from ...trial.paired_tests import SIGNIFICANCE
from ...trial.trial_result import TrialResult
from .comparison import Comparison

# By unit, what limits an axis that studies of several models share.
MODEL_NOTES = {
    "ms": (
        "Each model was timed in the processes of its own study, in turns with its own dense model. Its times in ms "
        "are shares of that study's dense trial: a machine that was slower in one study makes its model look slower."
    ),
    "nats": "A loss per token depends on the tokenizer: it is comparable between models that share one.",
}


def axis_title(comparison: Comparison, name: str) -> str:
    """The name of an axis and its unit: percent, nats, percent of dense, or the unit of a cost of several models."""
    first = comparison.studies[0]
    unit = first.record.metrics[name].unit
    if not is_cost(first, name):
        return f"{phrase(name)}, {'%' if unit == 'fraction' else unit}"
    if not comparison.is_absolute:
        return f"{phrase(name)}, % of dense"
    return phrase(name) if unit == "flops" else f"{phrase(name)}, {unit}"


def on_axis(comparison: Comparison, study: ComparedStudy, trial: TrialResult, name: str, split: Split) -> float:
    """A trial's place on an axis of a plane, in the unit of `axis_title`."""
    first = comparison.studies[0]
    value = coordinate(first, study, trial, name, split)
    if is_cost(first, name):
        return value * (first.record.dense.search[name].value if comparison.is_absolute else 100)
    return 100 * value if first.record.metrics[name].unit == "fraction" else value


def cell(comparison: Comparison, study: ComparedStudy, trial: TrialResult, name: str, split: Split) -> tuple[str, str]:
    """A measurement as text and small print; dashes where it was not measured.

    A cost is a share of dense with its absolute value, of several models the other way round.
    """
    entry: Measurement | None = measured_on(trial, split).get(name) if split == "search" else trial.report.get(name)
    unit = study.record.metrics[name].unit
    if entry is None:
        return "–", ""
    if not is_cost(study, name):
        return with_error(entry.value, entry.stderr, unit), ""
    share = coordinate(study, study, trial, name, split)
    text = f"{100 * share:.1f} %" if math.isfinite(share) else "not a number"
    if comparison.is_absolute:
        return amount(on_axis(comparison, study, trial, name, split), unit), f"{text} of dense"
    return text, amount(entry.value, unit)


def has_report(comparison: Comparison, name: str) -> bool:
    """True for an axis that some study measured again on the report split."""
    return any(name in study.record.dense.report for study in comparison.studies)


def reference_text(comparison: Comparison) -> str:
    """The common reference point."""
    first, parts = comparison.studies[0], []
    for name, value in comparison.reference.items():
        unit = first.record.metrics[name].unit
        if is_cost(first, name) and comparison.is_absolute:
            text = amount(value * first.record.dense.search[name].value, unit)
        else:
            text = f"{100 * value:.0f} % of dense" if is_cost(first, name) else amount(value, unit)
        parts.append(f"{phrase(name)} {text}")
    return ", ".join(parts)


def front_notes(comparison: Comparison) -> list[str]:
    """What limits the comparison of fronts."""
    left_out = ", ".join(phrase(name) for name in comparison.left_out)
    notes = [f"Left out, as not all studies have it as an objective: {left_out}."] if left_out else []
    notes += [f"Left out, as the studies measured something else: {line}." for line in comparison.unlike]
    if comparison.is_absolute:
        metrics = comparison.studies[0].record.metrics
        notes += [MODEL_NOTES[key] for key in dict.fromkeys(metrics[name].unit for name in comparison.axes)
                  if key in MODEL_NOTES]  # fmt: skip
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
    one, other = (f"{study} (trial {comparison.chosen[study].number})" for study in (test.one, test.other))
    return result_sentence(comparison, test, one, other)


def result_sentence(comparison: Comparison, test: PairedTest, one: str, other: str) -> str:
    """The result of a paired test of two policies, with what they are called."""
    name = comparison.quality or ""
    unit = comparison.studies[0].record.metrics[name].unit
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


def equal_cost_title(comparison: Comparison, found: EqualCost) -> str:
    """At which cost a smaller model and bigger ones are compared."""
    study, name = found.smaller, found.metric
    cost = on_axis(comparison, study, study.record.dense, name, "search")
    return f"At the {phrase(name)} of {study.name} without a policy, {amount(cost, study.record.metrics[name].unit)}"


def equal_cost_sentences(comparison: Comparison, found: EqualCost) -> list[str]:
    """The tests of bigger models against a smaller one at its cost."""
    tests = [result_sentence(comparison, test, f"{test.one} (trial {found.best[test.one].number})",
                           f"{test.other} (dense)") for test in found.tests]  # fmt: skip
    return [*tests, *(f"Not tested: {line}." for line in found.untested)]


def policy_label(study: ComparedStudy, trial: TrialResult) -> str:
    """What a policy of a study is called: its file's name, its trial, or dense."""
    if trial.number == study.record.dense.number:
        return "dense"
    return Path(study.files.get(trial.number, f"trial {trial.number}")).stem


def split_columns(comparison: Comparison) -> list[tuple[str, Split]]:
    """The columns of a table of policies: each axis on the search split, and on the report split where it has one."""
    both: tuple[Split, ...] = ("search", "report")
    return [(name, split) for name in comparison.axes for split in both
            if split == "search" or has_report(comparison, name)]  # fmt: skip
