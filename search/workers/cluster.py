"""Connects to the Ray cluster of a search or starts one on this machine, and counts the workers that fit into it."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

import ray
from ray._private import services

from ...policies.errors import RunError, StudyError
from ...policies.wording import first_line
from ..space.search_settings import Workers

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
CONNECT_SECONDS = 5.0  # how long a host may take to accept a connection
ANSWER_SECONDS = 20.0  # how long it may then take to answer as Ray
MAX_SOCKET_PATH = 107  # characters in the path of a Unix socket
SESSION_PATH = len("/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")


def start_ray(workers: Workers) -> bool:
    """Connect to the cluster at an address, or start a local one where no address is set.

    Args:
        workers: The settings of the workers; without an address, `RAY_ADDRESS` counts.

    Returns:
        True where a cluster was started.

    Raises:
        StudyError: no cluster answers at the address.
        RunError: no cluster starts on this machine.
    """
    if ray.is_initialized():
        return False
    address = workers.address or os.environ.get("RAY_ADDRESS")
    if not address:
        start_local()
        return True
    reason = unreachable(address)
    if reason is None:
        try:
            ray.init(address=address, **QUIET)
        except (ConnectionError, RuntimeError, ValueError) as cause:
            reason = first_line(cause)
    if reason is not None:
        hint = "start one with `ray start --head`, or leave out `workers.address` to use this machine alone"
        raise StudyError(f"no Ray cluster answers at {address}", [reason], hint)
    silence_crash_reports()
    return True


def unreachable(address: str) -> str | None:
    """Why no cluster can answer at an address; None where one may.

    Ray itself waits more than a minute for a cluster that is not there, and then ends the process.
    """
    if address == "local":
        return None
    if address == "auto":
        # Ray keeps the address of the last `ray start` on this machine, also after that cluster has stopped.
        found = services.find_bootstrap_address(None) or next(iter(services.find_gcs_addresses()), None)
        return unreachable(found) if found else "`ray start` has started none on this machine"
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError as cause:
        return f"found {address!r}: {cause}"
    if not host or port is None:
        return f"found {address!r}, expected a host and a port such as 10.0.0.1:6379"
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as cause:
        return f"no connection to {host}, port {port}: {cause.strerror or cause}"
    if parts.scheme:
        return None  # The Ray client behind `ray://` has a timeout of its own.
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        subprocess.run(command, capture_output=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"what listens at port {port} does not answer as Ray in {ANSWER_SECONDS:g} s"
    return None


def start_local(tries: int = 3, **options: Any) -> None:
    """Start a cluster on this machine.

    Args:
        tries: How often to try. Ray gives its daemons half a minute to start, which a busy machine may exceed.
        options: Further options of `ray.init`.

    Raises:
        RunError: it does not start.
    """
    # The cluster belongs to one user, on one machine, for one search, so it needs no token.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # By default Ray lowers the priority of workers, and other processes would disturb their timing.
    os.environ.setdefault("RAY_worker_niceness", "0")
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(folder) + SESSION_PATH > MAX_SOCKET_PATH:
        found = f"found {folder}, {len(folder)} characters, expected at most {MAX_SOCKET_PATH - SESSION_PATH}"
        hint = "set TMPDIR or RAY_TMPDIR to a shorter path, such as /tmp"
        raise RunError("the folder for temporary files has too long a path for Ray's sockets", [found], hint)
    for tries_left in reversed(range(tries)):
        try:
            ray.init(address="local", include_dashboard=False, **QUIET, **options)
            silence_crash_reports()
            return
        except Exception as cause:  # Ray raises a bare Exception when its daemons do not start in time.
            ray.shutdown()
            if not tries_left:
                hint = f"check whether processors or memory are short, and read Ray's log in {folder}/ray"
                raise RunError("Ray does not start on this machine", [first_line(cause)], hint) from None


def silence_crash_reports() -> None:
    """Stop the thread of Ray that prints a page of state to standard output for each process that died.

    The search reports such deaths itself, and Ray has no option to silence the thread.
    """
    with contextlib.suppress(AttributeError):  # Both attributes are private; without them Ray prints its reports.
        worker: Any = ray._private.worker.global_worker
        worker.threads_stopped.set()
        worker.gcs_error_subscriber.close()


def dead_daemons() -> list[str]:
    """The names of Ray's daemons that were started here and have died; Ray can run nothing without them."""
    node = getattr(ray._private.worker, "_global_node", None)
    dead = node.dead_processes() if node is not None else []
    return sorted({str(kind) for kind, _ in dead} & {"raylet", "gcs_server"})


def stop_ray() -> None:
    """Disconnect from the cluster, and stop it where it was started here."""
    node = getattr(ray._private.worker, "_global_node", None)
    if node is not None and dead_daemons():
        # `ray.shutdown` would wait a minute for the dead daemons and then end this process.
        node.kill_all_processes(check_alive=False, allow_graceful=False)
        return
    ray.shutdown()


def plan_workers(workers: Workers) -> tuple[int, float]:
    """Resolve `auto` in the settings of the workers by what the cluster has.

    Returns:
        The number of workers, and the GPUs of each.

    Raises:
        StudyError: the cluster has no room for the workers.
    """
    resources = cluster_resources()
    gpus = (1.0 if resources["GPU"] else 0.0) if workers.gpus == "auto" else workers.gpus
    capacity = worker_capacity(workers.cpus, gpus)
    needed = 1 if workers.count == "auto" else workers.count
    if capacity < needed:
        raise StudyError(
            f"the cluster has no room for {needed} worker{'s' if needed > 1 else ''}",
            [
                f"each needs {workers.cpus} CPU and {gpus:g} GPU",
                f"the cluster has {resources['CPU']:g} CPU and {resources['GPU']:g} GPU",
            ],
            "lower `workers.count`, `workers.cpus` or `workers.gpus`",
        )
    return (capacity if workers.count == "auto" else workers.count), gpus


def worker_capacity(cpus: int, gpus: float, left_out: Collection[str] = ()) -> int:
    """How many workers fit on the nodes that are alive, without those left out."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in left_out]
    return sum(node_capacity(node["Resources"], cpus, gpus) for node in nodes)


def node_text(node: str | None) -> str:
    """A node of the cluster, by its address and id, as messages name it."""
    addresses = {one["NodeID"]: one["NodeManagerAddress"] for one in ray.nodes()}
    return f"node {addresses.get(node, '')} {(node or '')[:12]}"


def is_alive(node: str) -> bool:
    """True where the node with this id belongs to the cluster still."""
    return any(one["Alive"] for one in ray.nodes() if one["NodeID"] == node)


def node_capacity(resources: dict[str, float], cpus: int, gpus: float) -> int:
    """How many workers fit on one node."""
    by_cpu = int(resources.get("CPU", 0.0) // cpus)
    return min(by_cpu, int(resources.get("GPU", 0.0) / gpus)) if gpus else by_cpu


def cluster_resources(timeout: float = 10.0) -> dict[str, float]:
    """The CPUs and GPUs of the cluster; a new cluster takes a moment to report them."""
    deadline = time.monotonic() + timeout
    while True:
        found = ray.cluster_resources()
        if found.get("CPU") or time.monotonic() > deadline:
            return {"CPU": found.get("CPU", 0.0), "GPU": found.get("GPU", 0.0)}
        time.sleep(0.1)
