"""Starts the worker processes of a search, replaces those that fail, and gives up those that fail repeatedly.

Nodes may join and leave meanwhile. The process of a node that leaves is started again where there is room, at once or
when a node joins; a node that joins beyond that gets further workers, up to the number that the space asks for.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from ...policies.errors import RunError, SkipsearchError
from ...policies.wording import first_line
from ..space.space import Space
from ..trial.failures import fault_of
from .admission import Admission
from .cluster import is_alive, node_text, worker_capacity
from .prefix_affinity import RECENT
from .worker import Worker
from .worker_slot import WorkerSlot

LOAD_SECONDS = 1800.0  # the first start of a worker imports torch and loads a model, minutes on a slow disk
MAX_FAULTS = 3  # faults of the machine in a row after which a worker is given up
NODE_SECONDS = 60.0  # how long a cluster without room for a worker may take to get a new node
JOIN_SECONDS = 2.0  # how often nodes that joined are looked for
NODE_LABEL = "ray.io/node-id"  # which Ray gives every node


class WorkerSlots:
    """The workers of a search, by what they do.

    Args:
        space: The search space.
        count: The number of workers that start.
        limit: The number of workers up to which nodes that join get further ones; None sets none.
        gpus: The GPUs of each worker.
        threads: The threads that torch may use in each worker; None leaves that to torch.
        load_seconds: How long a worker may take to load its model.
        admission: Decides which workers are used.
        note: Tells of nodes and workers that join, leave or are left out; None for nothing.

    Attributes:
        loading: The workers that load their model, or wait for a node, by Ray's reference to the result.
        idle: The workers without a job, longest idle first.
        ranking: Ray's reference to the search's ranking of channels, which every new process gets; None for none.
    """

    ranking: Any = None

    def __init__(
        self,
        space: Space,
        count: int,
        limit: int | None,
        gpus: float,
        threads: int | None,
        load_seconds: float,
        admission: Admission,
        note: Callable[[str], None] | None,
    ) -> None:
        self._space, self._limit, self._gpus, self._threads = space, limit, gpus, threads
        self._load_seconds, self._admission = load_seconds, admission
        self._note = note or (lambda text: None)
        self._slots = [WorkerSlot(index) for index in range(count)]
        self._left_out: set[str] = set()
        self._departed: set[str] = set()
        self._room, self._looked = self._capacity(), time.monotonic()
        self.loading: dict[Any, WorkerSlot] = {}
        self.idle: deque[WorkerSlot] = deque()

    def _capacity(self) -> int:
        """How many workers the nodes have room for that are not left out."""
        return worker_capacity(self._space.workers.cpus, self._gpus, self._left_out)

    @property
    def live(self) -> list[WorkerSlot]:
        """The workers that have a process, or wait for a node to start one."""
        return [slot for slot in self._slots if slot.actor is not None]

    @property
    def usable(self) -> list[WorkerSlot]:
        """The workers that were not given up, also while their processes are stopped."""
        return [slot for slot in self._slots if len(slot.faults) < MAX_FAULTS]

    @property
    def is_starting(self) -> bool:
        """True while a worker loads its model, has not failed, and has not waited long for a node."""
        return any(
            not slot.reason and (slot.node is not None or slot.age < NODE_SECONDS) for slot in self.loading.values()
        )

    def start_all(self) -> None:
        """Start a process for each worker that has none and was not given up."""
        for slot in self.usable:
            if slot.actor is None:
                self._start(slot)

    def _start(self, slot: WorkerSlot) -> None:
        # Ray's own restarts would wait without limit where no node has room for the process.
        options: dict[str, Any] = {
            "num_cpus": self._space.workers.cpus, "num_gpus": self._gpus, "max_restarts": 0
        }  # fmt: skip
        if self._left_out:
            options["label_selector"] = {NODE_LABEL: f"!in({','.join(sorted(self._left_out))})"}
        worker = ray.remote(Worker).options(**options)
        slot.actor = worker.remote(self._space.model_dump(by_alias=True), self._threads, self.ranking)
        slot.placed, slot.node, slot.machine = slot.actor.place.remote(), None, None
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
        """The workers whose process runs on a node, without the one with this number."""
        return [slot for slot in self.live if slot.node is not None and slot.index != index]

    def finish_loading(self, reference: Any) -> bool:
        """Make a worker idle that has loaded its model, or replace one that failed to.

        Args:
            reference: Ray's reference to the result of the load.

        Returns:
            True where the worker is idle now.

        Raises:
            SkipsearchError: the model cannot be loaded, or an evaluator cannot be set up, and no other worker could.
            RunError: no worker is left.
        """
        self._find_placed()
        slot = self.loading.pop(reference)
        try:
            slot.description = ray.get(reference)
        except RayTaskError as cause:
            error = cause.cause
            if fault_of(error) != "machine":
                if not self._admission.is_decided or self.live == [slot]:
                    raise worker_error(cause) from None
                # Other workers have loaded the model, so it is this node that lacks something.
                self._leave_out(slot, f"it could not load the model: {first_line(error)}")
                return False
            self.handle_fault(slot, f"could not load the model: {first_line(error)}")
            return False
        except RayError as cause:
            self.handle_fault(slot, f"ended while it loaded the model: {first_line(cause)}")
            return False
        return self._admit(slot, joins=True)

    def decide(self) -> None:
        """Decide which of the first workers are used; those that join later are compared with them.

        Raises:
            StudyError: none of them can be used.
        """
        if self._admission.is_decided:
            return
        first = sorted(self.idle, key=lambda slot: slot.index)
        self._admission.decide([slot.description for slot in first])
        self.idle.clear()
        # Those that are used go first, so that a node with one of them is not left out as a whole.
        for slot in sorted(first, key=lambda slot: self._admission.refusal(slot.description, joins=False) is not None):
            self._admit(slot, joins=False)

    def _admit(self, slot: WorkerSlot, joins: bool) -> bool:
        """Make a worker idle, or leave it out; True where it is idle now."""
        reason = self._admission.refusal(slot.description, joins)
        if reason is not None:
            self._leave_out(slot, reason)
            return False
        self.idle.append(slot)
        if slot.joined:
            slot.joined = False
            self._note(f"worker-{slot.index} has joined on {node_text(slot.node)}")
        return True

    def _leave_out(self, slot: WorkerSlot, reason: str) -> None:
        """Stop a worker, and start no other one on its node where no other worker has loaded the model there."""
        self._note(f"worker-{slot.index} on {node_text(slot.node)} is left out: {reason}")
        self._stop(slot)
        self._slots.remove(slot)
        loaded = [other for other in self.live if other not in self.loading.values()]
        if slot.node is not None and all(other.node != slot.node for other in loaded):
            self._left_out.add(slot.node)
            self._room = self._capacity()

    def look_for_nodes(self) -> None:
        """Start further workers on nodes that joined, up to the limit."""
        if time.monotonic() - self._looked < JOIN_SECONDS:
            return
        self._looked, before = time.monotonic(), self._room
        self._room = self._capacity()
        free = self._room - len(self.live)  # A worker that waits for a node gets the room first.
        further = min(self._room - before, free)
        if self._limit is not None:
            further = min(further, self._limit - len(self.live))
        for _ in range(further):
            slot = WorkerSlot(1 + max(one.index for one in self._slots), joined=True)
            self._slots.append(slot)
            self._start(slot)

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
        slot.reason = reason
        if slot.node is None or is_alive(slot.node):
            slot.faults.add(fingerprint or f"load {len(slot.faults)}")
        else:
            self._leave_node(slot.node)
        self._stop(slot)
        if len(slot.faults) < MAX_FAULTS:
            self._start(slot)
        if not self.live:
            raise self._none_left("each failed several times in a row")

    def _leave_node(self, node: str) -> None:
        """Move the idle workers of a node that has left to other nodes, which counts as no fault of the workers."""
        for slot in [slot for slot in self.idle if slot.node == node]:
            self.idle.remove(slot)
            self.replace(slot)
        if node not in self._departed:
            self._departed.add(node)
            self._note(f"{node_text(node)} has left the cluster; its workers start elsewhere where there is room")

    def check_loading(self, is_running: bool) -> None:
        """Give up workers that load their model for too long, or that no node has room for.

        Args:
            is_running: True where a job is running.

        Raises:
            RunError: no worker is left.
        """
        self._find_placed()
        late = {
            reference: slot
            for reference, slot in self.loading.items()
            if slot.node is not None and slot.age > self._load_seconds
        }
        for reference, slot in late.items():
            del self.loading[reference]
            slot.faults |= {f"slow {number}" for number in range(MAX_FAULTS)}
            self.handle_fault(slot, f"had not loaded the model after {self._load_seconds:.0f} s")
        if not (self.idle or is_running or any(slot.node for slot in self.loading.values())):
            self._check_waiting([*self.loading.values()])

    def _find_placed(self) -> None:
        """Note which processes run on a node by now, and begin to load the model."""
        waiting = {slot.placed: slot for slot in self.loading.values() if slot.node is None}
        if not waiting:
            return
        for reference in ray.wait([*waiting], num_returns=len(waiting), timeout=0)[0]:
            slot = waiting[reference]
            with suppress(RayError):  # The process has died, which its load tells too.
                slot.node, slot.machine = (ray.get(reference)[key] for key in ("node", "machine"))
                slot.since = time.monotonic()

    def _check_waiting(self, waiting: Sequence[WorkerSlot]) -> None:
        """End the search where all workers have waited for a node for too long.

        Raises:
            RunError: no worker is left.
        """
        if not waiting or min(slot.age for slot in waiting) <= NODE_SECONDS:
            return
        if not self._capacity():
            for slot in waiting:
                slot.reason = slot.reason or "its node is gone"
            raise self._none_left("no node has room for a worker any more")
        if min(slot.age for slot in waiting) > self._load_seconds:
            raise self._none_left(f"other work has used the nodes for {self._load_seconds:.0f} s")

    def _none_left(self, why: str) -> RunError:
        lines = [f"worker-{slot.index}: {slot.reason}" for slot in self._slots if slot.reason]
        hint = "mend the machine (`nvidia-smi`, `ray status`, memory; a worker needs that of one model), or lower "
        hint += "`workers.count`; then go on with `--resume`: the policies that ran are measured again"
        return RunError(f"no healthy worker is left: {why}", lines, hint)


def worker_error(cause: RayTaskError) -> SkipsearchError:
    """The error that a worker raised, as an error of ours."""
    inner = cause.cause
    return inner if isinstance(inner, SkipsearchError) else RunError("a worker failed", [first_line(inner)])
