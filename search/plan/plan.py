"""The plan of a search: its time by number of workers, what a worker and the disk need, what times can tell apart."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..driver.costs import Costs
from ..driver.forecast import Forecast, Outline
from ..driver.phases import PROPOSING
from ..driver.timing import NOISE_MEASUREMENTS
from ..space.space import Space
from ..times.noise import time_noise
from .measure import Measured

WORKERS = (1, 2, 4, 8)
FINISH_SECONDS = 8.0  # to write the report
FILES_BYTES = 6 << 20  # of the report with its figures, the picture and the policies
TOLD_APART = 1.96 * math.sqrt(2)  # 95 % interval of the difference of two times, in units of the noise of one
MAX_TRIALS = 1 << 20


@dataclass(frozen=True)
class Hours:
    """The time of the search with one number of workers.

    Attributes:
        workers: How many.
        seconds: The whole search, from start to report.
        fits: True where the cluster has room for them.
        trials: How many trials fit the hours that were asked for; None where none were.
    """

    workers: int
    seconds: float
    fits: bool
    trials: int | None = None


@dataclass(frozen=True)
class Plan:
    """What a search will take.

    Attributes:
        outline: The outline of the search.
        measured: What was measured for it.
        forecast: What comes after the dense trial, with the workers of the space.
        before: Seconds until the dense trial is measured: start, statistics, dense against dense, dense.
        load: Seconds until the model was loaded.
        hours: The search by number of workers.
        differences: By time, the smallest difference between two policies that can be told, as a share of dense.
        disk_bytes: Of the study's folder.
    """

    outline: Outline
    measured: Measured
    forecast: Forecast
    before: float
    load: float
    hours: tuple[Hours, ...]
    differences: Mapping[str, float]
    disk_bytes: int

    @property
    def seconds(self) -> float:
        """Seconds of the whole search with the workers of the space."""
        return self.before + self.forecast.total + FINISH_SECONDS

    @property
    def model_share(self) -> float:
        """The share of the workers' time in which the model computes."""
        busy = self.forecast.busy * self.measured.costs.forward
        return busy / (self.forecast.workers * self.forecast.total) if self.forecast.total else 0.0

    def data(self) -> dict[str, Any]:
        """The plan as plain data, for JSON."""
        forecast, measured = self.forecast, self.measured
        return {
            "trials": self.outline.space.search.trials,
            "workers": forecast.workers,
            "seconds": self.seconds,
            "seconds_per_trial": forecast.pace(PROPOSING),
            "seconds_before_the_first_trial": self.before,
            "load_seconds": self.load,
            "phases": {name: {"steps": phase.steps, "seconds": forecast.seconds[name]}
                       for name, phase in forecast.phases.items()},
            "by_workers": [{"workers": one.workers, "seconds": one.seconds, "fits": one.fits, "trials": one.trials}
                           for one in self.hours],
            "model_share": self.model_share,
            "memory": [dict(one) for one in measured.memory],
            "disk_bytes": self.disk_bytes,
            "noise": {name: time_noise(entries) for name, entries in measured.noise.items()},
            "smallest_difference": dict(self.differences),
            "policies_measured": measured.policies,
        }  # fmt: skip


def plan_search(
    outline: Outline,
    num_layers: int,
    measured: Measured,
    load: float,
    workers: int,
    gpus: float,
    capacity: int,
    hours: float | None = None,
) -> Plan:
    """The plan of a search from what was measured.

    Args:
        outline: The outline of the search.
        num_layers: The number of the model's decoder layers.
        measured: What was measured.
        load: Seconds until the model was loaded.
        workers: How many workers the space asks for.
        gpus: GPUs of each worker.
        capacity: How many workers the cluster has room for.
        hours: How long a search may take, for the number of trials that fit; None for none.
    """

    def total(count: int, trials: int | None = None) -> float:
        chosen = outline if trials is None else with_trials(outline, num_layers, trials)
        return before(chosen, measured, load, count, gpus) + forecast(chosen, measured.costs, count, gpus).total

    own = forecast(outline, measured.costs, workers, gpus)
    limit = None if hours is None else 3600 * hours - FINISH_SECONDS
    table = []
    for count in sorted({*WORKERS, workers}):
        fitting = None if limit is None else most_trials(partial(total, count), limit, outline.size)
        table.append(Hours(count, total(count) + FINISH_SECONDS, count <= capacity, fitting))
    rows = 1 + sum(own.phases[name].steps for name in own.phases)
    differences = {name: TOLD_APART * noise for name, entries in measured.noise.items()
                   if (noise := time_noise(entries)) is not None}  # fmt: skip
    disk = round(rows * measured.row_bytes) + FILES_BYTES
    return Plan(outline, measured, own, before(outline, measured, load, workers, gpus), load, tuple(table),
                differences, disk)  # fmt: skip


def forecast(outline: Outline, costs: Costs, workers: int, gpus: float) -> Forecast:
    """The forecast with a number of workers."""
    return Forecast.of(outline, costs, workers, 1 if gpus < 1 else workers)


def before(outline: Outline, measured: Measured, load: float, workers: int, gpus: float) -> float:
    """Seconds until the dense trial is measured."""
    dense = {name: replace(cost, share=1.0) for name, cost in measured.costs.evaluators.items()}
    costs = replace(measured.costs, evaluators=dense)
    job, timed = costs.job(outline.dense_job()), costs.job(outline.of_kind(False, True))
    at_once = 1 if gpus < 1 else workers
    noise = timed.alone * math.ceil(NOISE_MEASUREMENTS / at_once)
    return load + measured.statistics + noise + job.beside + job.alone


def with_trials(outline: Outline, num_layers: int, trials: int) -> Outline:
    """The outline of the same search with another budget of trials."""
    search = outline.space.search.model_copy(update={"trials": trials})
    space: Space = outline.space.model_copy(update={"search": search})
    return Outline.of(space, num_layers, outline.guide, outline.examples)


def most_trials(seconds: Callable[[int], float], limit: float, size: int = MAX_TRIALS) -> int:
    """The largest budget of trials whose search ends within a limit; 0 where none does.

    Args:
        seconds: Maps a budget to the seconds of its search, which grow with it.
        limit: In seconds.
        size: How many different policies the space has.
    """
    low, high, most = 0, 1, min(size, MAX_TRIALS)
    if seconds(most) <= limit:
        return most
    while high < most and seconds(high) <= limit:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if seconds(middle) <= limit else (low, middle)
    return low


def memory_peak(memory: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each entry of the workers' memory, the largest."""
    names = dict.fromkeys(name for one in memory for name in one)
    return {name: max(one[name] for one in memory if name in one) for name in names}
