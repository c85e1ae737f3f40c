"""A pool without Ray: its workers take turns on one evaluator in this process."""

from collections import deque
from pathlib import Path
from typing import Any

from ..search.trial.outcome import Outcome
from ..search.workers.devices import is_timing, may_start
from ..search.workers.training import Training, require
from ..search.workers.worker import Job


class LocalPool:
    """Stands for `search.workers.ray_pool.Pool` in tests and benchmarks: same methods, same order for one worker.

    Args:
        evaluator: Anything with `measure`, such as a `PolicyEvaluator`.
        size: How many jobs may be submitted at a time, one for each worker.
        devices: How many devices the workers have in turn.

    Attributes:
        running: The jobs that are not done, in the order in which they were submitted.
        submitted: The number of the trial (-1 where it is of none) and the evaluators of each job, in order.
        kind: The kind of device that times are measured on; None, since all workers are this process.
    """

    kind: str | None = None

    def __init__(self, evaluator: Any, size: int = 1, devices: int = 1) -> None:
        self.evaluator, self.size, self.devices = evaluator, size, devices
        self.shares_device = devices < size
        self.running: deque[Job] = deque()
        self._workers: dict[int, int] = {}
        self.submitted: list[tuple[int, tuple[str, ...]]] = []
        self._training: Training | None = None

    def _worker(self, is_timed: bool) -> int | None:
        """A worker without a job whose device may take one; None where there is none."""
        busy = {self.worker_of(job): self._is_timed(job) for job in self.running}
        running = [(self._device(worker), timed) for worker, timed in busy.items()]
        return next((worker for worker in range(self.size)
                     if worker not in busy and may_start(self._device(worker), is_timed, running)), None)  # fmt: skip

    def worker_of(self, job: Job) -> int:
        """The worker of a job that was submitted."""
        return self._workers[id(job)]

    def _device(self, worker: int) -> str:
        return str(worker % self.devices)

    def _is_timed(self, job: Job) -> bool:
        return job.recover_to is None and any(is_timing(name) for name in job.names)

    @property
    def has_idle(self) -> bool:
        """True where a job may be submitted that measures no times."""
        return self._worker(is_timed=False) is not None

    @property
    def has_quiet(self) -> bool:
        """True where a job may be submitted that measures times."""
        return self._worker(is_timed=True) is not None

    @property
    def busy(self) -> int:
        """How many jobs were submitted and are not done."""
        return len(self.running)

    def start_workers(self) -> None:
        """The evaluator is loaded already."""

    def stop_workers(self) -> None:
        """Forget the jobs that are not done."""
        self.running.clear()

    def _trainings(self) -> Training:
        if self._training is None:
            self._training = Training(self.evaluator, require(self.evaluator.space.search.recover))
        return self._training

    def step_seconds(self, study: Path | None = None) -> float:
        """As of the Ray pool."""
        return self._trainings().step_seconds(study)

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            ValueError: no worker may take it.
        """
        worker = self._worker(self._is_timed(job))
        if worker is None:
            raise ValueError("no worker may take the job")
        self._workers[id(job)] = worker
        self.running.append(job)
        subject = getattr(job.tag, "subject", job.tag)
        self.submitted.append((getattr(subject, "number", -1), tuple(job.names)))

    def next(self, until: float | None = None) -> tuple[Job, Outcome] | None:
        """Do the job that has waited longest.

        Args:
            until: As of the Ray pool; a job is done whatever the time.
        """
        job = self.running.popleft()
        if job.recover_to is not None:
            return job, self._trainings().recover(job.policy, job.names, job.recover_to, job.steps)
        return job, self.evaluator.measure(job.policy, job.names, job.split, **job.options)
