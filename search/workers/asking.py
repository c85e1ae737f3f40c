"""Asks single workers for what is no job: statistics of the dense model, a ranking, the time of a training step."""

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from ...policies.wording import first_line
from .time_limits import DENSE_SECONDS
from .worker_slots import WorkerSlots, worker_error


def ask_one(slots: WorkerSlots, poll: Callable[[], Any], method: str, done: str, *arguments: Any) -> Any:
    """The result of a method of one worker, which is no job; another one takes the place of a worker that dies.

    Args:
        slots: The workers.
        poll: Waits for a worker to become idle.
        method: The method's name.
        done: What it does, for the message of a worker that died.
        arguments: Of the method.

    Raises:
        SkipsearchError: as the method raises it.
        RunError: no worker is left.
    """
    while True:
        while not slots.idle:
            poll()
        slot = slots.idle.popleft()
        try:
            found = ray.get(getattr(slot.actor, method).remote(*arguments), timeout=DENSE_SECONDS)
        except RayTaskError as cause:
            raise worker_error(cause) from None
        except RayError as cause:
            slots.handle_fault(slot, f"{done}: {first_line(cause)}")
            continue
        slots.idle.appendleft(slot)
        return found


def share_ranking(slots: WorkerSlots, content: bytes) -> None:
    """Give a ranking of channels to every worker, and to each that starts later.

    Args:
        slots: The workers.
        content: The ranking, as a file has it.

    Raises:
        PolicyMismatch: it does not fit the model.
    """
    slots.ranking = ray.put(content)
    given = [slot.actor.take_ranking.remote(slots.ranking) for slot in slots.live]
    try:
        # One that is loading its model takes the ranking once it has; it is not awaited here.
        ray.wait(given, num_returns=len(slots.idle), timeout=DENSE_SECONDS)
        ray.get(ray.wait(given, num_returns=len(given), timeout=0)[0])
    except RayTaskError as cause:
        raise worker_error(cause) from None
    except RayError:
        pass  # The process has died, which its next job finds out; the one in its place has the ranking.
