"""What `report --constraint` and `report --pick` print: policies out of the archive, as YAML or JSON."""

import json
from typing import Any

from rich.console import Console

from ...policies.errors import StudyError
from ..analysis.reselect import none_keeps, untold_lines
from ..analysis.selection import Selection
from ..trial.trial_result import TrialResult
from .folder import exported
from .terminal import front_table, row


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
    bounds = ", ".join(bound.label for bound in selection.bounds)
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

    def plain(trial: TrialResult) -> dict[str, Any]:
        return row(record, trial, None) | {"policy": exported(record, trial).document()}

    return {
        "study": record.name,
        "bounds": [bound.label for bound in selection.bounds],
        "front": [plain(record.trial(number)) for number in record.front],
        "pick": plain(selection.pick) if selection.pick else None,
        "unmeasured": selection.unmeasured.document() if selection.unmeasured else None,
    }
