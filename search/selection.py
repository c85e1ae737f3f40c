"""What `report --constraint` and `report --pick` print: policies out of the archive, as YAML or JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ..policies.errors import StudyError
from ..policies.policy import Policy
from .archive import Bound, best, bounds_of, none_keeps, parsed, under, untold_lines
from .offer import cannot_tell, offer
from .results import exported, read_record
from .study.storage import DATABASE, space_of
from .summary import front_table, row
from .trial.trial_result import StudyRecord, TrialRecord


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
    bounds: Sequence[Bound]
    pick: TrialRecord | None = None
    unmeasured: Policy | None = None
    untold: str | None = None

    @property
    def trials(self) -> list[TrialRecord]:
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


def print_selection(selection: Selection, as_json: bool, unmeasured: bool) -> None:
    """Policies on standard output, as YAML or JSON; what to know about them on standard error.

    Raises:
        StudyError: no measured policy keeps the bounds; or an unmeasured one is asked for, and nothing is expected.
    """
    record, offered = selection.record, selection.unmeasured
    if unmeasured and offered is None and selection.untold is not None:
        hint = "leave out `--unmeasured`, or go on with the search under more `--trials`"
        raise StudyError("it cannot be told whether an unmeasured policy is better", [selection.untold], hint)
    if unmeasured and offered is None:
        raise StudyError("no unmeasured policy is expected to be better", hint="leave out `--unmeasured`")
    if not record.front and not unmeasured:
        raise none_keeps(record, selection.bounds)
    if as_json:
        print(json.dumps(selection_data(selection)))
        return
    console = Console(stderr=True, highlight=False)
    rows = {f"trial {trial.number}": row(record, trial, None) for trial in selection.trials}
    console.print(front_table(record, rows))
    bounds = ", ".join(bound.text for bound in selection.bounds)
    for line in (f"under {bounds}", *untold_lines(record, selection.bounds)):
        console.print(line, markup=False)
    if offered is not None:
        told = f"a better policy is expected, unmeasured: {offered.provenance.unmeasured}; --unmeasured prints it"
        console.print(told, markup=False)
    policies = [offered] if unmeasured and offered is not None else [exported(record, one) for one in selection.trials]
    print("---\n".join(policy.to_yaml() for policy in policies), end="")


def selection_data(selection: Selection) -> dict[str, Any]:
    """The same as plain data."""
    record = selection.record

    def plain(trial: TrialRecord) -> dict[str, Any]:
        return row(record, trial, None) | {"policy": exported(record, trial).document()}

    return {
        "study": record.name,
        "bounds": [bound.text for bound in selection.bounds],
        "front": [plain(record.trial(number)) for number in record.front],
        "pick": plain(selection.pick) if selection.pick else None,
        "unmeasured": selection.unmeasured.document() if selection.unmeasured else None,
    }
