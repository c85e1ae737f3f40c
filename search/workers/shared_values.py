"""Pixels and image features in Ray's object store, which all workers of a machine read without a copy."""

from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

NAME = "skipsearch-values"
ANSWER_SECONDS = 30.0  # how long the directory may take, before a worker goes on without it
STORE_SHARE = 0.5  # of the object store: the rest is for jobs and their results, and what does not fit goes to disk


class Directory:
    """Where the shared values of a machine are, by their keys; one process a machine, which owns them.

    Args:
        most_bytes: What all values together may take.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._used_bytes = most_bytes, 0
        self._references: dict[str, Any] = {}

    def find(self, key: str) -> Any:
        """Ray's reference to a value, in a list so that Ray does not follow it; None where there is none."""
        return [self._references[key]] if key in self._references else None

    def keep(self, key: str, value: Any) -> Any:
        """Store a value, unless another process was faster; returns as `find`, None where there is no room."""
        size = sum(array.nbytes for array in value[1])
        if key not in self._references and self._used_bytes + size <= self._most_bytes:
            # Stored from here, because the objects of a worker go when it dies.
            self._references[key] = ray.put(value)
            self._used_bytes += size
        return self.find(key)


class RayStore:
    """The shared values of this machine, from the side of a worker; see `SharedStore`.

    Args:
        subject: Describes the model; values of another one have other keys.
    """

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._directory: Any = None

    def find(self, key: str) -> Any:
        """A value, in shared memory; None where no process has kept it, or it was lost."""
        return self._ask("find", key)

    def keep(self, key: str, value: Any) -> Any:
        """Keep a value; returns it in shared memory, or None where there is no room."""
        return self._ask("keep", key, value)

    def _ask(self, method: str, key: str, *more: Any) -> Any:
        try:
            if self._directory is None:
                self._directory = directory_here()
            asked = getattr(self._directory, method).remote(f"{self._subject} {key}", *more)
            found = ray.get(asked, timeout=ANSWER_SECONDS)
            return None if found is None else ray.get(found[0], timeout=ANSWER_SECONDS)
        except RayError:
            # The next call finds the directory that another worker has started meanwhile, or starts one.
            self._directory = None
            return None


def directory_here() -> Any:
    """The directory of this machine, which the first worker that asks starts."""
    node = ray.get_runtime_context().get_node_id()
    room = next(one["Resources"].get("object_store_memory", 0) for one in ray.nodes() if one["NodeID"] == node)
    options = {
        "name": f"{NAME}-{node}",
        "get_if_exists": True,
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
    }
    return ray.remote(Directory).options(**options).remote(int(STORE_SHARE * room))
