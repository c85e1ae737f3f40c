"""A pool without Ray: its workers take turns on one evaluator in this process."""

from collections import deque
from pathlib import Path
from typing import Any

from ..search.trial.outcome import Outcome
from ..search.workers.training import Training, require
from ..search.workers.worker import Job


class LocalPool:
    """Stands for `search.workers.ray_pool.Pool` in tests and benchmarks: same methods, same order for one worker.

    Args:
        evaluator: Anything with `measure`, such as a `PolicyEvaluator`.
        size: How many jobs may be submitted at a time.

    Attributes:
        submitted: The number of the trial (-1 where it is of none) and the evaluators of each job, in order.
    """

    def __init__(self, evaluator: Any, size: int = 1) -> None:
        self.evaluator, self.size = evaluator, size
        self.shares_device = size > 1
        self.running: deque[Job] = deque()
        self.submitted: list[tuple[int, tuple[str, ...]]] = []
        self._training: Training | None = None

    @property
    def has_idle(self) -> bool:
        """True where a job may be submitted."""
        return len(self.running) < self.size

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
        """Queue a job."""
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
