"""Selects policies from the archive of a study under bounds that it was not searched with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...policies.policy import Policy
from ..space.constraint import Constraint
from ..study.storage import DATABASE, space_of
from ..trial.trial_result import TrialResult
from .load_study import read_record
from .reselect import best, bounds_of, parsed, under
from .study_record import StudyRecord
from .suggest import cannot_tell, offer


@dataclass(frozen=True)
class Selection:
    """What a study has to offer under other bounds.

    Attributes:
        record: The study as if it had searched under the bounds.
        bounds: All of them.
        pick: The best trial under a budget, where one was given.
        unmeasured: A policy that was not measured in full and is expected to be better than the best that was and keeps
            the bounds, in the first objective; None where there is none.
        untold: Why that cannot be told; None where it can.
    """

    record: StudyRecord
    bounds: Sequence[Constraint]
    pick: TrialResult | None = None
    unmeasured: Policy | None = None
    untold: str | None = None

    @property
    def trials(self) -> list[TrialResult]:
        """The pick, or the front, dearest first."""
        return [self.pick] if self.pick else [self.record.trial(number) for number in self.record.front]


def select(folder: Path, constraints: Sequence[str], picks: Sequence[str]) -> Selection:
    """Select from the archive of a study.

    Args:
        folder: The study's folder.
        constraints: Bounds such as `accuracy>=0.9*dense`, in the place of the study's own on the same metrics.
        picks: Bounds that one policy is picked under, such as `ttft_ms<=0.6*dense`; they come on top.

    Raises:
        UsageError: a bound is none, or on what was not measured.
        StudyError: there is no study.
    """
    record = read_record(folder)
    bounds = bounds_of(record, parsed(constraints, "--constraint", record), parsed(picks, "--pick", record))
    found = under(record, bounds)
    space = space_of(folder / DATABASE)
    return Selection(
        found, bounds, best(found) if picks else None, offer(found, space, bounds), cannot_tell(found, space)
    )
