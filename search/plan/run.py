"""Starts the workers of a space, and measures what its search will take."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..driver.forecast import Outline
from ..loggers.loggers import check_loggers
from ..run import common_commit, start_pool
from ..space.space import Space
from ..workers.ranking import with_ranking
from .measure import Measured, Meter, small_rungs


@dataclass(frozen=True)
class MeasuredSpace:
    """A space with what was measured of it.

    Attributes:
        outline: The outline of its search.
        measured: What was measured.
        device: The description of a worker.
        load: Seconds until the model was loaded.
        workers: How many workers there are.
        gpus: GPUs of each worker.
        capacity: How many workers the cluster has room for.
    """

    outline: Outline
    measured: Measured
    device: dict[str, Any]
    load: float
    workers: int
    gpus: float
    capacity: int

    @property
    def arguments(self) -> tuple[Outline, int, Measured, float, int, float, int]:
        """The arguments of `plan_search`."""
        layers = self.device["num_layers"]
        return self.outline, layers, self.measured, self.load, self.workers, self.gpus, self.capacity


def measure_space(
    space: Space, set_handlers: Callable[[], None], note: Callable[[str], None], started: float
) -> MeasuredSpace:
    """Load the model once in each worker, and measure.

    Args:
        space: The space.
        set_handlers: Sets the signal handlers again, which Ray replaces.
        note: Shows what is being measured.
        started: When the command began, by the monotonic clock.

    Raises:
        SkipsearchError: as a search of the space would.
    """
    check_loggers(space.log)
    note("loading the model")
    pool = start_pool(small_rungs(space), set_handlers)
    try:
        described = pool.describe()
        load = time.monotonic() - started
        common_commit(described)
        device = described[0]
        space = with_ranking(space, device["num_layers"], pool, note=note)
        outline = Outline.of(space, device["num_layers"], device["guide"], device["examples"])
        measured = Meter(pool, outline, device["num_layers"], note).measure()
        return MeasuredSpace(outline, measured, device, load, pool.size, pool.gpus, pool.capacity)
    finally:
        pool.close()
