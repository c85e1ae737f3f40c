"""Ray actors that each hold one loaded model; policies go out, measurements come back."""

import os
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError, RayTaskError

from ..evaluators.base import Measurement, Split
from ..policies.errors import RunError, SkipsearchError, StudyError
from ..policies.policy import Policy
from .affinity import RECENT, Steps, nearest, steps
from .bench import Bench
from .modelled import ExpectedTime
from .outcome import Outcome
from .preview import Preview
from .racing import Rival
from .space import Space, Workers

# A first start imports torch and loads a model, which on a cold disk takes minutes.
START_SECONDS = 1800
# So often, within a minute, a job is sent to a worker that Ray is about to start again, before it counts as lost.
REFUSALS = 300
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}


class Worker:
    """Measures policies on one model, which it loads when it is first needed, again after Ray restarted it."""

    def __init__(self, space: dict[str, Any], threads: int | None) -> None:
        self._space = Space.model_validate(space)
        self._threads = threads
        self._bench: Bench | None = None

    def _loaded(self) -> Bench:
        if self._bench is None:
            self._bench = Bench(self._space, self._threads)
        return self._bench

    def describe(self) -> dict[str, Any]:
        """Load the model, and say what it is and where."""
        return {**self._loaded().describe(), "pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()}

    def preview(self) -> Preview:
        """See the dense model for the rules to begin with; see `Bench.preview`."""
        return self._loaded().preview()

    def measure(self, policy: dict[str, Any], names: list[str], split: Split, **more: Any) -> Outcome:
        """Measure one policy; see `Bench.measure`."""
        return self._loaded().measure(Policy.model_validate(policy), names, split, **more)


@dataclass
class Job:
    """One policy to be measured.

    Attributes:
        policy: The policy.
        names: Which evaluators.
        split: The examples.
        dense: The dense model's figures, for the constraints.
        rivals: The front so far, to race against; None measures everything in full.
        known: What was measured of the policy before, on all or on some of the examples.
        until: How many examples are enough for now; None measures all.
        times: What is expected of its times, by metric.
        tag: Whatever the driver wants to know it by.
        attempts: Workers that were lost over it.
        refusals: How often it was sent to a worker that was not there again yet.
    """

    policy: Policy
    names: Sequence[str]
    split: Split = "search"
    dense: Mapping[str, Measurement] | None = None
    rivals: Sequence[Rival] | None = None
    known: Mapping[str, Measurement] = field(default_factory=dict)
    until: int | None = None
    times: Mapping[str, ExpectedTime] = field(default_factory=dict)
    tag: Any = None
    attempts: int = 0
    refusals: int = 0


@dataclass
class Pool:
    """The workers of a search.

    Args:
        space: The search space.
        seconds: How long the first load of the model may take.

    Raises:
        StudyError: the cluster cannot be reached, or has no room for a worker.
    """

    space: Space
    seconds: float = START_SECONDS
    _idle: list[int] = field(default_factory=list)
    _num_layers: int = 0
    _measured: dict[int, deque[Steps]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=RECENT)))
    _running: dict[Any, tuple[int, Job]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.owns_cluster = start_ray(self.space.workers)
        self.size, self.gpus = shape(self.space.workers)
        # One model on each GPU has the device for itself; on cores and shared GPUs they disturb each other's clock.
        self.shares_device = self.size > 1 and self.gpus < 1
        self.threads = None if self.gpus else self.space.workers.cpus
        self.hire()

    def hire(self) -> None:
        """Start the workers; each loads its model when it is first needed."""
        options = {"num_cpus": self.space.workers.cpus, "num_gpus": self.gpus, "max_restarts": -1}
        make = ray.remote(Worker).options(**options)
        plain = self.space.model_dump(by_alias=True)
        self._actors: list[Any] = [make.remote(plain, self.threads) for _ in range(self.size)]
        self._idle = list(range(self.size))

    def release(self) -> None:
        """Stop the workers, so that their devices are free."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._idle = [], []

    def describe(self) -> list[dict[str, Any]]:
        """Load the model in every worker.

        Raises:
            SkipsearchError: it cannot be loaded, or its evaluators cannot be set up.
            RunError: a worker died, or took too long.
        """
        asked = [actor.describe.remote() for actor in self._actors]
        found = list(self._answers(asked, "loaded the model", self.seconds))
        self._num_layers = found[0]["num_layers"]
        return found

    def preview(self) -> Preview:
        """See the dense model for the rules to begin with, on one worker.

        Raises:
            SkipsearchError: what they need cannot be found out.
            RunError: the worker died.
        """
        found: Preview = self._answers(self._actors[0].preview.remote(), "looked at the dense model")
        return found

    def _answers(self, asked: Any, doing: str, seconds: float | None = None) -> Any:
        try:
            return ray.get(asked, timeout=seconds)
        except RayTaskError as cause:
            raise self._reason(cause) from None
        except GetTimeoutError:
            hint = "see whether the cluster is busy with other work: `ray status`; or lower `workers.count`"
            raise RunError(f"not every worker had {doing} after {seconds:.0f} s", hint=hint) from None
        except RayError as cause:
            hint = "a worker needs the memory of one model: lower `workers.count`, or take a smaller dtype"
            raise RunError(f"a worker died while it {doing}", [first_line(cause)], hint) from None

    def _reason(self, cause: RayTaskError) -> Exception:
        inner = cause.cause
        return inner if isinstance(inner, SkipsearchError) else RunError("a worker failed", [first_line(inner)])

    @property
    def has_idle(self) -> bool:
        """True where a worker waits for a job."""
        return bool(self._idle)

    @property
    def busy(self) -> int:
        """How many jobs are running."""
        return len(self._running)

    def submit(self, job: Job) -> None:
        """Give a job to a worker that is idle."""
        wanted = steps(job.policy, self._num_layers)
        place = nearest(wanted, [self._measured[index] for index in self._idle])
        self._measured[self._idle[place]].append(wanted)
        self._send(self._idle.pop(place), job)

    def _send(self, index: int, job: Job) -> None:
        given = {"dense": job.dense, "rivals": job.rivals, "known": job.known, "until": job.until, "times": job.times}
        reference = self._actors[index].measure.remote(job.policy.document(), list(job.names), job.split, **given)
        self._running[reference] = (index, job)

    def next(self) -> tuple[Job, Outcome]:
        """Wait for a job to finish. A job whose worker is lost is tried once more, and then fails with the reason."""
        while True:
            done, _ = ray.wait(list(self._running), num_returns=1, timeout=0.5)
            if not done:
                continue
            index, job = self._running.pop(done[0])
            try:
                outcome = ray.get(done[0])
            except RayTaskError as cause:
                outcome = Outcome(failure=first_line(self._reason(cause)))
            except RayError as cause:  # Died, was killed for its memory, or its answer was lost.
                if is_refused(cause) and job.refusals < REFUSALS:
                    job.refusals += 1
                    time.sleep(60 / REFUSALS)
                    self._send(index, job)
                    continue
                job.attempts += 1
                if job.attempts < 2:
                    self._send(index, job)
                    continue
                outcome = Outcome(failure=f"its worker was lost twice: {first_line(cause)}")
            self._idle.append(index)  # Behind those that wait longer: not all that runs alone runs on the first.
            return job, replace(outcome, worker=f"worker-{index}")

    def close(self) -> None:
        """Stop the workers, and the cluster if it was started here."""
        self.release()
        if self.owns_cluster:
            ray.shutdown()


def is_refused(cause: RayError) -> bool:
    """Whether nothing was run of a job, because Ray has yet to start the worker again that was lost."""
    return isinstance(cause, ActorUnavailableError) and "actor is restarting" in str(cause)


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
    try:
        ray.init(address=address, **QUIET)
    except (ConnectionError, RuntimeError, ValueError) as cause:
        hint = "start one with `ray start --head`, or leave out `workers.address` to use this machine alone"
        raise StudyError(f"no Ray cluster answers at {address}", [first_line(cause)], hint) from None
    return True


def start_local(tries: int = 3, **options: Any) -> None:
    """Start a cluster of this machine alone. Ray gives its daemons half a minute; a busy machine may need more tries.

    Raises:
        RunError: it does not start.
    """
    # A cluster of one user on one machine, for the time of one search, needs no token.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # Ray runs workers at a low priority, and what they time would be of whatever else runs.
    os.environ.setdefault("RAY_worker_niceness", "0")
    for left in reversed(range(tries)):
        try:
            ray.init(address="local", include_dashboard=False, **QUIET, **options)
            return
        except Exception as cause:  # Ray has no narrower one for daemons that are late.
            ray.shutdown()
            if not left:
                hint = "see whether the machine is short of processors or memory, and what Ray says in /tmp/ray"
                raise RunError("Ray does not start on this machine", [first_line(cause)], hint) from None


def shape(workers: Workers) -> tuple[int, float]:
    """How many workers, and how many GPUs each.

    Raises:
        StudyError: not one worker fits into the cluster.
    """
    have = available()
    gpus = (1.0 if have["GPU"] else 0.0) if workers.gpus == "auto" else workers.gpus
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits = sum(room(node, workers.cpus, gpus) for node in nodes)
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
