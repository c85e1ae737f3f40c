"""Stores the outcome of a trial, or of its promotion, in Optuna's study."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from ..trial.outcome import Outcome
from .trial_attributes import promotion_failures, promotion_failures_key, trial_attributes

KEPT_AT_PROMOTION = ("policy", "fingerprint", "rule", "probe")  # attributes that a promoted trial inherits


def trial_state(failure: str | None, values: Sequence[float] | None) -> TrialState:
    """Optuna's state of a finished trial; a trial is pruned that did not measure every objective on all examples.

    Args:
        failure: Why the trial failed; None where it did not.
        values: The objectives; None where one was not measured on all examples.
    """
    if failure is not None:
        return TrialState.FAIL
    return TrialState.PRUNED if values is None else TrialState.COMPLETE


def add_promoted_trial(
    study: optuna.Study,
    paused: FrozenTrial,
    outcome: Outcome,
    values: Sequence[float] | None,
    violations: Mapping[str, float],
    begun: datetime,
) -> None:
    """Add a finished trial that continues a paused one.

    It is written in one piece, so that a kill leaves all of it or nothing.

    Args:
        study: The study.
        paused: The trial that was promoted.
        outcome: All that was measured, before and since the promotion.
        values: The objectives; None where one was not measured on all examples.
        violations: By constrained metric, how far it lies beyond its bound.
        begun: When the promotion began.
    """
    inherited = {key: paused.user_attrs[key] for key in KEPT_AT_PROMOTION if key in paused.user_attrs}
    trial = create_trial(
        state=trial_state(None, values),
        values=values,
        params=paused.params,
        distributions=paused.distributions,
        user_attrs={**inherited, "continues": paused.number, **trial_attributes(outcome)},
        constraints=dict(violations),
    )
    trial.datetime_start = begun
    study.add_trial(trial)


def add_promotion_failure(study: optuna.Study, number: int, outcome: Outcome) -> None:
    """Store why a promoted trial failed; the trial keeps the measurements from before its promotion."""
    failures = promotion_failures(study.user_attrs, number)
    failures.append({"failure": outcome.failure, "traceback": outcome.traceback, "seconds": dict(outcome.seconds)})
    study.set_user_attr(promotion_failures_key(number), json.dumps(failures))
