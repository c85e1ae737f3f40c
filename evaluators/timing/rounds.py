"""The ratio of two times that were measured in several rounds, apart from each other in time.

What disturbs a machine comes and goes over minutes: the repeats of one moment agree with each other better than with
those of the next. So the interval of a ratio comes from how far whole rounds differ, each taken as one value. It
assumes independent rounds, and nothing of how they are distributed: the true median lies between the smallest and the
largest of n values with probability 1 - 2^(1-n), and between inner ones as the binomial distribution says (the interval
of the sign test).
"""

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..base import Measurement
from .ratio import RatioInterval

if TYPE_CHECKING:
    import numpy as np

MISSED = 0.05  # how often an interval may miss, at most
MIN_ROUNDS = 6  # rounds from which there is such an interval: 2^(1-6) is 0.03
MEDIAN_ERROR = 1.253  # standard error of a median over that of a mean, for normal values: sqrt(pi / 2)


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """An interval that holds the median of the distribution of some values, at 95 % or more; None for too few values.

    Args:
        values: Independent values.
    """
    count = len(values)
    if count < MIN_ROUNDS:
        return None
    outer = missed = 0
    while (missed := missed + math.comb(count, outer)) * 2 <= MISSED * 2**count:
        outer += 1
    ordered = sorted(values)
    return ordered[outer - 1], ordered[count - outer]


def merge_rounds(rounds: Sequence[Measurement]) -> Measurement:
    """Several measurements of one time as one, with standard error and interval from the scatter of the rounds.

    The value is the median ratio of all pairs times the median of dense over all rounds, because absolute times drift
    between rounds.
    """
    import numpy as np

    if any(not entry.dense for entry in rounds):
        return rounds[0] if len(rounds) == 1 else Measurement(statistics.median(entry.value for entry in rounds))
    pairs = [paired_repeats(entry) for entry in rounds]
    ours, dense = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    ratio, dense_median = float(np.median(ours / dense)), float(np.median(dense))
    round_ratios = [float(np.median(one / other)) for one, other in pairs]
    error = MEDIAN_ERROR * statistics.stdev(round_ratios) / len(round_ratios) ** 0.5 if len(round_ratios) > 1 else None
    interval = median_interval(round_ratios)
    held = {} if interval is None else {"ratio": RatioInterval(ratio, *interval)._asdict()}
    return Measurement(
        ratio * dense_median,
        n=len(ours),
        dense=dense_median,
        stderr=None if error is None else error * dense_median,
        iqr=float(np.subtract(*np.percentile(ours, (75, 25)))),
        detail={"visits": len(rounds), **held, "repeats_ms": ours.tolist(), "dense_repeats_ms": dense.tolist()},
    )


def paired_repeats(entry: Measurement) -> "tuple[np.ndarray, np.ndarray]":
    """The repeats of a policy and of dense; their medians where the repeats were not kept."""
    import numpy as np

    ours, dense = (entry.detail.get(key, ()) for key in ("repeats_ms", "dense_repeats_ms"))
    if len(ours) != len(dense) or not len(ours):
        ours, dense = [entry.value], [entry.dense]
    return np.array(ours, float), np.array(dense, float)
