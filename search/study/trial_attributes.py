"""Writes what a trial measured to the attributes of an Optuna trial, and reads it back as a `TrialResult`."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from ...policies.policy import Policy
from ...policies.wording import escape_invisible
from ..trial.measurements import parse_measurements
from ..trial.modelled_time import ModelledTime, measurement_fields
from ..trial.outcome import Outcome
from ..trial.trial_result import State, TrialResult

STATES: Mapping[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "complete",
    TrialState.FAIL: "failed",
}


def trial_attributes(outcome: Outcome) -> dict[str, Any]:
    """The attributes of a trial that hold its outcome.

    `seconds` comes last: a trial that was interrupted while it was written counts as measured if it has them.
    """
    predicted = [
        name for name, entry in outcome.measurements.items() if isinstance(entry, ModelledTime) and not entry.n
    ]
    measurements, estimates = (
        {name: measurement_fields(entry) for name, entry in entries.items() if name not in predicted}
        for entries in (outcome.measurements, outcome.estimates)
    )
    notes = {
        "failure": outcome.failure,
        "dropped": outcome.early_stopped,
        "worker": outcome.worker,
        "traceback": outcome.traceback,
    }
    return {
        "measurements": json.dumps(measurements),
        **({"estimates": json.dumps(estimates)} if estimates else {}),
        **({"predicted": predicted} if predicted else {}),
        **{key: value for key, value in notes.items() if value is not None},
        "seconds": dict(outcome.seconds),
    }


def read_trial(trial: FrozenTrial, study_attrs: Mapping[str, Any] = MappingProxyType({})) -> TrialResult:
    """Read a trial from its attributes.

    Args:
        trial: Optuna's trial; it has a policy.
        study_attrs: The attributes of its study, which hold the measurements on the report split and on transfer
            tasks; without them the result has none.
    """
    attrs = trial.user_attrs
    failure, traceback = attrs.get("failure"), attrs.get("traceback")
    return TrialResult(
        number=trial.number,
        state=STATES.get(trial.state, "running"),
        policy=Policy.model_validate(json.loads(attrs["policy"])),
        search=parse_measurements(attrs.get("measurements")),
        report={
            **parse_measurements(study_attrs.get(f"times:{attrs['fingerprint']}")),
            **parse_measurements(study_attrs.get(f"report:{attrs['fingerprint']}")),
        },
        transfer=parse_measurements(study_attrs.get(f"transfer:{attrs['fingerprint']}")),
        patches=parse_measurements(study_attrs.get(f"patches:{attrs['fingerprint']}")),
        violations=dict(trial.constraints),
        # An exception's text may contain control characters.
        failure=None if failure is None else escape_invisible(failure),
        early_stopped=attrs.get("dropped"),
        estimates=parse_measurements(attrs.get("estimates")),
        seconds=attrs.get("seconds", {}),
        worker=attrs.get("worker"),
        duplicate_of=attrs.get("shared_from"),
        promoted_from=attrs.get("continues"),
        baseline=attrs.get("rule"),
        is_probe=attrs.get("probe", False),
        predicted=tuple(attrs.get("predicted", ())),
        traceback=None if traceback is None else escape_invisible(traceback),
        promotion_failures=tuple(entry["failure"] for entry in promotion_failures(study_attrs, trial.number)),
    )


def promotion_failures(study_attrs: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
    """The failures of a promoted trial, from the attributes of its study; the trial itself keeps its measurements."""
    found: list[dict[str, Any]] = json.loads(study_attrs.get(promotion_failures_key(number), "[]"))
    return found


def promotion_failures_key(number: int) -> str:
    """The attribute of a study that holds the failures of a promoted trial."""
    return f"setbacks:{number}"
