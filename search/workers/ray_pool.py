"""Ray actors that each hold one loaded model; policies go out, measurements come back.

What the machine does wrong is mended here: a worker that dies, or whose device is broken, is started anew, and its job
goes to another one. A worker that fails so several times in a row is given up.
"""

import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.experimental.internal_kv import _internal_kv_get

from ...policies.errors import RunError, SkipsearchError, TaskError
from ..baselines.dense_stats import DenseStats
from ..space.space import Space
from ..trial.failures import fault_of
from ..trial.outcome import Outcome
from .cluster import dead_daemons, first_line, places, shape, start_ray, stop_ray
from .prefix_affinity import RECENT, nearest, steps
from .time_limits import DENSE_SECONDS
from .worker import NOTES, Job, Seat, Worker

# A first start imports torch and loads a model, which on a cold disk takes minutes.
START_SECONDS = 1800.0
STRIKES = 3  # faults of the machine in a row, after which a worker is given up
LOSSES = 4  # workers that are lost over one policy, after which it is left for the next start of the search
ROOM_SECONDS = 60.0  # until a cluster that lost a node is taken not to get another one
LOOK_SECONDS = 0.5  # from one look at what runs to the next


class Pool:
    """The workers of a search.

    Args:
        space: The search space.
        seconds: How long the first load of the model may take.

    Raises:
        StudyError: the cluster cannot be reached, or has no room for a worker.
    """

    def __init__(self, space: Space, seconds: float = START_SECONDS) -> None:
        self.space, self.seconds = space, seconds
        self.owns_cluster = start_ray(space.workers)
        self.size, self.gpus = shape(space.workers)
        # One model on each GPU has the device for itself; on cores and shared GPUs they disturb each other's clock.
        self.shares_device = self.size > 1 and self.gpus < 1
        self.threads = None if self.gpus else space.workers.cpus
        self._num_layers = 0
        self._seats = [Seat(index) for index in range(self.size)]
        self._loading: dict[Any, Seat] = {}
        self._idle: deque[Seat] = deque()
        self._running: dict[Any, tuple[Seat, Job]] = {}
        self._again: deque[Job] = deque()

    def start_workers(self) -> None:
        """Start a process for each worker that has none; each loads its model."""
        for seat in self._seats:
            if seat.actor is None and seat.strikes < STRIKES:
                self._start(seat)

    def _start(self, seat: Seat) -> None:
        # Ray would start a process anew by itself, and wait for ever where no node is left that has room for it.
        options = {"num_cpus": self.space.workers.cpus, "num_gpus": self.gpus, "max_restarts": 0}
        seat.actor = ray.remote(Worker).options(**options).remote(self.space.model_dump(by_alias=True), self.threads)
        seat.since, seat.measured = time.monotonic(), deque(maxlen=RECENT)
        self._loading[seat.actor.describe.remote()] = seat

    def stop_workers(self) -> None:
        """Stop the workers, so that their devices are free."""
        for seat in self._seats:
            self._stop(seat)
        self._loading, self._running = {}, {}
        self._idle.clear()
        self._again.clear()

    def _stop(self, seat: Seat) -> None:
        if seat.actor is not None:
            with suppress(RayError, RuntimeError, ValueError):  # The process, or all of Ray, may be gone already.
                ray.kill(seat.actor)
            seat.actor = None

    def describe(self) -> list[dict[str, Any]]:
        """Load the model in every worker; one that is lost meanwhile may come later.

        Raises:
            SkipsearchError: it cannot be loaded, or its evaluators cannot be set up.
            RunError: no worker comes up.
        """
        self.start_workers()
        while any(seat.strikes == 0 for seat in self._loading.values()) or not self._idle:
            self._look()
        self._num_layers = self._idle[0].described["num_layers"]
        return [seat.described for seat in sorted(self._idle, key=lambda seat: seat.index)]

    def probe_dense(self) -> DenseStats:
        """See the dense model for the rules to begin with, on one worker.

        Raises:
            SkipsearchError: what they need cannot be found out.
            RunError: no worker is left that could.
        """
        while True:
            while not self._idle:
                self._look()
            seat = self._idle.popleft()
            try:
                found: DenseStats = ray.get(seat.actor.probe_dense.remote(), timeout=DENSE_SECONDS)
            except RayTaskError as cause:
                raise self._reason(cause) from None
            except RayError as cause:
                self._strike(seat, f"looked at the dense model: {first_line(cause)}")
                continue
            self._idle.appendleft(seat)
            return found

    def _reason(self, cause: RayTaskError) -> SkipsearchError:
        inner = cause.cause
        return inner if isinstance(inner, SkipsearchError) else RunError("a worker failed", [first_line(inner)])

    @property
    def has_idle(self) -> bool:
        """True where a worker waits for a job."""
        return bool(self._idle)

    @property
    def busy(self) -> int:
        """How many jobs are running, or wait to be sent to another worker."""
        return len(self._running) + len(self._again)

    def submit(self, job: Job) -> None:
        """Give a job to a worker that is idle."""
        wanted = steps(job.policy, self._num_layers)
        place = nearest(wanted, [seat.measured for seat in self._idle])
        seat = self._idle[place]
        del self._idle[place]
        seat.measured.append(wanted)
        self._send(seat, job)

    def _send(self, seat: Seat, job: Job) -> None:
        given = {
            "dense": job.dense,
            "rivals": job.rivals,
            "known": job.known,
            "max_examples": job.max_examples,
            "times": job.times,
        }
        reference = seat.actor.measure.remote(job.policy.document(), list(job.names), job.split, **given)
        seat.since = time.monotonic()
        self._running[reference] = (seat, job)

    def next(self, until: float | None = None) -> tuple[Job, Outcome] | None:
        """Wait for a job to finish.

        A job whose worker is lost, or whose worker says that its machine is at fault, goes to another one.

        Args:
            until: The time, by the monotonic clock, at which the wait ends.

        Returns:
            The job and what came of it, a fault of the machine only after it was tried several times; None where a
            worker has come up that has nothing to do, and when the wait is over.

        Raises:
            RunError: no worker is left that works.
            TaskError: a task has a mistake, which no other policy would mend.
        """
        while until is None or time.monotonic() < until:
            self._send_again()
            waiting = len(self._idle)
            found = self._look()
            if found is not None:
                return found
            if len(self._idle) > waiting:
                return None
        return None

    def _send_again(self, before_others: bool = False) -> None:
        """Send jobs whose worker was lost to others.

        Where there is no other worker, and where a second one was lost, new jobs go first: what they come to tells
        whether the policy or the machine is to blame. A job that lost several runs alone.
        """
        for _ in range(len(self._again)):
            job = self._again.popleft()
            others = [seat for seat in self._seats if seat.actor is not None and seat.index != job.avoid]
            able = [seat for seat in self._idle if seat in others or not others]
            waits = (before_others and (job.losses > 1 or not others)) or (job.losses > 1 and self._running)
            if not able or waits:
                self._again.append(job)
                continue
            self._idle.remove(able[0])
            self._send(able[0], job)

    def _look(self) -> tuple[Job, Outcome] | None:
        """See what has happened: a worker that has come up, a job that is over, something that died or hangs."""
        if dead := dead_daemons():
            hint = "see whether the machine is short of memory; go on with `--resume`"
            raise RunError("Ray has died on this machine", [f"its process {name} has ended" for name in dead], hint)
        asked = [*self._loading, *self._running]
        done = ray.wait(asked, num_returns=1, timeout=LOOK_SECONDS)[0] if asked else []
        for reference in done:
            if reference not in self._running:
                self._arrived(reference)
                continue
            return self._answered(reference)
        self._check_loading()
        overdue = [one for one, (seat, job) in self._running.items() if job.seconds and age(seat) > job.seconds]
        return self._hangs(overdue[0]) if overdue else None

    def _arrived(self, reference: Any) -> None:
        """A worker has loaded its model, or could not."""
        seat = self._loading.pop(reference)
        try:
            seat.described = ray.get(reference)
        except RayTaskError as cause:
            error = cause.cause
            if fault_of(error) != "machine":
                raise self._reason(cause) from None
            self._strike(seat, f"could not load the model: {first_line(error)}")
        except RayError as cause:
            self._strike(seat, f"ended while it loaded the model: {first_line(cause)}")
        else:
            self._idle.append(seat)
            self._send_again(before_others=True)

    def _answered(self, reference: Any) -> tuple[Job, Outcome] | None:
        """A job is over: done, to be done again, or given up."""
        seat, job = self._running.pop(reference)
        try:
            outcome: Outcome = ray.get(reference)
        except RayTaskError as cause:
            if isinstance(cause.cause, TaskError):
                raise cause.cause from None
            outcome = Outcome(failure=first_line(self._reason(cause)), traceback=str(cause))
        except RayError:  # Died, was killed for its memory, or its answer was lost.
            return self._lost(seat, job, f"its process ended {self._doing(seat)}")
        if outcome.fault == "machine":
            return self._lost(seat, job, outcome.failure or "")
        self._idle.append(seat)  # Behind those that wait longer: not all that runs alone runs on the first.
        if outcome.fault == "memory" and not job.small:
            job.small, job.avoid = 1, seat.index
            self._again.append(job)
            self._send_again(before_others=True)
            return None
        seat.struck = set()
        self._send_again(before_others=True)
        return job, replace(outcome, worker=f"worker-{seat.index}")

    def _doing(self, seat: Seat) -> str:
        """What a worker last said that it does."""
        try:
            name = _internal_kv_get(seat.actor._actor_id.hex(), namespace=NOTES)
        except (RayError, RuntimeError):
            name = None
        return f"while the evaluator '{name.decode()}' measured" if name else "while it applied a policy"

    def _lost(self, seat: Seat, job: Job, reason: str) -> tuple[Job, Outcome] | None:
        self._strike(seat, reason, job.policy.fingerprint)
        job.losses, job.avoid = job.losses + 1, seat.index
        if job.losses < LOSSES:
            self._again.append(job)
            return None
        text = f"{job.losses} workers were lost over it, the last: {reason}"
        return job, Outcome(failure=text, fault="machine", worker=f"worker-{seat.index}")

    def _hangs(self, reference: Any) -> tuple[Job, Outcome]:
        """End a job that takes too long; its worker can only be replaced."""
        seat, job = self._running.pop(reference)
        changed = ", ".join(f"{index}: {choice.label}" for index, choice in job.policy.canonical().layers.items())
        text = (
            f"no answer for {job.seconds:.0f} s (workers.timeout) {self._doing(seat)} the policy {changed or 'dense'}"
        )
        self._stop(seat)
        self._start(seat)
        return job, Outcome(failure=text, seconds={"total": age(seat)}, worker=f"worker-{seat.index}")

    def _strike(self, seat: Seat, reason: str, policy: str | None = None) -> None:
        """The machine is at fault: another process takes the worker's place, unless that has not helped before.

        One policy counts once, however often: it may be that it alone cannot be measured.
        """
        seat.struck.add(policy or f"load {len(seat.struck)}")
        seat.reason = reason
        self._stop(seat)
        if seat.strikes < STRIKES:
            self._start(seat)
        self._check_any()

    def _check_loading(self) -> None:
        """Give up workers that do not come up, and those for which no node has room any more."""
        slow = {one: seat for one, seat in self._loading.items() if age(seat) > self.seconds}
        for reference, seat in slow.items():
            del self._loading[reference]
            seat.struck |= {f"slow {number}" for number in range(STRIKES)}
            self._strike(seat, f"had not loaded the model after {self.seconds:.0f} s")
        working = bool(self._idle or self._running)
        pending = [seat for seat in self._loading.values() if age(seat) > ROOM_SECONDS]
        if not working and len(pending) == len(self._loading) and not places(self.space.workers.cpus, self.gpus):
            for seat in pending:
                seat.reason = seat.reason or "its node is gone"
            raise self._none_left("no node has room for a worker any more")

    def _check_any(self) -> None:
        if all(seat.actor is None for seat in self._seats):
            raise self._none_left("each failed several times in a row")

    def _none_left(self, why: str) -> RunError:
        told = [f"worker-{seat.index}: {seat.reason}" for seat in self._seats if seat.reason]
        hint = "mend the machine (`nvidia-smi`, `ray status`, memory; a worker needs that of one model), or lower "
        hint += "`workers.count`; then go on with `--resume`: the policies that ran are measured again"
        return RunError(f"no healthy worker is left: {why}", told, hint)

    def close(self) -> None:
        """Stop the workers, and the cluster if it was started here."""
        self.stop_workers()
        if self.owns_cluster:
            stop_ray()


def age(seat: Seat) -> float:
    """Seconds since a worker began what it does."""
    return time.monotonic() - seat.since
