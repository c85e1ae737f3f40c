"""What `report --constraint` and `report --pick` print: policies selected from a study, as YAML or JSON."""

import json
from typing import Any

from ...policies.errors import StudyError
from ..analysis.reselect import no_feasible_policy, undecided_lines
from ..analysis.selection import Selection
from ..trial.trial_result import TrialResult
from .console import Output
from .folder import exported
from .terminal import front_table, row


def print_selection(selection: Selection, as_json: bool, unmeasured: bool) -> None:
    """Print policies as YAML or JSON on standard output, and their measurements on standard error.

    Args:
        selection: The policies.
        as_json: Print JSON in the place of YAML.
        unmeasured: Print the suggested policy in the place of measured ones.

    Raises:
        StudyError: no measured policy keeps the bounds; or there is no suggestion and one was asked for.
    """
    record, suggestion = selection.record, selection.suggestion
    if unmeasured and suggestion is None and selection.no_suggestion is not None:
        hint = "leave out `--unmeasured`, or go on with the search under more `--trials`"
        raise StudyError("no unmeasured policy can be suggested", [selection.no_suggestion], hint)
    if unmeasured and suggestion is None:
        raise StudyError("no unmeasured policy is expected to be better", hint="leave out `--unmeasured`")
    if not record.front and not unmeasured:
        raise no_feasible_policy(record, selection.bounds)
    if as_json:
        print(json.dumps(selection_data(selection)))
        return
    console = Output(stderr=True, highlight=False)
    rows = {f"trial {trial.number}": row(record, trial, None) for trial in selection.trials}
    console.print_table(front_table(record, rows))
    bounds = ", ".join(bound.label for bound in selection.bounds)
    for line in (f"under {bounds}", *undecided_lines(record, selection.bounds)):
        console.print(line, markup=False)
    if suggestion is not None:
        expected = suggestion.provenance.unmeasured
        console.print(f"an unmeasured policy may be better: {expected}; print it with --unmeasured", markup=False)
    measured = [exported(record, trial) for trial in selection.trials]
    policies = [suggestion] if unmeasured and suggestion is not None else measured
    print("---\n".join(policy.to_yaml() for policy in policies), end="")


def selection_data(selection: Selection) -> dict[str, Any]:
    """A selection as plain data, for JSON."""
    record = selection.record

    def plain(trial: TrialResult) -> dict[str, Any]:
        return row(record, trial, None) | {"policy": exported(record, trial).document()}

    return {
        "study": record.name,
        "bounds": [bound.label for bound in selection.bounds],
        "front": [plain(record.trial(number)) for number in record.front],
        "pick": plain(selection.pick) if selection.pick else None,
        "unmeasured": selection.suggestion.document() if selection.suggestion else None,
    }
