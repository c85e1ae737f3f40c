"""Selects policies from a study's measured trials, and suggests one that was not measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...policies.policy import Policy
from ..places import DATABASE
from ..space.constraint import Constraint
from ..study.storage import space_of
from ..trial.trial_result import TrialResult
from .load_study import read_record
from .reselect import best_trial, combined_bounds, parse_bounds, under_bounds
from .study_record import StudyRecord
from .suggest import suggest, why_no_suggestion

TRAINED = "policies of this study were trained, and a policy that was not measured would have to be trained too"


@dataclass(frozen=True)
class Selection:
    """What a study offers under other bounds.

    Attributes:
        record: The study with violations and front by the bounds.
        bounds: All of them.
        pick: The best trial within a budget, where one was given.
        suggestion: A policy that was not measured on all examples, keeps the bounds, and is expected to be better in
            the first objective than every measured one; None where there is none.
        no_suggestion: Why no suggestion is possible; None where one is.
    """

    record: StudyRecord
    bounds: Sequence[Constraint]
    pick: TrialResult | None = None
    suggestion: Policy | None = None
    no_suggestion: str | None = None

    @property
    def trials(self) -> list[TrialResult]:
        """The pick, or else the front, most expensive first."""
        return [self.pick] if self.pick else [self.record.trial(number) for number in self.record.front]


def select(folder: Path, constraints: Sequence[str], picks: Sequence[str]) -> Selection:
    """Select policies from a study under other bounds.

    Args:
        folder: The study's folder.
        constraints: Bounds such as `accuracy>=0.9*dense` that replace the study's own on the same metrics.
        picks: Bounds such as `ttft_ms<=0.6*dense` that are added, to pick the best policy within a budget.

    Raises:
        UsageError: a bound cannot be parsed, or the study did not measure its metric.
        StudyError: there is no study.
    """
    record = read_record(folder)
    replacing, added = parse_bounds(constraints, "--constraint", record), parse_bounds(picks, "--pick", record)
    bounds = combined_bounds(record, replacing, added)
    record = under_bounds(record, bounds)
    space = space_of(folder / DATABASE)
    return Selection(
        record=record,
        bounds=bounds,
        pick=best_trial(record) if picks else None,
        suggestion=None if record.recovery is not None else suggest(record, space, bounds),
        no_suggestion=TRAINED if record.recovery is not None else why_no_suggestion(record, space),
    )
