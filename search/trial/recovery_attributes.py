"""The policies that were trained once a search had ended, in the attributes of its study.

The weights of each lie in a folder beside the policy files of the study; the study has their digest, and what was
measured with them.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...evaluators.base import Measurement, declared_metric
from ...policies.policy import Policy
from ...policies.trained.files import TrainedWeights
from ..places import POLICIES
from ..space.fingerprint import Digests, with_digests
from ..space.search_settings import Recover
from .measurements import parse_measurements
from .outcome import Outcome
from .recovery import Recovery
from .trial_result import TrialResult

TRAININGS = "trainings"  # the attribute of a study that says how its policies are trained


def settings_digests(settings: Recover) -> dict[int, str]:
    """By the steps of each round, a digest that is equal for settings under which a training need not be repeated.

    Data counts by its content. How much of a task is read depends on the longest round.
    """
    file = settings.data_file
    data = with_digests(settings.data, Digests()) if file is None else hashlib.sha256(file.read_bytes()).hexdigest()
    rounds = [steps for steps, _ in settings.rounds(1)]
    found = {}
    for steps in rounds:
        plain = settings.training(steps).model_dump(mode="json", exclude={"save_every"})
        text = json.dumps([plain, data, rounds[-1]], sort_keys=True)
        found[steps] = hashlib.sha256(text.encode()).hexdigest()[:8]
    return found


def folder_name(result: TrialResult, digest: str) -> str:
    """The folder of the weights that are trained for a trial."""
    return f"trained-{result.number}-{digest}"


def recovery_attribute(outcome: Outcome, weights: TrainedWeights | None, steps: int) -> str:
    """What a study keeps of a training, as the text of an attribute.

    Args:
        outcome: What was measured with the trained weights, or why the training failed.
        weights: The trained weights; None where it failed.
        steps: Of the training.
    """
    return json.dumps({
        "failure": outcome.failure,
        "weights": None if weights is None else weights.model_dump(),
        "measurements": {name: asdict(entry) for name, entry in outcome.measurements.items()},
        "seconds": outcome.seconds.get("training", 0.0),
        "steps": steps,
    })  # fmt: skip


def read_weights(folder: Path) -> TrainedWeights | None:
    """The weights that a training has written into a folder beside the policies of a study, with that folder."""
    weights = Policy.load(folder).weights
    return None if weights is None else weights.model_copy(update={"folder": folder.name})


def recovery_key(digest: str, policy: Policy) -> str:
    """The attribute of a study that holds the training of a policy."""
    return f"recovery:{digest}:{policy.fingerprint}"


def read_recoveries(
    results: Sequence[TrialResult],
    attrs: Mapping[str, Any],
    folder: Path,
    violations: Callable[[Mapping[str, Measurement]], dict[str, float]],
) -> list[Recovery]:
    """The trainings of a study with its latest settings, by number of the trial; of several rounds the last counts.

    Args:
        results: The trials.
        attrs: The attributes of the study.
        folder: The study's folder.
        violations: Computes how far measurements violate each constraint.
    """
    digests = attrs.get(TRAININGS, {}).get("digests", ())
    found = []
    for result in results:
        texts = [attrs.get(recovery_key(digest, result.policy)) for digest in digests]
        rounds = [json.loads(text) for text in texts if text is not None]
        if not rounds or result.duplicate_of is not None:
            continue
        # A longer training that failed leaves the result of the shorter one.
        last = next((one for one in reversed(rounds) if one["failure"] is None), rounds[-1])
        after = None
        if last["failure"] is None:
            after = trained_result(result, last, attrs, folder / POLICIES)
            after = replace(after, violations=violations(after.search))
        seconds = sum(one["seconds"] for one in rounds)
        found.append(Recovery(result, after, rounds[-1]["failure"], seconds, last["steps"]))
    return found


def trained_result(
    result: TrialResult, kept: Mapping[str, Any], attrs: Mapping[str, Any], policies: Path
) -> TrialResult:  # fmt: skip
    """A trial with trained weights, and what was measured with them.

    The times are those of the trial, since trained weights change no computation.

    Args:
        result: The trial.
        kept: What the study keeps of its training.
        attrs: The attributes of the study.
        policies: The folder of the study's policies.
    """
    weights = TrainedWeights.model_validate(kept["weights"])
    policy = result.policy.model_copy(update={"weights": weights}).beside(policies / (weights.folder or ""))
    times = {name: entry for name, entry in result.search.items() if is_kept(name)}
    again, fingerprint = attrs.get(f"times:{result.policy.fingerprint}"), policy.fingerprint
    return replace(
        result,
        policy=policy,
        state="complete",
        search={**times, **parse_measurements(json.dumps(kept["measurements"]))},
        report={**parse_measurements(again), **parse_measurements(attrs.get(f"report:{fingerprint}"))},
        transfer=parse_measurements(attrs.get(f"transfer:{fingerprint}")),
        patches=parse_measurements(attrs.get(f"patches:{fingerprint}")),
        estimates={},
        early_stopped=None,
        baseline=None,
    )


def is_kept(metric: str) -> bool:
    """True for a time, which a trained policy has from before its training."""
    declared = declared_metric(metric)
    return declared is not None and declared.kind == "time"
