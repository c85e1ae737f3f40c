"""The Ray cluster of a search: started here or reached at an address, what fits into it, and whether it still lives."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any
from urllib.parse import urlsplit

import ray
from ray._private import services

from ...policies.errors import RunError, StudyError
from ..space.space import Workers

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
CONNECT_SECONDS = 5.0  # until a host takes a connection
ANSWER_SECONDS = 20.0  # until what took it answers as Ray
SOCKET_PATH = 107  # characters that the path of a socket may have
SESSION_PATH = len("/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")


def start_ray(workers: Workers) -> bool:
    """Connect to a cluster, or start a local one; True where it was started here.

    Raises:
        StudyError: there is no cluster at the address.
        RunError: none starts on this machine.
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
    hush()
    return True


def unreachable(address: str) -> str | None:
    """Why nothing can be expected at an address; None where Ray may answer.

    Ray itself waits a minute and more for a cluster that is not there, and then ends the process.
    """
    if address == "local":
        return None
    if address == "auto":
        # The address that `ray start` left here, which stays when its cluster has gone.
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
        return None  # Ray's client has a patience of its own.
    asked = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        subprocess.run(asked, capture_output=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"what listens at port {port} does not answer as Ray in {ANSWER_SECONDS:g} s"
    return None


def start_local(tries: int = 3, **options: Any) -> None:
    """Start a cluster of this machine alone. Ray gives its daemons half a minute; a busy machine may need more tries.

    Raises:
        RunError: it does not start.
    """
    # A cluster of one user on one machine, for the time of one search, needs no token.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # Ray runs workers at a low priority, and what they time would be of whatever else runs.
    os.environ.setdefault("RAY_worker_niceness", "0")
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(folder) + SESSION_PATH > SOCKET_PATH:
        found = f"found {folder}, {len(folder)} characters, expected at most {SOCKET_PATH - SESSION_PATH}"
        hint = "set TMPDIR or RAY_TMPDIR to a shorter path, such as /tmp"
        raise RunError("the folder for temporary files has too long a path for Ray's sockets", [found], hint)
    for left in reversed(range(tries)):
        try:
            ray.init(address="local", include_dashboard=False, **QUIET, **options)
            hush()
            return
        except Exception as cause:  # Ray has no narrower one for daemons that are late.
            ray.shutdown()
            if not left:
                hint = f"see whether the machine is short of processors or memory, and what Ray says in {folder}/ray"
                raise RunError("Ray does not start on this machine", [first_line(cause)], hint) from None


def hush() -> None:
    """Keep Ray from printing, on standard output, a page of its state for each process that died.

    What a search does about it is said by the search. Ray has no option for this, so its own thread is stopped.
    """
    with contextlib.suppress(AttributeError):  # Another release may hold the two elsewhere; then it prints.
        worker: Any = ray._private.worker.global_worker
        worker.threads_stopped.set()
        worker.gcs_error_subscriber.close()


def dead_daemons() -> list[str]:
    """The names of Ray's own processes that were started here and have died; nothing can be run without them."""
    node = getattr(ray._private.worker, "_global_node", None)
    dead = node.dead_processes() if node is not None else []
    return sorted({str(kind) for kind, _ in dead} & {"raylet", "gcs_server"})


def stop_ray() -> None:
    """Leave the cluster, and stop it where it was started here.

    Without its daemons Ray would wait a minute for an answer and then end this process, so the rest of them is killed.
    """
    node = getattr(ray._private.worker, "_global_node", None)
    if node is not None and dead_daemons():
        node.kill_all_processes(check_alive=False, allow_graceful=False)
        return
    ray.shutdown()


def shape(workers: Workers) -> tuple[int, float]:
    """How many workers, and how many GPUs each.

    Raises:
        StudyError: not one worker fits into the cluster.
    """
    have = available()
    gpus = (1.0 if have["GPU"] else 0.0) if workers.gpus == "auto" else workers.gpus
    fits = places(workers.cpus, gpus)
    wanted = 1 if workers.count == "auto" else workers.count
    if fits < wanted:
        raise StudyError(
            f"the cluster has no room for {wanted} worker{'s' if wanted > 1 else ''}",
            [
                f"each needs {workers.cpus} CPU and {gpus:g} GPU",
                f"the cluster has {have['CPU']:g} CPU and {have['GPU']:g} GPU",
            ],
            "lower `workers.count`, `workers.cpus` or `workers.gpus`",
        )
    return (fits if workers.count == "auto" else workers.count), gpus


def places(cpus: int, gpus: float) -> int:
    """How many workers the nodes that are alive have room for."""
    return sum(room(node["Resources"], cpus, gpus) for node in ray.nodes() if node["Alive"])


def room(node: dict[str, float], cpus: int, gpus: float) -> int:
    """How many workers fit on one node."""
    by_cpu = int(node.get("CPU", 0.0) // cpus)
    return min(by_cpu, int(node.get("GPU", 0.0) / gpus)) if gpus else by_cpu


def available(patience: float = 10.0) -> dict[str, float]:
    """CPUs and GPUs of the cluster; a fresh cluster takes a moment to count them."""
    deadline = time.monotonic() + patience
    while True:
        have = ray.cluster_resources()
        if have.get("CPU") or time.monotonic() > deadline:
            return {"CPU": have.get("CPU", 0.0), "GPU": have.get("GPU", 0.0)}
        time.sleep(0.1)


def first_line(cause: BaseException) -> str:
    """The first line of an exception that says something."""
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__
