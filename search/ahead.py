"""What a search still has to do besides proposing, by what it looks like now."""

import math
from collections.abc import Sequence

from .progress import CONFIRMING, PROMOTING
from .record import TrialRecord
from .space import Space
from .standing import Known, examples, looking_best, standing
from .timing import AGAIN, ROUNDS


def promotions(record: TrialRecord) -> int:
    """How often a trial that was set aside would go on until it has answered every example."""
    total = max(int(entry.detail.get("total", entry.n)) for entry in record.estimates.values())
    return max(1, math.ceil(math.log2(total / max(1, examples(record)))))


def ahead(
    records: Sequence[TrialRecord], known: Known, space: Space, is_confirmed: bool, is_timed: bool
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
        if record.shared_from is None and (point := standing(record, known, space)) is not None
    ]
    best = looking_best(stands, space) | {records[0].number}
    waiting = [record for record, _ in stands if record.number in best and record.estimates and not record.dropped]
    return {
        PROMOTING: sum(map(promotions, waiting)),
        **({CONFIRMING: len(best)} if is_confirmed else {}),
        **({AGAIN: ROUNDS * len(best)} if is_timed else {}),
    }
