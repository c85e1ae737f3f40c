"""The study of a search: an Optuna study in a database that holds every trial and is the only source of truth.

Measurements, fingerprints and reasons are attributes of trials. So `optuna-dashboard` shows them, a killed search
resumes from them, and all other files in the study's folder can be made from them.
"""

import json
import math
from collections import deque
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from ...evaluators.base import Measurement
from ...policies.errors import StudyError
from ...policies.policy import Policy
from ..baselines.dense_stats import DenseStats, load_or_probe
from ..guide.greedy import Probe
from ..guide.guide import TRIALS_TO_CHOOSE_METRIC, Guide, best_guide_metric
from ..sampler.skip_sampler import SkipSampler
from ..space.guide_metrics import ANSWER_LOSS, QUALITY
from ..space.objectives import greedy_cost
from ..space.parameters import Parameters
from ..space.search_settings import is_policy_file
from ..space.space import Space
from ..trial.measurements import measurements_json
from ..trial.outcome import Outcome
from ..trial.recovery import Recovery, with_recoveries
from ..trial.recovery_attributes import read_recoveries
from ..trial.trial_result import TrialResult
from .asking import Proposal, draw_new, sample_trial, writable
from .expected_results import ScorePredictor
from .opening import (
    GUIDE,
    begin_study,
    check_free,
    check_identity,
    enqueue_waiting,
    open_database,
    open_or_create,
    study_identity,
)
from .policy_results import PolicyResults
from .remote.address import address_of
from .sampler_inputs import SamplerInputs
from .samplers import distributions, make_skip_sampler
from .storage import quiet_optuna
from .study_times import TimedTrialCache, stand_ins_of
from .telling import add_promoted_trial, add_promotion_failure, trial_state
from .trial_attributes import promotion_failures, read_trial, trial_attributes
from .warm_start import file_setting, skipped_share

# What is measured once a search has ended: the report split, also of random twins (see `baselines.random_twin`), the
# transfer tasks, the patches that a policy keeps.
VisitKey = Literal["report", "random", "transfer", "patches"]
GUIDE_CHOSEN = "guide_chosen"  # the attribute of a study that holds the guide metric which a comparison chose


class SearchStudy(TimedTrialCache):
    """Asks Optuna for policies and tells it their measurements.

    Args:
        path: The database in the study's folder; where the space names a storage, the study is there instead.
        name: The study's name.
        space: The search space.
        num_layers: The number of the model's decoder layers.
        resume: True to resume a study that exists; False to create one.
        model_id: The name of the model; its id in the space by default.
        probe_dense: Measures the statistics of the dense model that some baselines need. It is called once in a study,
            and only where such a baseline is named.
        guide: The evaluator whose loss guides the search; None searches by accuracy alone. A resumed study keeps its
            own.
        commit: The model's commit on the hub; None for a local model.

    Raises:
        StudyError: the study exists and is not to be resumed, or does not exist and is; it was made for another space,
            model or task; or a baseline needs statistics of the dense model and there is no `probe_dense`.
        SpaceError: the space does not allow a policy of `search.start`.
    """

    def __init__(
        self, path: Path, name: str, space: Space, num_layers: int, resume: bool = False, model_id: str | None = None,
        probe_dense: Callable[[], DenseStats] | None = None, guide: str | None = None, commit: str | None = None,
    ) -> None:  # fmt: skip
        quiet_optuna()
        self.space, self.num_layers, self.model_id = space, num_layers, model_id or space.model.id
        self.folder = path.parent
        self.parameters = Parameters(space, num_layers)
        self._drawn = distributions(self.parameters)
        # Before the study is created, so that a mistake leaves none behind.
        for file in filter(is_policy_file, space.search.baselines):
            file_setting(self.parameters, file)
        check_free(path, resume, address_of(space, name))
        study, self._storage = open_or_create(path, name, space)
        identity = study_identity(path, space, num_layers, commit)
        check_identity(study, identity, path, self.model_id)
        if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            # Not even dense was measured. A kill may have left the study half created, so it is created anew.
            stats = load_or_probe(study.user_attrs, space.search.baselines, self.parameters.domains, probe_dense)
            database = open_database(path, address_of(space, name))
            optuna.delete_study(study_name=study.study_name, storage=database)
            database.engine.dispose()
            study, self._storage = open_or_create(path, name, space)
            begin_study(study, space, self.parameters, identity, self.model_id, stats, guide)
        super().__init__(study, space, num_layers)
        metric = study.user_attrs.get(GUIDE)
        self.guide = Guide(metric) if metric else None
        self._policies = PolicyResults(space, self.results())
        self._skip_sampler: SkipSampler | None = None
        self._times_version = 0, 0
        self._make_sampler()
        study.set_user_attr("space", space.model_dump(mode="json", by_alias=True))
        self.end(None)
        self._interrupted: deque[FrozenTrial] = deque()
        self._interrupted_probes: dict[str, FrozenTrial] = {}
        self._recover_running()

    def _recover_running(self) -> None:
        """Recover the trials that were running when the driver died.

        A trial that was measured is told to Optuna. The others are proposed again, under their own numbers.
        """
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if "seconds" in trial.user_attrs:
                result = read_trial(trial)
                measurements = self.with_smoothed_times(result.policy, result.search)
                self._finish(writable(self.study, trial), measurements, result.failure, trial.constraints)
            elif "probe" in trial.user_attrs:
                self._interrupted_probes[trial.user_attrs.get("fingerprint", "")] = trial
            else:
                self._interrupted.append(trial)

    @property
    def interrupted(self) -> bool:
        """True while trials that were interrupted wait to be proposed again."""
        return bool(self._interrupted)

    def ask(self) -> Proposal | None:
        """Ask the sampler for the next policy, and store it as running.

        Returns:
            The policy; None where the space forbids what the sampler proposed.
        """
        self._update_sampler()
        interrupted = self._interrupted.popleft() if self._interrupted else None
        trial = sample_trial(self.study, self.space, self._drawn, self._skip_sampler, interrupted)
        policy = self.parameters.policy(trial.params)
        if not self.parameters.allows(policy):
            # The trial gets no policy among its attributes, so only the sampler sees it.
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        trial.set_user_attr("fingerprint", policy.fingerprint)
        trial.set_user_attr("policy", json.dumps(policy.document(), sort_keys=True))
        self._storage.write(trial._trial_id)
        return Proposal(trial, policy)

    def ask_probe(self, labels: Mapping[str, str], baseline: str) -> Proposal:
        """Store a probe as running: a policy that is measured by the guide alone, outside the budget.

        Args:
            labels: By parameter.
            baseline: The path that the probe belongs to, as `name: setting`.

        Raises:
            StudyError: the space forbids the policy.
        """
        policy = self.parameters.policy(labels)
        interrupted = self._interrupted_probes.pop(policy.fingerprint, None)
        if interrupted is not None:
            return Proposal(writable(self.study, interrupted), policy)
        self.study.enqueue_trial(self.parameters.labels(labels), user_attrs={"rule": baseline, "probe": True})
        proposal = self.ask()
        if proposal is None:
            raise StudyError("a probe is forbidden by the space", [str(dict(labels))], "report this: it is a defect")
        return proposal

    def enqueue_initial_points(self) -> None:
        """Enqueue the initial points of a guided search that wait for its probes, once."""
        enqueue_waiting(self.study)

    def enqueue_random(self, excluded: Container[str]) -> bool:
        """Enqueue a random policy that was not measured, for a sampler that repeats itself.

        Args:
            excluded: Fingerprints of other policies that must not be drawn.

        Returns:
            False where many draws found no such policy.
        """
        seed = f"{self.space.search.seed}:{len(self.study.get_trials(deepcopy=False))}"
        labels = draw_new(self.parameters, seed, lambda drawn: drawn in self._policies or drawn in excluded)
        if labels is not None:
            self.study.enqueue_trial(labels)
        return labels is not None

    def _make_sampler(self) -> None:
        """Make our own sampler where the space names it; it reads all trials anew."""
        if self.space.search.sampler != "auto":
            return
        stand_ins = stand_ins_of(self.study.user_attrs)
        predicted = {stand_in.metric for stand_in in stand_ins if stand_in.cost in self.space.objectives}
        inputs = SamplerInputs(self.space, self._policies, self.guide, self._read_smoothed, predicted)
        self._skip_sampler = make_skip_sampler(self.space, self.parameters, self._drawn, inputs)

    def _read_smoothed(self, trial: FrozenTrial) -> TrialResult:
        return self.times.smooth(self.read(trial))

    def _update_sampler(self) -> None:
        """Make the sampler anew where the model of times was refitted, because the times of old trials change then."""
        self.refit_times()
        version = self.times.version, len(self.times.stand_ins)
        if version != self._times_version:
            self._make_sampler()
            self._times_version = version

    def tell(self, proposal: Proposal, outcome: Outcome, duplicate_of: int | None = None) -> None:
        """Finish a trial with its outcome; Optuna prunes a trial that lacks an objective or answered some examples.

        Args:
            proposal: The trial.
            outcome: What it measured.
            duplicate_of: The trial whose outcome it is, where both have the same policy.
        """
        measurements = self.with_smoothed_times(proposal.policy, outcome.measurements)
        attributes = trial_attributes(replace(outcome, measurements=measurements))
        if duplicate_of is not None:
            attributes = {"shared_from": duplicate_of, **attributes}
        for key, value in attributes.items():
            proposal.trial.set_user_attr(key, value)
        self._finish(proposal.trial, measurements, outcome.failure)

    def _finish(
        self,
        trial: Trial,
        measurements: Mapping[str, Measurement],
        failure: str | None,
        constraints: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Tell Optuna a trial whose attributes are written.

        Args:
            trial: The trial.
            measurements: What it measured, with smoothed times.
            failure: Why it failed; None where it did not.
            constraints: The constraints that are written already.
        """
        for name, excess in self.violations(measurements).items():
            if name not in constraints:
                trial.set_constraint(name, excess)
        on_all_examples = trial.user_attrs.keys().isdisjoint({"dropped", "estimates"})
        values = self._values(measurements) if failure is None and on_all_examples else None
        self.study.tell(trial, values, trial_state(failure, values))
        result = self.result(trial.number)
        if failure is not None:
            self._policies.add_failure(result.policy.fingerprint)
        elif result.policy.fingerprint not in self._policies:
            self._add(result)

    def keep_promoted(self, paused: TrialResult, outcome: Outcome, begun: datetime) -> TrialResult | None:
        """Store what a promoted trial has measured, as a trial that continues it.

        Args:
            paused: The trial that was promoted.
            outcome: What it measured, before and since. Where it failed, the paused trial stays as it is, and the
                reason is stored beside it.
            begun: When the promotion began.

        Returns:
            The trial that continues it; None where it failed.
        """
        if outcome.failure is not None:
            add_promotion_failure(self.study, paused.number, outcome)
            return None
        measurements = self.with_smoothed_times(paused.policy, outcome.measurements)
        outcome = replace(outcome, measurements=measurements)
        on_all_examples = outcome.early_stopped is None and not outcome.estimates
        values = self._values(measurements) if on_all_examples else None
        frozen = self.frozen_trial(paused.number)
        add_promoted_trial(self.study, frozen, outcome, values, self.violations(measurements), begun)
        promoted = self.result(-1)
        self._add(replace(promoted, number=paused.number))
        return promoted

    def _values(self, measurements: Mapping[str, Measurement]) -> list[float] | None:
        """The objectives; None where one was not measured."""
        is_complete = all(name in measurements for name in self.space.objectives)
        return self._policies.objective_values(measurements) if is_complete else None

    def num_promotion_failures(self, number: int) -> int:
        """How often a trial failed after a promotion."""
        return len(promotion_failures(self.study.user_attrs, number))

    def _add(self, result: TrialResult) -> None:
        """Add the result of a policy, which may decide between the two metrics of the guide."""
        self._policies.add(result)
        if self.guide is None or self.guide.evaluator != ANSWER_LOSS or GUIDE_CHOSEN in self.study.user_attrs:
            return
        both = [one for one in self._policies if {QUALITY, ANSWER_LOSS} <= one.search.keys()]
        if len(both) < TRIALS_TO_CHOOSE_METRIC:
            return
        metric = best_guide_metric(both)
        self.study.set_user_attr(GUIDE_CHOSEN, metric)
        if metric != self.guide.metric:
            self.study.set_user_attr(GUIDE, metric)
            self.guide = Guide(metric)
            self._make_sampler()

    def find_duplicate(self, proposal: Proposal) -> TrialResult | None:
        """The trial that measured the same policy before; None where there is none."""
        return self._policies.get(proposal.policy.fingerprint)

    def has_result(self, fingerprint: str) -> bool:
        """True for a policy that was measured, by the guide at least, or that failed."""
        return fingerprint in self._policies or self._policies.has_failed(fingerprint)

    def probe_result(self, labels: Mapping[str, str]) -> Probe | None:
        """The guide's loss of a policy, and the cost that greedy deletion saves; None where it was not measured."""
        result = self._policies.get(self.parameters.policy(labels).fingerprint)
        loss = None if result is None or self.guide is None else self.guide.loss(result.search)
        if result is None or loss is None:
            return None
        name = greedy_cost(self.space)
        cost = result.search[name].value if name else -skipped_share(result.policy.choices(self.num_layers))
        return Probe(loss, cost)

    def chance_loss(self) -> float:
        """The guide's loss of guessing, beyond which a policy is useless; infinite where the tasks do not define it."""
        return math.inf if self.guide is None else self.guide.chance_loss(self.dense_measurements() or {})

    def score_predictor(self) -> ScorePredictor:
        """Predicts what paused trials would score on all examples."""
        return self._policies.score_predictor(self.guide)

    def violations(self, measurements: Mapping[str, Measurement]) -> dict[str, float]:
        """By constrained metric that was measured, how far it lies beyond its bound; above 0 it violates it."""
        return self._policies.violations(measurements)

    def surely_violates(self, policy: Policy, outcome: Outcome) -> bool:
        """True where a policy violates a constraint by its measurements so far, however uncertain its times are."""
        return self._policies.surely_violates(self.with_smoothed_times(policy, outcome.measurements))

    def dense_measurements(self) -> Mapping[str, Measurement] | None:
        """The measurements of the dense model; None before trial 0 is finished."""
        return self._policies.dense_measurements()

    def dense_seconds(self) -> float | None:
        """How long the dense model's trial took; None before it is finished."""
        dense = self._policies.dense()
        return dense.seconds.get("total") if dense else None

    @property
    def size(self) -> int:
        """How many different policies the space has, at most."""
        return self.parameters.size

    @property
    def num_measured(self) -> int:
        """How many different policies were measured."""
        return len(self._policies)

    def end(self, reason: str | None) -> None:
        """Store why the search ended; None while it runs."""
        self.study.set_user_attr("ended", reason)

    def confirm(self, fingerprint: str, measurements: Mapping[str, Measurement], key: VisitKey = "report") -> None:
        """Store the measurements of a policy that were made once the search had ended."""
        self.study.set_user_attr(f"{key}:{fingerprint}", measurements_json(measurements))

    def recoveries(self) -> list[Recovery]:
        """The trainings of policies once the search had ended."""
        return read_recoveries(self.final_results(), self.study.user_attrs, self.folder, self.violations)

    def outcomes(self) -> list[TrialResult]:
        """The final results, of which a policy that was trained counts with its trained weights where these help."""
        return with_recoveries(self.final_results(), self.recoveries(), self.space.objectives)

    def is_confirmed(self, policy: Policy, key: VisitKey = "report") -> bool:
        """True where the study has these measurements of a policy."""
        return f"{key}:{policy.fingerprint}" in self.study.user_attrs
