"""How noisy a machine is: what dense against dense shows, beside how far the times of policies lie apart."""

import math
import statistics
from collections.abc import Sequence

from ...evaluators.base import Measurement
from ..space.units import amount, phrase
from ..trial.modelled_time import ModelledTime, is_time
from ..trial.trial_result import TrialResult
from .smoothed import counts

LEAST = 12  # policies whose times tell how far apart times are
LOUD = 0.25  # share of that spread above which noise hides differences


def noise_of(null: Sequence[Measurement]) -> float | None:
    """How far a ratio strays: the root of the mean square by which dense differs from itself; None without any."""
    ratios = [entry.value / entry.dense for entry in null if entry.dense]
    return math.sqrt(statistics.fmean((ratio - 1) ** 2 for ratio in ratios)) if ratios else None


def spread_of(records: Sequence[TrialResult], name: str, noise: float) -> float | None:
    """How far apart the times of measured policies lie, noise taken off; None where few were measured."""
    entries = [record.search[name] for record in records[1:] if counts(record) and name in record.search]
    own = [one for one in entries if is_time(name, one) and not (isinstance(one, ModelledTime) and one.is_predicted)]
    if len(own) < LEAST:
        return None
    ratios = [entry.value / (entry.dense or math.nan) for entry in own]
    return math.sqrt(max(0.0, statistics.variance(ratios) - noise**2))


def noise_line(name: str, noise: float, blocks: int) -> str:
    """What the machine does to a time."""
    return (
        f"Noise of this machine: dense against dense, {phrase(name)} strays by {amount(noise, 'fraction')} "
        f"({blocks} measurements)."
    )


def warning(name: str, noise: float, spread: float) -> str:
    """What to do about a machine that is too noisy; empty where it is quiet enough."""
    if noise <= LOUD * spread:
        return ""
    return (
        f"warning: one measurement of {phrase(name)} strays by {amount(noise, 'fraction')}, and the policies measured "
        f"so far differ by {amount(spread, 'fraction')}: differences drown in noise. Raise `repeats` of the latency "
        f"evaluator, search on an idle machine, or take {name} out of `objectives` and let FLOPs stand for it."
    )
