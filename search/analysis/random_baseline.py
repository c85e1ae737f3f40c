"""How often policies of the front choose image tokens better than a random choice does."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...evaluators.base import Measurement
from ..baselines.random_twin import random_twin
from ..trial.measurements import parse_measurements
from ..trial.paired_tests import paired_difference
from ..trial.trial_result import TrialResult
from .baseline_comparison import negated, quality_metric
from .study_record import RandomBaseline, StudyRecord, policy_files


def random_baseline(record: StudyRecord) -> RandomBaseline | None:
    """Compare policies of the front with the same ratios of random tokens, on the report split.

    None where no random choice was measured.
    """
    quality = quality_metric(record)
    if quality is None:
        return None
    gains = {}
    for number in policy_files(record):
        random = record.random.get(number, {})
        gain = paired_difference(record.trial(number).report.get(quality), random.get(quality))
        flipped = negated(gain) if record.objectives[quality] == "minimize" else gain
        if flipped is not None:
            gains[number] = flipped
    return RandomBaseline(gains) if gains else None


def random_measurements(
    trials: Sequence[TrialResult], attrs: Mapping[str, Any]
) -> dict[int, Mapping[str, Measurement]]:
    """By trial, what was measured of its random twin on the report split."""
    twins = {trial.number: random_twin(trial.policy) for trial in trials}
    texts = {number: attrs.get(f"random:{twin.fingerprint}") for number, twin in twins.items() if twin is not None}
    return {number: parse_measurements(text) for number, text in texts.items() if text is not None}
