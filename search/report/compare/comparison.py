"""Puts a comparison of studies together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ....evaluators.base import Measurement, Split
from ...analysis.compare.axes import common_axes
from ...analysis.compare.differences import allowed, settings
from ...analysis.compare.equal_cost import EqualCost, equal_costs
from ...analysis.compare.fronts import FrontVolume, combined_front, common_reference, front_volume
from ...analysis.compare.pairs import PairedTest, paired_tests, task_table
from ...analysis.compare.studies import ComparedStudy, load_studies, on_axes
from ...analysis.reselect import best_trial, combined_bounds, no_feasible_policy, parse_bounds, under_bounds
from ...trial.trial_result import TrialResult
from ..sections import headline_trial


@dataclass(frozen=True)
class Comparison:
    """Several studies side by side.

    Attributes:
        studies: The studies, on the common axes.
        reference: The reference point of all hypervolumes, by axis.
        volumes: By study, the hypervolume of its front.
        chosen: By study, the policy that is tested; a study without one is left out.
        chosen_by: How the policies were chosen.
        not_chosen: Why a study has none, one line each.
        left_out: Objectives that not all studies have.
        unlike: Why an objective that all studies have is no axis, one line each.
        combined: The policies that no policy of any study dominates, each with its study.
        equal_costs: Bigger models at the cost of smaller ones; empty for studies of one model.
        quality: The metric that is tested; None without any.
        tests: A paired test for each pair of studies.
        untested: Why a pair has none, one line each.
        tasks: By split, how many examples are of each task, and the scores by row and task; empty for a single task.
        allowed: What was allowed where: see `differences.allowed`.
        settings: Settings that differ: see `differences.settings`.
    """

    studies: Sequence[ComparedStudy]
    reference: Mapping[str, float]
    volumes: Mapping[str, FrontVolume]
    chosen: Mapping[str, TrialResult]
    chosen_by: str
    not_chosen: Sequence[str]
    left_out: Sequence[str]
    unlike: Sequence[str]
    combined: Sequence[tuple[ComparedStudy, TrialResult]]
    equal_costs: Sequence[EqualCost]
    quality: str | None
    tests: Sequence[PairedTest]
    untested: Sequence[str]
    tasks: Mapping[Split, tuple[Mapping[str, int], Mapping[str, Mapping[str, Measurement]]]]
    allowed: Mapping[str, Sequence[str]]
    settings: Mapping[str, Sequence[str]]

    @property
    def axes(self) -> list[str]:
        """The common objectives."""
        return [*self.reference]

    @property
    def is_absolute(self) -> bool:
        """True for studies of several models, whose costs are given as they are and not as shares of dense."""
        return any(study.model != self.studies[0].model for study in self.studies)


def compare_studies(
    folders: Sequence[Path], picks: Sequence[str] = (), axes: Sequence[str] = (), leave_out: bool = False
) -> Comparison:
    """Compare studies.

    Args:
        folders: Their folders.
        picks: Bounds such as `ttft_ms<=0.6*dense`, under which each study's best policy is tested; without any, the
            policy of its headline is.
        axes: Some of the common objectives; empty for all.
        leave_out: See `common_axes`.

    Raises:
        UsageError: the studies are too few, or an axis or a bound names something that was not measured.
        StudyError: a study cannot be read, or an axis does not measure the same in all studies.
    """
    loaded = load_studies(folders)
    names, unlike = common_axes(loaded, axes, leave_out)
    studies = [on_axes(study, names) for study in loaded]
    first = studies[0]
    chosen, reasons = choose(studies, picks)
    reference = common_reference(studies)
    quality, tests, untested = paired_tests(studies, chosen)
    splits: tuple[Split, ...] = ("search", "report")
    tables = {split: task_table(studies, chosen, split) for split in splits}
    every = dict.fromkeys(name for study in loaded for name in study.record.objectives)
    return Comparison(
        studies=studies,
        reference=reference,
        volumes={study.name: front_volume(first, study, reference) for study in studies},
        chosen=chosen,
        chosen_by=", ".join(picks) or "the cheapest that loses at most one point, or 0.01 nats, on the search split",
        not_chosen=reasons,
        left_out=[name for name in every if any(name not in study.record.objectives for study in loaded)],
        unlike=unlike,
        combined=combined_front(studies),
        equal_costs=equal_costs(studies, quality),
        quality=quality,
        tests=tests,
        untested=untested,
        tasks={split: table for split, table in tables.items() if table[0]},
        allowed=allowed(studies),
        settings=settings(studies),
    )


def choose(studies: Sequence[ComparedStudy], picks: Sequence[str]) -> tuple[dict[str, TrialResult], list[str]]:
    """By study the policy that is tested, and why a study has none."""
    chosen, reasons = {}, []
    for study in studies:
        record = study.record
        if picks:
            bounds = combined_bounds(record, (), parse_bounds(picks, "--pick", record))
            bounded = under_bounds(record, bounds)
            trial, reason = best_trial(bounded), str(no_feasible_policy(bounded, bounds).what)
        else:
            trial, reason = headline_trial(record), "its front holds no policy besides dense"
        if trial is None:
            reasons.append(f"{study.name}: {reason}")
        else:
            chosen[study.name] = trial
    return chosen, reasons
