"""How certain the ratio of two times is that were measured in turns, and what disturbed the measurement."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

# numpy is imported where it is used, so that reading the options of a space does not need it.

DRAWS, LEVELS = 2000, (2.5, 97.5)
# An outlier is above the median by more than this many standard deviations, and more than this factor times the median.
OUTLIER_DEVIATIONS, OUTLIER_SHARE = 5.0, 1.25
MIN_FOR_BLOCKS = 24  # pairs from which they are drawn in blocks
MAD_DEVIATION = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
DRIFT, MIN_FOR_DRIFT = 1.1, 9  # dense in the last third of the repeats over that in the first third

Statistic = Callable[["np.ndarray", "np.ndarray"], "np.ndarray"]


class RatioInterval(NamedTuple):
    """A ratio of two times with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval's width, as a share of the ratio."""
        return (self.high - self.low) / 2 / self.value


def turn_orders(seed: int | None) -> Iterator[bool]:
    """Whether the policy is timed before the dense model, for each repeat.

    Args:
        seed: Of a random order in which each of them goes first once in every two repeats; None alternates.
    """
    draw = random.Random(seed)
    while True:
        pair = [True, False]
        if seed is not None:
            draw.shuffle(pair)
        yield from pair


def median_of_ratios(ours: "np.ndarray", dense: "np.ndarray") -> "np.ndarray":
    """The median of the ratios of the pairs, along the last axis: a drift of the machine is the same in both."""
    import numpy as np

    return np.median(ours / dense, axis=-1)


def ratio_of_medians(ours: "np.ndarray", dense: "np.ndarray") -> "np.ndarray":
    """The ratio of the two medians, along the last axis."""
    import numpy as np

    return np.median(ours, axis=-1) / np.median(dense, axis=-1)


def ratio_interval(
    ours: Sequence[float], dense: Sequence[float], statistic: Statistic = median_of_ratios
) -> RatioInterval:
    """A ratio with its percentile interval over bootstrap samples of the pairs; seeded.

    A load that comes and goes disturbs neighbouring pairs alike. So many pairs are drawn in blocks of neighbours, which
    widens the interval as far as they depend on each other (circular block bootstrap).

    Args:
        ours: Times of the policy.
        dense: Times of the dense model, each measured next to that of the policy in the same place.
        statistic: The ratio of such samples.
    """
    import numpy as np

    both = np.array([ours, dense], float)
    samples = block_samples(both.shape[1])
    low, high = np.percentile(statistic(both[0][samples], both[1][samples]), LEVELS)
    return RatioInterval(float(statistic(both[0], both[1])), float(low), float(high))


def block_samples(count: int) -> "np.ndarray":
    """Bootstrap samples of so many pairs, as their places, shape (draws, count); one by one where pairs are few."""
    import numpy as np

    length = round(count**0.5) if count >= MIN_FOR_BLOCKS else 1
    starts = np.random.default_rng(0).integers(count, size=(DRAWS, -(-count // length), 1))
    places: np.ndarray = ((starts + np.arange(length)) % count).reshape(DRAWS, -1)[:, :count]
    return places


def disturbances(ours: Sequence[float], dense: Sequence[float]) -> dict[str, str]:
    """What disturbed a measurement, by kind, each in a few words; empty where nothing did.

    Args:
        ours: Times of the policy, in the order in which they were measured.
        dense: Times of the dense model.
    """
    import numpy as np

    found = {}
    outliers = sum(outlier_count(times) for times in (ours, dense))
    if outliers:
        found["outliers"] = f"{outliers} of {len(ours) + len(dense)} times are outliers"
    third = len(dense) // 3
    if len(dense) >= MIN_FOR_DRIFT:
        change = float(np.median(dense[-third:]) / np.median(dense[:third]))
        if change > DRIFT:
            found["drift"] = f"dense became {100 * (change - 1):.0f} % slower meanwhile: heat, throttling or other load"
        elif change < 1 / DRIFT:
            found["drift"] = f"dense became {100 * (1 - change):.0f} % faster meanwhile: another load has ended"
    return found


def outlier_count(times: Sequence[float]) -> int:
    """How many times are far above the others."""
    import numpy as np

    values = np.array(times, float)
    median = np.median(values)
    deviation = MAD_DEVIATION * np.median(np.abs(values - median))
    return int((values > np.maximum(median + OUTLIER_DEVIATIONS * deviation, OUTLIER_SHARE * median)).sum())


def ratio_detail(interval: RatioInterval, ours: Sequence[float], dense: Sequence[float]) -> dict[str, Any]:
    """What the detail of a measurement says about its ratio to dense: the interval, and what disturbed it."""
    warnings = disturbances(ours, dense)
    return {"ratio": interval._asdict(), **({"warnings": warnings} if warnings else {})}
