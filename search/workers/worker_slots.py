"""Starts the worker processes of a search, replaces those that fail, and gives up those that fail repeatedly."""

import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from ...policies.errors import RunError, SkipsearchError
from ..space.space import Space
from ..trial.failures import fault_of
from .cluster import first_line, worker_capacity
from .prefix_affinity import RECENT, LayerKeys
from .worker import Worker, running_evaluator

LOAD_SECONDS = 1800.0  # the first start of a worker imports torch and loads a model, minutes on a slow disk
MAX_FAULTS = 3  # faults of the machine in a row after which a worker is given up
NODE_SECONDS = 60.0  # how long a cluster without room for a worker may take to get a new node


@dataclass(eq=False)
class WorkerSlot:
    """The place of one worker, which holds one process after the other.

    Attributes:
        index: The worker's number.
        actor: The process; None before it starts, and where the worker was given up.
        since: When it began to load its model, or began its job, by the monotonic clock.
        faults: The policies, and loads of the model, on which the machine failed since the last measurement.
        reason: The last of these failures.
        measured: The policies that it measured lately.
        description: Its model and device, as `Worker.describe` returns them.
    """

    index: int
    actor: Any = None
    since: float = 0.0
    faults: set[str] = field(default_factory=set)
    reason: str = ""
    measured: deque[LayerKeys] = field(default_factory=lambda: deque(maxlen=RECENT))
    description: dict[str, Any] = field(default_factory=dict)

    @property
    def age(self) -> float:
        """Seconds since the worker began what it is doing."""
        return time.monotonic() - self.since

    @property
    def activity(self) -> str:
        """What the worker does or last did, as an adverbial clause for an error message."""
        name = running_evaluator(self.actor)
        return f"while the evaluator '{name}' measured" if name else "while it applied a policy"


class WorkerSlots:
    """The workers of a search, by what they do.

    Args:
        space: The search space.
        count: The number of workers.
        gpus: The GPUs of each worker.
        threads: The threads that torch may use in each worker; None leaves that to torch.
        load_seconds: How long a worker may take to load its model.

    Attributes:
        loading: The workers that load their model, by Ray's reference to the result.
        idle: The workers without a job, longest idle first.
        ranking: Ray's reference to the search's ranking of channels, which every new process gets; None for none.
    """

    ranking: Any = None

    def __init__(self, space: Space, count: int, gpus: float, threads: int | None, load_seconds: float) -> None:
        self._space, self._gpus, self._threads, self._load_seconds = space, gpus, threads, load_seconds
        self._slots = [WorkerSlot(index) for index in range(count)]
        self.loading: dict[Any, WorkerSlot] = {}
        self.idle: deque[WorkerSlot] = deque()

    def start_all(self) -> None:
        """Start a process for each worker that has none and was not given up."""
        for slot in self._slots:
            if slot.actor is None and len(slot.faults) < MAX_FAULTS:
                self._start(slot)

    def _start(self, slot: WorkerSlot) -> None:
        # Ray's own restarts would wait without limit where no node has room for the process.
        options = {"num_cpus": self._space.workers.cpus, "num_gpus": self._gpus, "max_restarts": 0}
        worker = ray.remote(Worker).options(**options)
        slot.actor = worker.remote(self._space.model_dump(by_alias=True), self._threads, self.ranking)
        slot.since, slot.measured = time.monotonic(), deque(maxlen=RECENT)
        self.loading[slot.actor.describe.remote()] = slot

    def stop_all(self) -> None:
        """End all processes, so that their devices are free."""
        for slot in self._slots:
            self._stop(slot)
        self.loading = {}
        self.idle.clear()

    def _stop(self, slot: WorkerSlot) -> None:
        if slot.actor is not None:
            with suppress(RayError, RuntimeError, ValueError):  # The process, or all of Ray, may have died already.
                ray.kill(slot.actor)
            slot.actor = None

    def replace(self, slot: WorkerSlot) -> None:
        """Replace the process of a worker by a new one."""
        self._stop(slot)
        self._start(slot)

    def others(self, index: int | None) -> Sequence[WorkerSlot]:
        """The workers that have a process, without the one with this number."""
        return [slot for slot in self._slots if slot.actor is not None and slot.index != index]

    def finish_loading(self, reference: Any) -> bool:
        """Make a worker idle that has loaded its model, or replace one that failed to.

        Args:
            reference: Ray's reference to the result of the load.

        Returns:
            True where the worker is idle now.

        Raises:
            SkipsearchError: the model cannot be loaded, or an evaluator cannot be set up; another process would fail
                too.
            RunError: no worker is left.
        """
        slot = self.loading.pop(reference)
        try:
            slot.description = ray.get(reference)
        except RayTaskError as cause:
            error = cause.cause
            if fault_of(error) != "machine":
                raise worker_error(cause) from None
            self.handle_fault(slot, f"could not load the model: {first_line(error)}")
            return False
        except RayError as cause:
            self.handle_fault(slot, f"ended while it loaded the model: {first_line(cause)}")
            return False
        self.idle.append(slot)
        return True

    def handle_fault(self, slot: WorkerSlot, reason: str, fingerprint: str | None = None) -> None:
        """Replace the process of a worker after a fault of the machine, or give the worker up after several in a row.

        Args:
            slot: The worker.
            reason: The fault.
            fingerprint: The policy that it measured; None while it loaded its model. A policy counts once per worker,
                because it may be the policy that cannot be measured.

        Raises:
            RunError: no worker is left.
        """
        slot.faults.add(fingerprint or f"load {len(slot.faults)}")
        slot.reason = reason
        self._stop(slot)
        if len(slot.faults) < MAX_FAULTS:
            self._start(slot)
        if all(slot.actor is None for slot in self._slots):
            raise self._none_left("each failed several times in a row")

    def check_loading(self, is_running: bool) -> None:
        """Give up workers that load their model for too long, or that no node has room for.

        Args:
            is_running: True where a job is running.

        Raises:
            RunError: no worker is left.
        """
        late = {reference: slot for reference, slot in self.loading.items() if slot.age > self._load_seconds}
        for reference, slot in late.items():
            del self.loading[reference]
            slot.faults |= {f"slow {number}" for number in range(MAX_FAULTS)}
            self.handle_fault(slot, f"had not loaded the model after {self._load_seconds:.0f} s")
        waiting = [slot for slot in self.loading.values() if slot.age > NODE_SECONDS]
        all_wait = not (self.idle or is_running) and len(waiting) == len(self.loading)
        if all_wait and not worker_capacity(self._space.workers.cpus, self._gpus):
            for slot in waiting:
                slot.reason = slot.reason or "its node is gone"
            raise self._none_left("no node has room for a worker any more")

    def _none_left(self, why: str) -> RunError:
        lines = [f"worker-{slot.index}: {slot.reason}" for slot in self._slots if slot.reason]
        hint = "mend the machine (`nvidia-smi`, `ray status`, memory; a worker needs that of one model), or lower "
        hint += "`workers.count`; then go on with `--resume`: the policies that ran are measured again"
        return RunError(f"no healthy worker is left: {why}", lines, hint)


def worker_error(cause: RayTaskError) -> SkipsearchError:
    """The error that a worker raised, as an error of ours."""
    inner = cause.cause
    return inner if isinstance(inner, SkipsearchError) else RunError("a worker failed", [first_line(inner)])
