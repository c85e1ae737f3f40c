"""What a search still has to do besides proposing, by what it looks like now."""

import math
from collections.abc import Sequence

from ..space.space import Space
from ..study.expected_results import MAX_CONFIRMED, Known
from ..trial.trial_result import TrialResult
from .phases import CONFIRMING, PROMOTING
from .promotion import ENOUGH, examples, is_paused, looking_best, standing
from .timing import AGAIN, ROUNDS


def promotions(record: TrialResult, total: int) -> int:
    """How often a paused trial would go on until it has answered every example.

    Args:
        record: The trial.
        total: How many examples there are.
    """
    answered = examples(record)
    first = 0 if answered else 1
    return max(1, first + math.ceil(math.log2(max(total, 1) / (answered or ENOUGH))))


def ahead(
    records: Sequence[TrialResult], known: Known, space: Space, is_confirmed: bool, is_timed: bool
) -> dict[str, int]:
    """Steps to come by phase: of the trials that look like members of the front, all will be measured in full.

    Args:
        records: All trials; the first is dense.
        known: The trials that answered every example.
        space: The search space.
        is_confirmed: True where something is measured on a report split.
        is_timed: True where the front is timed again at the end.
    """
    stands = [
        (record, point)
        for record in records
        if record.duplicate_of is None and (point := standing(record, known, space)) is not None
    ]
    best = looking_best(stands, space) | {records[0].number}
    total = max((entry.n for entry in known.dense.values() if "per_example" in entry.detail), default=ENOUGH)
    waiting = [record for record, _ in stands if record.number in best and is_paused(record, known)]
    baselines = sum(record.baseline is not None and record.number not in best for record, _ in stands)
    return {
        PROMOTING: sum(promotions(record, total) for record in waiting),
        **({CONFIRMING: len(best) + min(MAX_CONFIRMED, baselines)} if is_confirmed else {}),
        **({AGAIN: ROUNDS * (len(best) + min(MAX_CONFIRMED, baselines))} if is_timed else {}),
    }
