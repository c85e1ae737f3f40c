"""A pool of Ray workers that each hold one loaded model; policies are submitted, and outcomes come back.

Faults of the machine are handled here. The job of a worker that died, or whose device broke, goes to another worker;
`WorkerSlots` replaces the process.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from ...policies.errors import RunError, TaskError
from ...policies.wording import first_line
from ..baselines.dense_stats import DenseStats
from ..space.space import Space
from ..trial.outcome import Outcome
from .admission import Admission
from .asking import ask_one, share_ranking
from .cluster import dead_daemons, plan_workers, start_ray, stop_ray, worker_capacity
from .devices import is_timing, may_start
from .prefix_affinity import layer_keys, longest_prefix
from .time_limits import DENSE_SECONDS
from .worker import Job
from .worker_slot import WorkerSlot
from .worker_slots import LOAD_SECONDS, WorkerSlots, worker_error

MAX_LOST_WORKERS = 4  # workers lost over one policy, after which the policy is left for the next start of the search
POLL_SECONDS = 0.5  # how often hung jobs and dead processes are looked for


class Pool:
    """The workers of a search.

    Args:
        space: The search space.
        load_seconds: How long a worker may take to load its model.
        kind: The kind of device on which the study's times were measured so far; None for a new study.
        note: Tells of nodes and workers that join, leave or are left out; None for nothing.

    Raises:
        StudyError: no cluster can be reached, or it has no room for the workers.

    Attributes:
        gpus: The GPUs of each worker.
        capacity: How many workers the cluster has room for.
        threads: The threads that torch may use in each worker; None leaves that to torch.
        owns_cluster: True where the cluster was started for this pool.
    """

    def __init__(
        self,
        space: Space,
        load_seconds: float = LOAD_SECONDS,
        kind: str | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self.owns_cluster = start_ray(space.workers)
        count, self.gpus = plan_workers(space.workers)
        self.capacity = worker_capacity(space.workers.cpus, self.gpus)
        self.threads = None if self.gpus else space.workers.cpus
        self._num_layers = 0
        self._timing = {name for name in space.evaluate if is_timing(name)}
        self._admission = Admission(space, kind)
        limit = None if space.workers.count == "auto" else count
        self._slots = WorkerSlots(
            space, count, limit, self.gpus, self.threads, load_seconds, self._admission, note
        )  # fmt: skip
        self._running: dict[Any, tuple[WorkerSlot, Job]] = {}
        self._retries: deque[Job] = deque()

    @property
    def size(self) -> int:
        """The number of workers, which changes with the nodes of the cluster."""
        return len(self._slots.usable)

    @property
    def kind(self) -> str | None:
        """The kind of device of all workers; None where no times are measured, so that any will do."""
        return self._admission.kind

    @property
    def devices(self) -> int:
        """The number of devices that workers measure on, as far as the workers are loaded."""
        return len({slot.device for slot in self._slots.usable if slot.device})

    @property
    def shares_device(self) -> bool:
        """True where workers share processor cores or a GPU, so that they disturb each other's timing."""
        return self.devices < sum(bool(slot.device) for slot in self._slots.usable)

    def start_workers(self) -> None:
        """Start a process for each worker that has none; each loads its model."""
        self._slots.start_all()

    def stop_workers(self) -> None:
        """Stop the workers and forget their jobs, so that their devices are free."""
        self._slots.stop_all()
        self._running = {}
        self._retries.clear()

    def describe(self) -> list[dict[str, Any]]:
        """Load the model in every worker; a worker that fails meanwhile may join later.

        Returns:
            The description of each worker that has loaded its model; see `Worker.describe`.

        Raises:
            SkipsearchError: the model cannot be loaded, or its evaluators cannot be set up.
            StudyError: the study's times were measured on a device that no worker has.
            RunError: no worker starts.
        """
        self.start_workers()
        while self._slots.is_starting or not self._slots.idle:
            self._poll()
        self._slots.decide()
        self._num_layers = self._slots.idle[0].description["num_layers"]
        return [slot.description for slot in sorted(self._slots.idle, key=lambda slot: slot.index)]

    def probe_dense(self) -> DenseStats:
        """Measure the statistics of the dense model that the baselines need, on one worker.

        Raises:
            SkipsearchError: they cannot be measured.
            RunError: no worker is left.
        """
        stats: DenseStats = self._ask_one("probe_dense", "looked at the dense model")
        return stats

    def step_seconds(self, study: Path | None = None) -> float:
        """The seconds of an optimiser step of `search.recover` with the dense model, measured on one worker.

        Args:
            study: The folder of the study, which the worker must see; None without a study.

        Raises:
            SkipsearchError: the model cannot be trained, or the training data has mistakes.
            RunError: no worker is left, or the worker does not see the folder.
        """
        return float(self._ask_one("step_seconds", "timed a training step", study))

    def rank_widths(self) -> bytes:
        """Rank channels and heads of the model by energy, on one worker; see `ranking.make_ranking`.

        Raises:
            SkipsearchError: they cannot be ranked.
            RunError: no worker is left.
        """
        content: bytes = self._ask_one("rank_widths", "ranked channels and heads")
        return content

    def share_ranking(self, content: bytes) -> None:
        """Give a ranking of channels to every worker, and to each that starts later.

        Raises:
            PolicyMismatch: it does not fit the model.
        """
        share_ranking(self._slots, content)

    def _ask_one(self, method: str, done: str, *arguments: Any) -> Any:
        return ask_one(self._slots, self._poll, method, done, *arguments)

    def memory(self) -> list[dict[str, float]]:
        """The memory of each idle worker, in bytes; see `PolicyEvaluator.memory`."""
        references = [slot.actor.memory.remote() for slot in self._slots.idle]
        return [dict(found) for found in ray.get(references, timeout=DENSE_SECONDS)]

    @property
    def has_idle(self) -> bool:
        """True where a worker waits for a job, and no times are being measured on its device."""
        return any(self._may_take(slot, is_timed=False) for slot in self._slots.idle)

    @property
    def has_quiet(self) -> bool:
        """True where a worker waits for a job, and its device does nothing else, so that times can be measured."""
        return any(self._may_take(slot, is_timed=True) for slot in self._slots.idle)

    def _is_timed(self, job: Job) -> bool:
        """True for a job that measures times; training and what follows it measures none."""
        return job.recover_to is None and not self._timing.isdisjoint(job.names)

    def _may_take(self, slot: WorkerSlot, is_timed: bool) -> bool:
        """Whether an idle worker's device may take a job now: one that measures times runs there alone.

        A worker that loads its model keeps the processor of its machine busy too.
        """
        if is_timed and any(one.machine == slot.device for one in self._slots.loading.values()):
            return False
        running = ((used.device, self._is_timed(job)) for used, job in self._running.values())
        return may_start(slot.device, is_timed, running)

    @property
    def busy(self) -> int:
        """How many jobs are running, or wait for another worker after theirs was lost."""
        return len(self._running) + len(self._retries)

    @property
    def jobs(self) -> list[tuple[str, Job, float]]:
        """What is being measured: the worker, its job, and for how many seconds."""
        return [(f"worker-{slot.index}", job, slot.age) for slot, job in self._running.values()]

    def submit(self, job: Job) -> None:
        """Give a job to the idle worker that has measured the most similar policy.

        There must be one: see `has_idle`, and for a job that measures times `has_quiet`.
        """
        keys = layer_keys(job.policy, self._num_layers)
        able = [slot for slot in self._slots.idle if self._may_take(slot, self._is_timed(job))]
        slot = able[longest_prefix(keys, [one.measured for one in able])]
        self._slots.idle.remove(slot)
        slot.measured.append(keys)
        self._send(slot, job)

    def _send(self, slot: WorkerSlot, job: Job) -> None:
        policy, names = job.policy.document(), list(job.names)
        if job.recover_to is not None:
            reference = slot.actor.recover.remote(policy, names, job.recover_to, job.steps)
        else:
            reference = slot.actor.measure.remote(policy, names, job.split, job.policy.folder, **job.options)
        slot.since = time.monotonic()
        self._running[reference] = (slot, job)

    def next(self, until: float | None = None) -> tuple[Job, Outcome] | None:
        """Wait for a job to finish.

        A job whose worker is lost, or reports a fault of its machine, is given to another worker.

        Args:
            until: When the wait ends, by the monotonic clock; None waits without limit.

        Returns:
            The job and its outcome, which reports a fault of the machine only after several workers failed on it; None
            where another worker has become idle, or the wait has ended.

        Raises:
            RunError: no worker is left.
            TaskError: a task is wrong in a way that makes every policy fail.
        """
        while until is None or time.monotonic() < until:
            self._retry()
            idle, loading = len(self._slots.idle), len(self._slots.loading)
            found = self._poll()
            if found is not None:
                return found
            # A load that ends, in whatever way, may leave a device quiet.
            if len(self._slots.idle) > idle or len(self._slots.loading) < loading:
                return None
        return None

    def _retry(self, new_jobs_first: bool = False) -> None:
        """Give jobs whose worker was lost to other workers.

        A job that lost several workers runs while no other job does, so that a further loss is certainly its own.

        Args:
            new_jobs_first: Keep the idle workers for new jobs where no other worker is left for a lost job, or the job
                lost several: the outcome of a new job shows whether the policy or the machine is to blame.
        """
        for _ in range(len(self._retries)):
            job = self._retries.popleft()
            others = self._slots.others(job.avoid)
            able = [
                slot
                for slot in self._slots.idle
                if (slot in others or not others) and self._may_take(slot, self._is_timed(job))
            ]
            lost_several = job.lost_workers > 1
            waits = (new_jobs_first and (lost_several or not others)) or (lost_several and self._running)
            if not able or waits:
                self._retries.append(job)
                continue
            self._slots.idle.remove(able[0])
            self._send(able[0], job)

    def _poll(self) -> tuple[Job, Outcome] | None:
        """Handle one event: a worker has loaded its model, a job has finished, or something died or hangs.

        Returns:
            A finished job and its outcome; None where none has finished.
        """
        if dead := dead_daemons():
            hint = "see whether the machine is short of memory; go on with `--resume`"
            raise RunError("Ray has died on this machine", [f"its process {name} has ended" for name in dead], hint)
        self._slots.look_for_nodes()
        awaited = [*self._slots.loading, *self._running]
        done = ray.wait(awaited, num_returns=1, timeout=POLL_SECONDS)[0] if awaited else []
        for reference in done:
            if reference in self._running:
                return self._finish(reference)
            if self._slots.finish_loading(reference):
                self._retry(new_jobs_first=True)
        self._slots.check_loading(bool(self._running))
        overdue = [ref for ref, (slot, job) in self._running.items() if job.seconds and slot.age > job.seconds]
        return self._end_hung(overdue[0]) if overdue else None

    def _finish(self, reference: Any) -> tuple[Job, Outcome] | None:
        """Take the outcome of a job; None where the job is given to another worker."""
        slot, job = self._running.pop(reference)
        try:
            outcome: Outcome = ray.get(reference)
        except RayTaskError as cause:
            if isinstance(cause.cause, TaskError):
                raise cause.cause from None
            outcome = Outcome(failure=first_line(worker_error(cause)), traceback=str(cause))
        except RayError:  # The process died or was killed for its memory, or its result was lost.
            doing = slot.activity if job.recover_to is None else "while it trained a policy, or measured a trained one"
            return self._lose(slot, job, f"its process ended {doing}")
        if outcome.fault == "machine":
            return self._lose(slot, job, outcome.failure or "")
        # At the end of the queue, so that jobs that run alone are spread over all workers.
        self._slots.idle.append(slot)
        if outcome.fault == "memory" and not job.out_of_memory:
            job.out_of_memory, job.avoid = True, slot.index
            self._retries.append(job)
            self._retry(new_jobs_first=True)
            return None
        slot.faults = set()
        self._retry(new_jobs_first=True)
        return job, replace(outcome, worker=f"worker-{slot.index}")

    def _lose(self, slot: WorkerSlot, job: Job, reason: str) -> tuple[Job, Outcome] | None:
        """Replace a worker that failed on a job, and give the job to another one, or give it up."""
        self._slots.handle_fault(slot, reason, job.policy.fingerprint)
        job.lost_workers, job.avoid = job.lost_workers + 1, slot.index
        if job.lost_workers < MAX_LOST_WORKERS:
            self._retries.append(job)
            return None
        text = f"{job.lost_workers} workers were lost over it, the last: {reason}"
        return job, Outcome(failure=text, fault="machine", worker=f"worker-{slot.index}")

    def _end_hung(self, reference: Any) -> tuple[Job, Outcome]:
        """Fail a job that exceeds its time limit, and replace its worker, which cannot be interrupted."""
        slot, job = self._running.pop(reference)
        changed = ", ".join(f"{index}: {choice.label}" for index, choice in job.policy.canonical().layers.items())
        text = f"no answer for {job.seconds:.0f} s (workers.timeout) {slot.activity} the policy {changed or 'dense'}"
        outcome = Outcome(failure=text, seconds={"total": slot.age}, worker=f"worker-{slot.index}")
        self._slots.replace(slot)
        return job, outcome

    def close(self) -> None:
        """Stop the workers, and the cluster where it was started for them."""
        self.stop_workers()
        if self.owns_cluster:
            stop_ray()
