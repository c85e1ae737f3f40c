"""The driver: gives proposed policies to workers, stage by stage, and tells the study what came of it."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ...evaluators.base import evaluator_class
from ..study.expected_results import MAX_CONFIRMED, baseline_front
from ..study.study import Proposal, SearchStudy
from ..trial.outcome import Outcome
from ..trial.pareto import evenly, front_trials
from ..trial.trial_result import TrialResult
from ..workers.early_stopping import rivals_among
from ..workers.prefix_affinity import steps
from ..workers.ray_pool import Pool
from ..workers.time_limits import Limits
from ..workers.worker import Job
from .phases import CONFIRMING, PROBING, PROMOTING, PROPOSING
from .probing import Probing
from .promotion import ENOUGH, due, examples
from .proposals import Proposals
from .remaining import ahead
from .timing import Timing

if TYPE_CHECKING:
    from .progress import Progress

SETBACKS = 2  # failures of a trial that is to answer more, after which it is not asked again


@dataclass
class Trial:
    """A policy on its way through the stages.

    Attributes:
        subject: What is measured: a proposal, or an earlier trial that was set aside and goes on.
        stages: Names of evaluators, one list a stage; those of the first are running or next.
        max_examples: How many examples it answers for now; None for all.
        outcome: What the stages before measured.
        is_probe: True where it only finds the path to begin with.
        begun: When it began.
    """

    subject: Proposal | TrialResult
    stages: list[list[str]]
    max_examples: int | None
    outcome: Outcome = Outcome()
    is_probe: bool = False
    begun: datetime = field(default_factory=datetime.now)


class Driver:
    """Runs the trials of a search, and confirms its front.

    Args:
        study: Where the trials are.
        pool: Who measures them.
        progress: Who tells the user.
    """

    def __init__(self, study: SearchStudy, pool: Pool, progress: "Progress") -> None:
        self.study = study
        self.pool = pool
        self.progress = progress
        self.proposals = Proposals(study)
        guide = [study.guide.evaluator] if study.guide else []
        self._kinds = {name: evaluator_class(name) for name in dict.fromkeys([*study.space.evaluate, *guide])}
        self.probing = Probing(study, pool.size)
        racing = study.space.search.racing
        self._racing = racing != "none"
        learns = study.space.search.sampler == "auto"
        self._patience = racing.patience if racing != "none" and racing.patience != "none" and learns else None
        self._limits = Limits(study.space, study.dense_seconds())
        self._going_on: set[int] = set()
        self._left: set[int] = set()
        self._alone: deque[Trial] = deque()
        self._waiting: deque[Trial] = deque()
        self._draining = False
        self.timing = Timing(study, pool, progress, self._limits)

    def search(self) -> str | None:
        """Spend the budget of trials.

        Returns:
            Why the search ended.

        Raises:
            RunError: the dense model could not be measured, or too many trials in a row failed.
        """
        self.progress.phase(PROPOSING)
        self._show()
        stopping = self.proposals.stopping
        while True:
            self._fill()
            if time.monotonic() >= stopping.ends or (not self.pool.busy and self.pool.has_idle):
                break
            found = self.pool.next(stopping.ends)
            if found is not None:
                self._finish(*found)
        if self.pool.busy:
            self.progress.note(f"time is up for {self.pool.busy} trials that still ran; `--resume` measures them")
            self.pool.stop_workers()
        return self.proposals.reason

    def _stages(self, names: Sequence[str]) -> list[list[str]]:
        """Everything at once, or what needs the device for itself in a stage of its own.

        A race is run last, for it needs to know all that a policy costs. Figures that are only predicted would need
        a margin, which would have to be learnt first; and a worker alone takes the same order.
        """
        wanted = [name for name in names if name not in self.study.left_out]
        alone = [name for name in wanted if self.pool.shares_device and self._kinds[name].exclusive]
        if self._racing and alone:
            last = [name for name in wanted if self._kinds[name].splits]
            stages = [[name for name in wanted if name not in last], last]
        else:
            stages = [[name for name in wanted if name not in alone], alone]
        return [stage for stage in stages if stage]

    def _first(self, proposal: Proposal, is_probe: bool = False) -> Trial:
        """A policy that is measured for the first time: by the guide alone and what is cheap, where a guide is."""
        guide = self.study.guide
        if guide is None or proposal.policy.is_dense:
            whole = self._patience is None or proposal.policy.is_dense
            return Trial(proposal, self._stages([*self._kinds]), None if whole else ENOUGH)
        kinds = self._kinds.items()
        names = [name for name, kind in kinds if name == guide.evaluator or not (kind.splits or kind.exclusive)]
        return Trial(proposal, [names], None, is_probe=is_probe)

    def _is_alone(self, trial: Trial) -> bool:
        return self.pool.shares_device and any(self._kinds[name].exclusive for name in trial.stages[0])

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
            trial = self._next()
            if trial is not None:
                self._enter(trial)
            elif not self._alone:
                return

    def _next(self) -> Trial | None:
        """A probe, a paused trial that is to answer more, or else a new one."""
        if not self.probing.is_over and self.study.dense_measurements() is not None:
            probe = self.probing.next()
            if probe is not None:
                return self._first(probe, is_probe=True)
            if not self.probing.is_over:
                return None
            self.study.queue_starts()
        # What an interruption cut short was asked for before any trial was promoted.
        record = None if self.study.interrupted else self._due()
        proposal = self.proposals.next() if record is None else None
        if proposal is not None:
            return self._first(proposal)
        # That there is nothing new may have come out just now, and then no trial waits any longer.
        record = record or self._due()
        if record is None:
            return None
        self._going_on.add(record.number)
        names = [name for name, kind in self._kinds.items() if not kind.metrics.keys() <= record.search.keys()]
        before = Outcome(record.search, record.seconds, estimates=record.estimates, worker=record.worker)
        return Trial(record, self._stages(names), 2 * examples(record) or ENOUGH, before)

    def _due(self) -> TrialResult | None:
        if self.study.dense_measurements() is None or self.proposals.stopping.is_late:
            return None
        # When nothing new is begun, there is nothing to wait for; nor for who was set aside before a resume without.
        patience = self._patience if self._patience and self.proposals.may_ask else 0
        records = [record for record in self.study.records() if self._may_go_on(record)]
        return due(records, self.study.known_in_full(), self.study.space, patience, self._going_on)

    def _may_go_on(self, record: TrialResult) -> bool:
        """False for a trial that failed again, or was left, when it was to answer more."""
        return record.number not in self._left and self.study.setbacks(record.number) < SETBACKS

    def _enter(self, trial: Trial) -> None:
        """Let a trial wait for its next stage."""
        (self._alone if self._is_alone(trial) else self._waiting).append(trial)

    def _start(self, trial: Trial) -> None:
        policy, dense = trial.subject.policy, self.study.dense_measurements()
        is_promoted = isinstance(trial.subject, TrialResult)
        self.progress.phase(PROBING if trial.is_probe else PROMOTING if is_promoted else PROPOSING)
        rivals = None
        if dense and self._racing:
            # A rule is given up for another rule, not for what the search found: it is what the search has to beat.
            is_rule = trial.subject.baseline is not None
            others = [one for one in self.study.records() if not is_rule or one.baseline or one.policy.is_dense]
            rivals = rivals_among(others, self.study.space.objectives)
        known = {**trial.outcome.estimates, **trial.outcome.measurements}
        given: dict[str, Any] = {"dense": dense, "rivals": rivals, "known": known, "max_examples": trial.max_examples}
        given["times"] = self.study.expected_times(policy)
        given["seconds"] = self._limits.of("search", policy)
        self.pool.submit(Job(policy, trial.stages[0], tag=trial, **given))

    def _finish(self, job: Job, outcome: Outcome) -> None:
        trial: Trial = job.tag
        if outcome.fault == "machine":
            self._leave(trial, outcome.failure or "")
            return
        if trial.subject.policy.is_dense:
            self._limits.learn("search", outcome)
        trial.outcome = trial.outcome.then(outcome)
        trial.stages = trial.stages[1:]
        # Dense is measured in full whatever it breaks: everything else is compared with it.
        broken = not trial.subject.policy.is_dense and self.study.breaks(trial.subject.policy, trial.outcome)
        if trial.stages and not (outcome.failure or outcome.early_stopped or broken):
            self._enter(trial)
            return
        if outcome.failure:
            self.progress.note(f"trial {trial.subject.number} failed: {outcome.failure}")
        if trial.is_probe and isinstance(trial.subject, Proposal):
            self.study.tell(trial.subject, trial.outcome)
            self.probing.finish(trial.subject)
            self.progress.advance(PROBING)
        elif isinstance(trial.subject, TrialResult):
            self._going_on.discard(trial.subject.number)
            self.progress.advance(PROMOTING)
            continued = self.study.keep_promoted(trial.subject, trial.outcome, trial.begun)
            if continued is not None:
                self.proposals.stopping.follow(continued)
            self.proposals.count(trial.outcome)
        else:
            self.proposals.finish(trial.subject, trial.outcome)
        self.timing.look()
        self._show()
        if self.study.space.search.stop.minutes is not None:
            records = self.study.records()
            rules = sum(record.baseline is not None for record in records)
            runs = len(front_trials(records, self.study.space.objectives)) + min(MAX_CONFIRMED, rules) + 1
            self.proposals.stopping.confirm_seconds = (self.study.dense_seconds() or 0.0) * runs / self.pool.size

    def _show(self) -> None:
        """Show how far the search is, and what it still has to do."""
        records = self.study.records()
        if self.progress.is_read and self.study.dense_measurements() is not None:
            splits, timed = any(kind.splits for kind in self._kinds.values()), self.timing.is_needed
            steps = ahead(records, self.study.known_in_full(), self.study.space, splits, timed)
            for name, left in {PROBING: self.probing.left, **steps}.items():
                self.progress.expect_more(name, left)
        self.progress.update(records, self.study.measured())

    def _leave(self, trial: Trial, reason: str) -> None:
        """Leave a policy for the next start, since the machine could not measure it; what is known of it stays."""
        self.progress.note(f"trial {trial.subject.number} is left for a `--resume`: {reason}")
        self._left.add(trial.subject.number)
        if isinstance(trial.subject, TrialResult):
            self._going_on.discard(trial.subject.number)
        elif trial.is_probe:
            self.probing.leave(trial.subject)
        else:
            self.proposals.leave(trial.subject, reason)

    def confirm(self) -> None:
        """Measure the front, that of the baselines and the dense model on examples that the search never saw."""
        names = [name for name in self.study.space.evaluate if self._kinds[name].splits]
        records, objectives = self.study.final_records(), self.study.space.objectives
        chosen = {records[0].number, *front_trials(records, objectives)}
        baselines = baseline_front(records, objectives, lambda record: self.study.violations(record.search))
        chosen |= {record.number for record in evenly(baselines, MAX_CONFIRMED)}
        unconfirmed = [r for r in records if r.number in chosen and not self.study.is_confirmed(r.policy)]
        # Those that begin alike follow each other, so that what one computed serves the next: a walk over their trie.
        # Dense goes first, for what it takes tells how long the others will.
        waiting = deque(sorted(unconfirmed, key=self._in_order))
        ends = self.proposals.stopping.ends
        if waiting and time.monotonic() < ends:
            self.pool.start_workers()
        self.progress.phase(CONFIRMING, len(waiting) if names else 0)
        while names and (waiting or self.pool.busy) and time.monotonic() < ends:
            while waiting and self.pool.has_idle:
                record = waiting.popleft()
                limit = self._limits.of("report", record.policy)
                self.pool.submit(Job(record.policy, names, split="report", tag=record, seconds=limit))
            found = self.pool.next(ends)
            if found is None:
                continue
            job, outcome = found
            if job.policy.is_dense:
                self._limits.learn("report", outcome)
            if outcome.failure:
                self.progress.note(f"trial {job.tag.number} could not be confirmed: {outcome.failure}")
            else:
                self.study.confirm(job.policy.fingerprint, outcome.measurements)
            self.progress.advance()
        if names and (waiting or self.pool.busy):
            left = len(waiting) + self.pool.busy
            self.progress.note(f"time is up for {left} policies to be confirmed; a `--resume` with more time does it")
            return
        self.timing.measure_again([record for record in records if record.number in chosen], ends)

    def _in_order(self, record: TrialResult) -> tuple[bool, list[tuple[str, str]]]:
        return not record.policy.is_dense, steps(record.policy, self.study.num_layers)
