"""Runs the search through Ray Tune, with the same study and evaluator, for clusters and loggers that use Tune.

from ray import tune
searcher = StudySearcher(study)
tune.Tuner(
    tune.with_parameters(PolicyTrainable, space=space.model_dump(by_alias=True)),
    tune_config=tune.TuneConfig(search_alg=searcher, num_samples=searcher.samples, reuse_actors=True),
).fit()
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

# By default, Tune writes files for each logger and trial. The study holds the same data.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# Without these, Tune handles Ctrl-C itself and changes the folder that relative paths of a task start from.
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")

from ray import tune
from ray.tune.search import ConcurrencyLimiter, Searcher

from ...evaluators.base import Measurement, evaluator_class
from ...policies.errors import RunError, SkipsearchError
from ...policies.policy import Policy
from ..places import RANKING
from ..space.space import Space
from ..study.asking import Proposal
from ..study.study import SearchStudy
from ..trial.measurements import parse_measurements
from ..trial.outcome import Outcome
from ..workers.evaluate import PolicyEvaluator
from ..workers.ranking import take_ranking
from ..workers.ray_pool import Pool
from ..workers.worker_slots import MAX_FAULTS
from .phases import PROPOSING
from .proposals import Proposals

if TYPE_CHECKING:
    from .progress import Progress

# Tune requires a fixed number of samples. The searcher ends the search when the budget is used, so this is a multiple
# of the budget that leaves room for duplicates and failed trials.
SAMPLES_PER_TRIAL = 4


class StudySearcher(Searcher):
    """A Tune searcher that asks a study for policies.

    Args:
        study: The study, which stores everything about the search.
        progress: Shows the progress; None keeps it silent.
        after: Called after each trial.
    """

    def __init__(
        self, study: SearchStudy, progress: "Progress | None" = None, after: Callable[[], None] = lambda: None
    ) -> None:
        first, direction = next(iter(study.space.objectives.items()))
        super().__init__(metric=first, mode="max" if direction == "maximize" else "min")
        self.study = study
        self.progress, self.after = progress, after
        self.proposals = Proposals(study)
        self._running: dict[str, Proposal] = {}
        self._lost_in_a_row = 0

    @property
    def samples(self) -> int:
        """The value for `num_samples` of Tune."""
        return self.study.space.search.trials * SAMPLES_PER_TRIAL

    def suggest(self, trial_id: str) -> Any:
        """A policy to measure; None until dense is measured, `FINISHED` when the budget is used."""
        proposal = self.proposals.next()
        if proposal is None:
            return None if self._running else Searcher.FINISHED
        self._running[trial_id] = proposal
        dense = self.study.dense_measurements() or {}
        plain = {name: asdict(measurement) for name, measurement in dense.items()}
        return {
            "policy": proposal.policy.document(),
            "dense": json.dumps(plain),
            "names": [name for name in self.study.space.evaluate if name not in self.study.skipped_evaluators],
            "times": self.study.expected_times(proposal.policy),
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study the outcome; a trial whose process was lost has no result."""
        proposal = self._running.pop(trial_id)
        if result and not error:
            self._lost_in_a_row = 0
            self.proposals.finish(proposal, outcome_of(result))
        else:
            self._defer(proposal)
        self.after()
        if self.progress is not None:
            self.progress.update(self.study.results(), self.study.budget_used())

    def _defer(self, proposal: Proposal) -> None:
        """Leave a policy whose process was lost twice to a resumed search, since the policy is not the cause.

        Raises:
            RunError: too many processes were lost in a row.
        """
        reason = "its process was lost, or its device is broken"
        self.proposals.defer(proposal, reason)
        self._lost_in_a_row += 1
        if self._lost_in_a_row >= MAX_FAULTS:
            hint = "see Ray's own log for the reason, fix the machine and go on with `--resume`"
            raise RunError("no healthy worker is left", [f"{self._lost_in_a_row} trials in a row: {reason}"], hint)

    def __getstate__(self) -> dict[str, Any]:
        """Tune stores a copy of its searcher on disk, which never runs and so needs no progress."""
        return {**self.__dict__, "progress": None, "after": None}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: all state is in the study."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: open the study with `resume=True`."""


class PolicyTrainable(tune.Trainable):
    """Measures one policy per step, and keeps its model for the next."""

    def setup(  # type: ignore[override]  # tune.with_parameters passes the others
        self, config: dict[str, Any], space: dict[str, Any], threads: int | None = None, ranking: bytes | None = None
    ) -> None:
        """Load the model; an error becomes the failure of the trial."""
        self.evaluator: PolicyEvaluator | None = None
        try:
            self.evaluator = PolicyEvaluator(Space.model_validate(space), threads)
            if ranking is not None:
                take_ranking(self.evaluator, ranking)
        except SkipsearchError as cause:
            self.failure = "; ".join([cause.what, *cause.details])

    def step(self) -> dict[str, Any]:
        """Measure the policy of the configuration."""
        if self.evaluator is None:
            return {"outcome": Outcome(failure=self.failure), "done": True}
        policy, dense = Policy.model_validate(self.config["policy"]), parse_measurements(self.config["dense"]) or None
        outcome = self.evaluator.measure(policy, self.config["names"], dense=dense, times=self.config["times"])
        if outcome.fault == "machine":
            raise RuntimeError(outcome.failure)  # Tune stops this process, and retries once in another one.
        values = {name: entry.value for name, entry in outcome.measurements.items()}
        return {**values, "outcome": outcome, "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Keep the model for the next policy."""
        self.config = new_config
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save: a measurement has no state."""


def outcome_of(result: dict[str, Any]) -> Outcome:
    """The outcome in a result of Tune."""
    outcome: Outcome = result["outcome"]
    measured = {name: entry for name, entry in outcome.measurements.items() if isinstance(entry, Measurement)}
    return replace(outcome, measurements=measured, worker=f"tune-{result.get('pid', 0)}")


def tune_search(
    study: SearchStudy,
    pool: Pool,
    folder: Path,
    progress: "Progress | None" = None,
    after: Callable[[], None] = lambda: None,
) -> str | None:
    """Spend a study's budget of trials through Ray Tune, on the devices of a pool whose workers stop meanwhile.

    Args:
        study: Where the trials are stored.
        pool: The workers; they are started again at the end.
        folder: The study's folder; Tune's own files go to `tune/` in it.
        progress: Shows the progress; None keeps it silent.
        after: Called after each trial.

    Returns:
        Why the search ended.
    """
    space = study.space
    size, shares_device = pool.size, pool.shares_device
    pool.stop_workers()
    searcher = StudySearcher(study, progress, after)
    if progress is not None:
        progress.phase(PROPOSING)
    one_at_a_time = shares_device and any(evaluator_class(name).exclusive for name in space.evaluate)
    gpus = {"gpu": pool.gpus} if pool.gpus else {}
    ranking = (folder / RANKING).read_bytes() if (folder / RANKING).is_file() else None
    trainable = tune.with_parameters(
        PolicyTrainable, space=space.model_dump(by_alias=True), threads=pool.threads, ranking=ranking
    )
    tune.Tuner(
        tune.with_resources(trainable, {"cpu": space.workers.cpus, **gpus}),
        tune_config=tune.TuneConfig(
            search_alg=ConcurrencyLimiter(searcher, max_concurrent=1 if one_at_a_time else size),
            num_samples=searcher.samples,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder.resolve()),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    ).fit()
    pool.start_workers()
    return searcher.proposals.reason
