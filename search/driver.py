"""The driver: gives proposed policies to workers, stage by stage, and tells the study what came of it."""

from collections import deque
from dataclasses import dataclass

from ..evaluators.base import evaluator_class
from .front import front_trials
from .outcome import Outcome
from .progress import Progress
from .proposals import Proposals
from .racing import rivals_among
from .study import Proposal, SearchStudy
from .workers import Job, Pool


@dataclass
class Trial:
    """A proposal on its way through the stages.

    Attributes:
        proposal: What is measured.
        stages: Names of evaluators, one list a stage; those of the first are running or next.
        outcome: What the stages before measured.
    """

    proposal: Proposal
    stages: list[list[str]]
    outcome: Outcome = Outcome()


class Driver:
    """Runs the trials of a search, and confirms its front.

    Args:
        study: Where the trials are.
        pool: Who measures them.
        progress: Who tells the user.
    """

    def __init__(self, study: SearchStudy, pool: Pool, progress: Progress) -> None:
        self.study = study
        self.pool = pool
        self.progress = progress
        self.proposals = Proposals(study)
        self._alone: deque[Trial] = deque()
        self._waiting: deque[Trial] = deque()
        self._draining = False

    def search(self) -> str | None:
        """Spend the budget of trials.

        Returns:
            Why the search ended.

        Raises:
            RunError: the dense model could not be measured, or too many trials in a row failed.
        """
        self.progress.update(self.study.records(), self.study.measured())
        while True:
            self._fill()
            if not self.pool.busy:
                break
            self._finish(*self.pool.next())
        return self.proposals.reason

    def _stages(self) -> list[list[str]]:
        """Everything at once, or what needs the device for itself in a stage of its own.

        A race is run last, for it needs to know all that a policy costs. Figures that are only predicted would need
        a margin, which would have to be learnt first; and a worker alone takes the same order.
        """
        kinds = {name: evaluator_class(name) for name in self.study.space.evaluate}
        alone = [name for name, kind in kinds.items() if self.pool.shares_device and kind.exclusive]
        if self.racing and alone:
            last = [name for name, kind in kinds.items() if kind.splits]
            stages = [[name for name in kinds if name not in last], last]
        else:
            stages = [[name for name in kinds if name not in alone], alone]
        return [stage for stage in stages if stage]

    @property
    def racing(self) -> bool:
        """True where candidates are judged on few examples first."""
        return self.study.space.search.racing != "none"

    def _is_alone(self, trial: Trial) -> bool:
        return self.pool.shares_device and any(evaluator_class(name).exclusive for name in trial.stages[0])

    def _fill(self) -> None:
        """Give idle workers something to do; stages that must be alone run one by one when all others are through."""
        while self.pool.has_idle:
            enough = len(self._alone) >= self.pool.size or not (self._waiting or self.proposals.may_ask)
            self._draining = bool(self._alone) and (self._draining or enough)
            if self._draining:
                if not self.pool.busy:
                    self._start(self._alone.popleft())
                return
            if self._waiting:
                self._start(self._waiting.popleft())
                continue
            proposal = self.proposals.next()
            if proposal is not None:
                self._enter(Trial(proposal, self._stages()))
            elif not self._alone:
                return

    def _enter(self, trial: Trial) -> None:
        """Let a trial wait for its next stage."""
        (self._alone if self._is_alone(trial) else self._waiting).append(trial)

    def _start(self, trial: Trial) -> None:
        policy, dense = trial.proposal.policy, self.study.dense_measurements()
        rivals = None
        if dense and self.racing:
            rivals = rivals_among(self.study.records(), self.study.space.objectives)
        known = trial.outcome.measurements
        self.pool.submit(Job(policy, trial.stages[0], dense=dense, rivals=rivals, known=known, tag=trial))

    def _finish(self, job: Job, outcome: Outcome) -> None:
        trial: Trial = job.tag
        trial.outcome = trial.outcome.then(outcome)
        trial.stages = trial.stages[1:]
        # Dense is measured in full whatever it breaks: everything else is compared with it.
        bounds = {} if trial.proposal.policy.is_dense else self.study.violations(trial.outcome.measurements)
        broken = any(excess > 0 for excess in bounds.values())
        if trial.stages and not (outcome.failure or outcome.dropped or broken):
            self._enter(trial)
            return
        if outcome.failure:
            self.progress.note(f"trial {trial.proposal.number} failed: {outcome.failure}")
        self.proposals.finish(trial.proposal, trial.outcome)
        self.progress.update(self.study.records(), self.study.measured())

    def confirm(self) -> None:
        """Measure the front and the dense model on examples that the search never saw."""
        names = [name for name in self.study.space.evaluate if evaluator_class(name).splits]
        records = self.study.records()
        chosen = {records[0].number, *front_trials(records, self.study.space.objectives)}
        due = (record for record in records if record.number in chosen)
        waiting = deque(record for record in due if not self.study.is_confirmed(record.policy))
        self.progress.confirming(len(waiting) if names else 0)
        while names and (waiting or self.pool.busy):
            while waiting and self.pool.has_idle:
                record = waiting.popleft()
                self.pool.submit(Job(record.policy, names, split="report", tag=record))
            job, outcome = self.pool.next()
            if outcome.failure:
                self.progress.note(f"trial {job.tag.number} could not be confirmed: {outcome.failure}")
            else:
                self.study.confirm(job.policy.fingerprint, outcome.measurements)
            self.progress.confirmed()
