"""The place of one worker of a search, which holds one process after the other."""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from .prefix_affinity import RECENT, LayerKeys
from .worker import running_evaluator


@dataclass(eq=False)
class WorkerSlot:
    """The place of one worker, which holds one process after the other.

    Attributes:
        index: The worker's number.
        actor: The process; None before it starts, and where the worker was given up.
        placed: Ray's reference to the node and the machine of the process.
        node: The node of the process; None until a node has room for it.
        machine: Its machine; see `devices.machine_id`.
        since: When it began to wait for a node, to load its model, or its job, by the monotonic clock.
        faults: The policies, and loads of the model, on which the machine failed since the last measurement.
        reason: The last of these failures.
        measured: The policies that it measured lately.
        description: Its model and device, as `Worker.describe` returns them.
        joined: True for a worker of a node that joined the cluster, until it is told.
    """

    index: int
    actor: Any = None
    placed: Any = None
    node: str | None = None
    machine: str | None = None
    since: float = 0.0
    faults: set[str] = field(default_factory=set)
    reason: str = ""
    measured: deque[LayerKeys] = field(default_factory=lambda: deque(maxlen=RECENT))
    description: dict[str, Any] = field(default_factory=dict)
    joined: bool = False

    @property
    def age(self) -> float:
        """Seconds since the worker began what it is doing."""
        return time.monotonic() - self.since

    @property
    def device(self) -> str:
        """The id of its device; empty before it has loaded a model for the first time."""
        return str(self.description.get("device_id", ""))

    @property
    def activity(self) -> str:
        """What the worker does or last did, as an adverbial clause for an error message."""
        name = running_evaluator(self.actor)
        return f"while the evaluator '{name}' measured" if name else "while it applied a policy"
