"""What went wrong in a study, for the report: each traceback once, with the trials that it failed."""

from collections import defaultdict
from dataclasses import dataclass

from ...analysis.study_record import StudyRecord

MAX_TRACEBACKS = 20


@dataclass(frozen=True)
class Failures:
    """What went wrong.

    Attributes:
        tracebacks: Trial numbers and traceback, one entry per different traceback.
        setbacks: Trials that failed when they were promoted, and the reasons.
    """

    tracebacks: list[tuple[list[int], str]]
    setbacks: list[tuple[int, tuple[str, ...]]]


def failures(record: StudyRecord) -> Failures:
    """Tracebacks of failed trials, and the reasons of failed promotions."""
    trials: defaultdict[str, list[int]] = defaultdict(list)
    for trial in record.trials:
        if trial.traceback is not None and trial.duplicate_of is None:
            trials[trial.traceback].append(trial.number)
    return Failures(
        tracebacks=[(numbers, text) for text, numbers in trials.items()][:MAX_TRACEBACKS],
        setbacks=[(trial.number, trial.promotion_failures) for trial in record.trials if trial.promotion_failures],
    )
