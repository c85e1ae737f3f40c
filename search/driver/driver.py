"""The search loop: sends trials to workers, stage by stage, and tells the study their outcomes."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ...evaluators.base import evaluator_class
from ..sampler.skip_sampler import BLAS
from ..study.asking import Proposal
from ..study.study import SearchStudy
from ..trial.outcome import Outcome
from ..trial.trial_result import TrialResult
from ..workers.early_stopping import rivals_among
from ..workers.ray_pool import Pool
from ..workers.time_limits import TimeLimits
from ..workers.worker import Job
from .confirmation import confirm, further_visits, trials_to_confirm
from .forecast import ExampleCounts
from .phases import MEASURING_DENSE, PROBING, PROMOTING, PROPOSING
from .probing import Probing
from .promotion import FIRST_EXAMPLES, examples_answered, next_promotion
from .proposals import Proposals
from .recovering import Recovering
from .running_forecast import RunningForecast
from .timing import Timing
from .trial import Trial

if TYPE_CHECKING:
    from .progress import Progress

MAX_PROMOTION_FAILURES = 2  # failed promotions after which a trial is not promoted again


class Driver:
    """Runs the trials of a search, and confirms its front.

    Args:
        study: Where the trials are stored.
        pool: The workers.
        progress: Shows the progress.
        examples: By evaluator and split, the number of examples, for the forecast; those of the dense trial where it is
            empty.
        log: Called after each trial, for loggers.
    """

    def __init__(
        self,
        study: SearchStudy,
        pool: Pool,
        progress: "Progress",
        examples: ExampleCounts = MappingProxyType({}),
        log: Callable[[], None] = lambda: None,
    ) -> None:
        self.study = study
        self.pool = pool
        self.progress = progress
        self.proposals = Proposals(study)
        guide = [study.guide.evaluator] if study.guide else []
        self._evaluators = {name: evaluator_class(name) for name in dict.fromkeys([*study.space.evaluate, *guide])}
        self.probing = Probing(study, pool.size)
        racing = study.space.search.racing
        self._races = racing != "none"
        is_learning = study.space.search.sampler == "auto"
        self._patience = racing.patience if racing != "none" and racing.patience != "none" and is_learning else None
        self._limits = TimeLimits(study.space, study.dense_seconds())
        self._promoted: set[int] = set()
        self._deferred: set[int] = set()
        self._ready: deque[Trial] = deque()
        self._exclusive: deque[Trial] = deque()
        self._running_exclusive = False
        self.timing = Timing(study, pool, progress, self._limits)
        recover = study.space.search.recover
        self.recovering = None if recover is None else Recovering(study, pool, progress, recover)
        self.forecast = RunningForecast(study, pool, progress, examples)
        self._log = log

    def search(self) -> str | None:
        """Spend the budget of trials.

        Returns:
            Why the search ended.

        Raises:
            RunError: the dense model could not be measured, or too many trials in a row failed.
        """
        self.progress.phase(PROPOSING)
        self._update_progress()
        stopping = self.proposals.stopping
        # Predicted scores decide on promotions, and so on what is proposed afterwards.
        with BLAS.limit(limits=1):
            while True:
                self._fill_workers()
                is_done = not (self.pool.busy or self._exclusive) and self.pool.has_idle
                if is_done or time.monotonic() >= stopping.ends:
                    break
                finished = self.pool.next(stopping.ends)
                if finished is not None:
                    self._finish(*finished)
        if self.pool.busy:
            self.progress.note(f"time is up with {self.pool.busy} trials running; `--resume` measures them")
            self.pool.stop_workers()
        return self.proposals.reason

    def begin(self) -> None:
        """Measure what belongs to no trial: dense against dense, and a step of the trainings after the search.

        Raises:
            SkipsearchError: the model cannot be trained as the space asks.
        """
        self.timing.measure_noise()
        if self.recovering is not None:
            self.recovering.begin()

    def recover(self) -> None:
        """Train the best policies, where the space asks for it, in the time that confirming them leaves."""
        if self.recovering is not None:
            self._expect_no_trials()
            self.recovering.recover(self.proposals.stopping.recover_until)

    def _expect_no_trials(self) -> None:
        for name in (PROBING, PROPOSING, PROMOTING):
            self.progress.expect_more(name, 0)

    def confirm(self) -> None:
        """Measure the front, that of the baselines and dense on the report split, and time them again.

        Policies that were trained are measured with their trained weights and without.

        Afterwards the front's ratios are measured with random tokens, the front and dense on the transfer tasks, and
        the patches that the front's policies keep are recorded; no choice depends on these.
        """
        self._expect_no_trials()
        evaluators = [name for name in self.study.space.evaluate if self._evaluators[name].splits]
        ends = self.proposals.stopping.ends
        results = trials_to_confirm(self.study)
        if confirm(self.study, self.pool, self.progress, self._limits, results, evaluators, ends):
            # Trained weights change no time.
            self.timing.measure_again([one for one in results if one.policy.weights is None], ends)
            for visit, names, chosen in further_visits(self.study, evaluators):
                confirm(self.study, self.pool, self.progress, self._limits, chosen, names, ends, visit)

    def _stages(self, names: Sequence[str]) -> list[list[str]]:
        """Splits evaluators into stages: those that need the device alone have a stage of their own.

        With racing, the evaluators on examples come last, because a race compares all costs of a trial. A worker that
        has its device for itself uses a single stage, in the same order.
        """
        names = [name for name in names if name not in self.study.skipped_evaluators]
        exclusive = [name for name in names if self.pool.shares_device and self._evaluators[name].exclusive]
        if self._races and exclusive:
            on_examples = [name for name in names if self._evaluators[name].splits]
            stages = [[name for name in names if name not in on_examples], on_examples]
        else:
            stages = [[name for name in names if name not in exclusive], exclusive]
        return [stage for stage in stages if stage]

    def _new_trial(self, proposal: Proposal, is_probe: bool = False) -> Trial:
        """The trial of a new policy: all evaluators, or the guide and the counted costs in a guided search."""
        guide = self.study.guide
        if guide is None or proposal.policy.is_dense:
            measures_all = self._patience is None or proposal.policy.is_dense
            return Trial(proposal, self._stages([*self._evaluators]), None if measures_all else FIRST_EXAMPLES)
        names = [name for name, evaluator in self._evaluators.items()
                 if name == guide.evaluator or not (evaluator.splits or evaluator.exclusive)]  # fmt: skip
        return Trial(proposal, [names], None, is_probe=is_probe)

    def _promotion(self, result: TrialResult) -> Trial:
        """The trial that measures a paused policy on twice as many examples."""
        self._promoted.add(result.number)
        names = [name for name, kind in self._evaluators.items() if not kind.metrics.keys() <= result.search.keys()]
        earlier = Outcome(result.search, result.seconds, estimates=result.estimates, worker=result.worker)
        max_examples = 2 * examples_answered(result) or FIRST_EXAMPLES
        return Trial(result, self._stages(names), max_examples, earlier)

    def _needs_device_alone(self, trial: Trial) -> bool:
        return any(self._evaluators[name].exclusive for name in trial.stages[0])

    def _fill_workers(self) -> None:
        """Give idle workers a stage each; exclusive stages run one at a time on each device, while no other stage runs.

        Where workers share a device, exclusive stages are collected until there is one per worker, so that the other
        workers seldom wait.
        """
        while self.pool.has_idle:
            nothing_else = not (self._ready or self.proposals.may_ask)
            has_enough = nothing_else or len(self._exclusive) >= (self.pool.size if self.pool.shares_device else 1)
            self._running_exclusive = bool(self._exclusive) and (self._running_exclusive or has_enough)
            if self._running_exclusive:
                if not self.pool.has_quiet:
                    return
                self._submit(self._exclusive.popleft())
                continue
            if self._ready:
                self._submit(self._ready.popleft())
                continue
            trial = self._next_trial()
            if trial is not None:
                self._enqueue(trial)
            elif not self._exclusive:
                return

    def _next_trial(self) -> Trial | None:
        """A probe, a promotion, or else a new policy; None where there is none now."""
        if not self.probing.is_over and self.study.dense_measurements() is not None:
            probe = self.probing.next()
            if probe is not None:
                return self._new_trial(probe, is_probe=True)
            if not self.probing.is_over:
                return None
            self.study.enqueue_initial_points()
        # Interrupted trials go first: they were proposed before any promotion.
        paused = None if self.study.interrupted else self._next_promotion()
        if paused is None:
            proposal = self.proposals.next()
            if proposal is not None:
                return self._new_trial(proposal)
            # Asking can exhaust the space. Paused trials then no longer wait for new ones.
            paused = self._next_promotion()
        return None if paused is None else self._promotion(paused)

    def _next_promotion(self) -> TrialResult | None:
        if self.study.dense_measurements() is None or self.proposals.stopping.is_late:
            return None
        # Patience compares with new trials. Without any to come, or without racing, paused trials do not wait.
        patience = self._patience if self._patience and self.proposals.may_ask else 0
        results = [result for result in self.study.results() if self._may_be_promoted(result)]
        return next_promotion(results, self.study.score_predictor(), self.study.space, patience, self._promoted)

    def _may_be_promoted(self, result: TrialResult) -> bool:
        """False for a trial that was deferred, or whose promotion failed too often."""
        failures = self.study.num_promotion_failures(result.number)
        return result.number not in self._deferred and failures < MAX_PROMOTION_FAILURES

    def _enqueue(self, trial: Trial) -> None:
        """Let a trial wait for its next stage."""
        (self._exclusive if self._needs_device_alone(trial) else self._ready).append(trial)

    def _submit(self, trial: Trial) -> None:
        """Send the next stage of a trial to a worker."""
        policy, dense = trial.subject.policy, self.study.dense_measurements()
        is_promotion = isinstance(trial.subject, TrialResult)
        own = MEASURING_DENSE if policy.is_dense else PROPOSING
        self.progress.phase(PROBING if trial.is_probe else PROMOTING if is_promotion else own)
        rivals = None
        if dense and self._races:
            # Baselines race against baselines only: the search must be compared with their full results.
            is_baseline = trial.subject.baseline is not None
            others = [one for one in self.study.results() if not is_baseline or one.baseline or one.policy.is_dense]
            rivals = rivals_among(others, self.study.space.objectives)
        options: dict[str, Any] = {
            "dense": dense,
            "rivals": rivals,
            "previous": {**trial.outcome.estimates, **trial.outcome.measurements},
            "max_examples": trial.max_examples,
            "times": self.study.expected_times(policy),
            "seconds": self._limits.of("search", policy),
        }
        self.pool.submit(Job(policy, trial.stages[0], tag=trial, **options))

    def _finish(self, job: Job, outcome: Outcome) -> None:
        """Take the outcome of a stage: go on with the next stage, or tell the study the trial's result."""
        trial: Trial = job.tag
        policy = trial.subject.policy
        if outcome.fault == "machine":
            self._defer(trial, outcome.failure or "")
            return
        if policy.is_dense:
            self._limits.learn("search", outcome)
            self.progress.count_elsewhere(PROPOSING, 0 if len(trial.stages) > 1 else 1)
        trial.outcome = trial.outcome.then(outcome)
        trial.stages = trial.stages[1:]
        # Dense is measured completely even where it violates a constraint: all trials are compared with it.
        is_infeasible = not policy.is_dense and self.study.surely_violates(policy, trial.outcome)
        if trial.stages and not (outcome.failure or outcome.early_stopped or is_infeasible):
            self._enqueue(trial)
            return
        if outcome.failure:
            self.progress.note(f"trial {trial.subject.number} failed: {outcome.failure}")
        self._tell(trial)
        self.after_trial()

    def after_trial(self) -> None:
        """Do what each new result asks for: look for costs that predict times, correct the forecast, log."""
        self.timing.update()
        self._update_progress()
        self._log()

    def _tell(self, trial: Trial) -> None:
        """Tell the study the result of a probe, a promotion or a new policy."""
        if isinstance(trial.subject, TrialResult):
            self._promoted.discard(trial.subject.number)
            self.progress.advance(PROMOTING)
            result = self.study.keep_promoted(trial.subject, trial.outcome, trial.begun)
            if result is not None:
                self.proposals.stopping.follow(result)
            self.proposals.count(trial.outcome)
        elif trial.is_probe:
            self.study.tell(trial.subject, trial.outcome)
            self.probing.finish(trial.subject)
            self.progress.advance(PROBING)
        else:
            self.proposals.finish(trial.subject, trial.outcome)

    def _update_progress(self) -> None:
        self.forecast.update(self.probing.left)
        # The time that is reserved to train policies and to confirm the front, where the search has a time limit.
        self.proposals.stopping.confirm_seconds = self.forecast.closing_seconds
        self.proposals.stopping.recover_seconds = self.forecast.recovering_seconds
        self.progress.update(self.study.results(), self.study.budget_used())

    def _defer(self, trial: Trial, reason: str) -> None:
        """Leave a policy that the machine could not measure to a resumed search; its earlier results stay."""
        self.progress.note(f"trial {trial.subject.number} was not measured and is left to `--resume`: {reason}")
        self._deferred.add(trial.subject.number)
        if isinstance(trial.subject, TrialResult):
            self._promoted.discard(trial.subject.number)
        elif trial.is_probe:
            self.probing.defer(trial.subject)
        else:
            self.proposals.defer(trial.subject, reason)
