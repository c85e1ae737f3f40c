"""The study: an Optuna study in SQLite that holds every trial, and is the only truth about a search.

Measurements, fingerprints and reasons stand in trial attributes, so `optuna-dashboard` shows them, a killed search
resumes from them, and everything else in the study's folder can be made from them again.
"""

import json
import random
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, Trial, TrialState

from ..evaluators.base import Measurement
from ..policies.errors import StudyError
from ..policies.policy import Policy
from .database import storage, trial_record
from .front import objective_value
from .outcome import Outcome
from .parameters import Parameters
from .record import TrialRecord
from .samplers import make_sampler, own_sampler, population, quiet
from .space import Space
from .stopping import spent_seconds


def against(part: Measurement, dense: Measurement) -> Measurement:
    """A figure of some examples, moved by how much easier these were for the dense model than all examples are."""
    scores = dense.detail.get("per_example", [])
    places = [place for place in part.detail.get("places", []) if place < len(scores)]
    easier = sum(scores[place] for place in places) / len(places) - dense.value if places else 0.0
    return replace(part, value=part.value - easier)


@dataclass(frozen=True)
class Proposal:
    """A policy that Optuna asks to be measured."""

    trial: Trial
    policy: Policy

    @property
    def number(self) -> int:
        """Optuna's number of the trial."""
        return self.trial.number


class SearchStudy:
    """Asks Optuna for policies and tells it what they measured.

    Args:
        path: The database.
        name: The study's name.
        space: The search space.
        num_layers: The model's decoder layers.
        resume: Go on with a study that exists; else it must not.
        model_id: What to call the model; its id in the space where none is given.

    Raises:
        StudyError: the study exists and is not to be resumed, or was made for another space, model or task.
    """

    def __init__(
        self, path: Path, name: str, space: Space, num_layers: int, resume: bool = False, model_id: str | None = None
    ) -> None:
        quiet()
        self.space = space
        self.model_id = model_id or space.model.id
        self.num_layers = num_layers
        self.parameters = Parameters(space, num_layers)
        self._own = own_sampler(space, self.parameters, self._estimate) if space.search.sampler == "auto" else None
        self.check_free(path, resume)
        self.study = self._opened(path, name)
        self._check_same(path)
        if not self._any(TrialState.COMPLETE):
            # Nothing is measured yet, not even dense: what a kill left half begun is not worth mending.
            optuna.delete_study(study_name=self.study.study_name, storage=storage(path))
            self.study = self._opened(path, name)
            self._begin()
        self._records: dict[int, TrialRecord] = {}
        self._told: dict[str, TrialRecord] = {}
        for record in self.records():
            if record.state == "complete":
                self._told.setdefault(record.policy.fingerprint, record)
        self.study.set_user_attr("space", self.space.model_dump(mode="json", by_alias=True))
        self.end(None)
        self._finish_interrupted()

    @staticmethod
    def check_free(path: Path, resume: bool) -> None:
        """Refuse to write over a study, or to resume one that is not there.

        Raises:
            StudyError: see above.
        """
        if path.exists() and not resume:
            raise StudyError(
                f"{path.parent} already holds a study",
                hint="go on with it with `--resume`, or give the new one another name with `--name`",
            )
        if resume and not path.exists():
            raise StudyError(f"{path.parent} holds no study to resume", [f"expected {path}"], "leave out `--resume`")

    def _opened(self, path: Path, name: str) -> optuna.Study:
        known = optuna.get_all_study_names(storage(path))
        directions = list(self.space.objectives.values())
        return optuna.create_study(
            study_name=known[0] if known else name, storage=storage(path), directions=directions, load_if_exists=True
        )

    def _any(self, *states: TrialState) -> bool:
        return bool(self.study.get_trials(deepcopy=False, states=states))

    def _facts(self) -> dict[str, Any]:
        return {"fingerprint": self.space.fingerprint(), "num_layers": self.num_layers}

    def _check_same(self, path: Path) -> None:
        facts, known = self._facts(), self.study.user_attrs.get("facts")
        if known is not None and known != facts:
            raise StudyError(
                "the study was made for another space, model or task",
                [f"{path}: fingerprint {known['fingerprint']} with {known['num_layers']} layers",
                 f"the space now: fingerprint {facts['fingerprint']} with {facts['num_layers']} layers"],
                "resume with the space file and the `--set` it was begun with, or give the new study another `--name`",
            )  # fmt: skip

    def _begin(self) -> None:
        """Note what the study is about, and queue the dense model, which is trial 0, and the rules."""
        self.study.set_user_attr("facts", self._facts())
        self.study.set_user_attr("model_id", self.model_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self.study.set_metric_names(list(self.space.objectives))
        budget = self.space.search.trials
        rules = self.parameters.starts(min(population(budget), budget) - 1)
        self.study.enqueue_trial(self.parameters.labels())
        for labels in rules if self.space.search.start == "rules" else []:
            self.study.enqueue_trial(labels, user_attrs={"rule": self.parameters.rule(labels)})

    def _finish_interrupted(self) -> None:
        """Tell what was measured when the driver died; fail what was not, and queue the same policies again."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if "seconds" in trial.user_attrs:
                record = trial_record(trial)
                self._tell(Trial(self.study, trial._trial_id), record.search, record.failure, trial.constraints)
                continue
            self.study.tell(trial.number, state=TrialState.FAIL)
            if len(trial.params) == len(self.parameters.distributions):
                rule = {key: text for key, text in trial.user_attrs.items() if key == "rule"}
                self.study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number, **rule})

    def ask(self) -> Proposal | None:
        """The next policy to measure, noted as running; None where the space forbids what the sampler proposed."""
        search = self.space.search
        number = len(self.study.get_trials(deepcopy=False))
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        number = waiting[0].number if waiting else number
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self.study.sampler = self._own or make_sampler(search.sampler, search.seed, number, search.trials)
            trial = self.study.ask(self.parameters.distributions)
            if self._own is None:
                # A queued trial is never a parent of NSGA-II unless its sampler is asked for the generation.
                _ = trial.relative_params
        policy = self.parameters.policy(trial.params)
        if not self.parameters.allows(policy):
            # Without a policy in its attributes it is no trial of the search, only of the sampler.
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        trial.set_user_attr("fingerprint", policy.fingerprint)
        trial.set_user_attr("policy", json.dumps(policy.document(), sort_keys=True))
        return Proposal(trial, policy)

    def _estimate(self, trial: FrozenTrial) -> list[float] | None:
        """The objectives of a trial that was given up, its luck with the examples it saw taken off."""
        record, dense = trial_record(trial), self.dense_measurements()
        if dense is None or not record.estimates:
            return None
        level = {name: against(entry, dense[name]) for name, entry in record.estimates.items() if name in dense}
        found = {**record.search, **level}
        return self.values(found) if all(name in found for name in self.space.objectives) else None

    def enqueue_random(self) -> None:
        """Queue a policy drawn at random, for a sampler that repeats itself."""
        draw = random.Random(f"{self.space.search.seed}:{len(self.study.get_trials(deepcopy=False))}")
        self.study.enqueue_trial(self.parameters.random(draw))

    def twin(self, proposal: Proposal) -> TrialRecord | None:
        """The trial that measured the same policy already, or None."""
        return self._told.get(proposal.policy.fingerprint)

    def tell(self, proposal: Proposal, outcome: Outcome, shared_from: int | None = None) -> None:
        """Finish a trial with what it measured; one that measured too little is told as failed or stopped early."""
        trial = proposal.trial
        plain = {name: asdict(measurement) for name, measurement in outcome.measurements.items()}
        trial.set_user_attr("measurements", json.dumps(plain))
        rough = {name: asdict(measurement) for name, measurement in outcome.estimates.items()}
        notes = {
            "failure": outcome.failure,
            "dropped": outcome.dropped,
            "estimates": json.dumps(rough) if rough else None,
            "worker": outcome.worker,
            "shared_from": shared_from,
        }
        for key, value in notes.items():
            if value is not None:
                trial.set_user_attr(key, value)
        # The last of them: where it stands, the trial is measured.
        trial.set_user_attr("seconds", dict(outcome.seconds))
        self._tell(trial, outcome.measurements, outcome.failure)

    def _tell(
        self,
        trial: Trial,
        measurements: Mapping[str, Measurement],
        failure: str | None,
        bounded: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        for name, excess in self.violations(measurements).items():
            if name not in bounded:
                trial.set_constraint(name, excess)
        if failure is not None:
            self.study.tell(trial, state=TrialState.FAIL)
        elif "dropped" not in trial.user_attrs and all(name in measurements for name in self.space.objectives):
            self.study.tell(trial, self.values(measurements))
        else:
            self.study.tell(trial, state=TrialState.PRUNED)
        if failure is None:
            record = self.record(trial.number)
            self._told.setdefault(record.policy.fingerprint, record)

    def values(self, measurements: Mapping[str, Measurement]) -> list[float]:
        """The objectives of a trial, latencies corrected for the drift of the machine."""
        dense = self.dense_measurements() or measurements
        return [objective_value(name, measurements[name], dense.get(name)) for name in self.space.objectives]

    def violations(self, measurements: Mapping[str, Measurement]) -> dict[str, float]:
        """How far each bounded metric that was measured lies beyond its bound."""
        dense = self.dense_measurements() or measurements
        return {
            name: bound.excess(objective_value(name, measurements[name], dense[name]), dense[name].value)
            for name, bound in self.space.constraints.items()
            if name in measurements and name in dense
        }

    def dense_measurements(self) -> Mapping[str, Measurement] | None:
        """What the dense model measured; None before trial 0 is finished."""
        first = next((r for r in self._told.values() if r.policy.is_dense and r.state == "complete"), None)
        return first.search if first else None

    def record(self, number: int) -> TrialRecord:
        """A trial that was asked for, by its number."""
        return self._record(self._frozen(number))

    def records(self) -> list[TrialRecord]:
        """Every trial that was asked for, by number, without the figures of the report split."""
        asked = [trial for trial in self.study.get_trials(deepcopy=False) if "policy" in trial.user_attrs]
        return [self._record(trial) for trial in asked]

    @property
    def size(self) -> int:
        """How many different policies there are in the space, at most."""
        return self.parameters.size

    @property
    def known(self) -> int:
        """How many different policies were measured."""
        return len(self._told)

    def _spent(self) -> list[FrozenTrial]:
        done = [t for t in self.study.get_trials(deepcopy=False) if t.state.is_finished() and "seconds" in t.user_attrs]
        return [trial for trial in done if "shared_from" not in trial.user_attrs]

    def measured(self) -> int:
        """How much of the budget is spent: trials that finished or failed by themselves, without duplicates."""
        return len(self._spent())

    def ended(self) -> list[TrialRecord]:
        """The trials of the budget that is spent, in the order in which they ended."""
        numbered = sorted((str(trial.datetime_complete), trial.number) for trial in self._spent())
        return [self.record(number) for _, number in numbered]

    def spent_seconds(self) -> float:
        """How long trials ran so far, apart from what an interruption lasted: those at the same time count once."""
        begins = [(trial.datetime_start, trial.user_attrs["seconds"].get("total", 0.0)) for trial in self._spent()]
        return spent_seconds((begin.timestamp(), begin.timestamp() + total) for begin, total in begins if begin)

    def end(self, reason: str | None) -> None:
        """Keep why the search ended."""
        self.study.set_user_attr("ended", reason)

    def confirm(self, fingerprint: str, measurements: Mapping[str, Measurement]) -> None:
        """Keep what a policy measured on the report split."""
        plain = {name: asdict(measurement) for name, measurement in measurements.items()}
        self.study.set_user_attr(f"report:{fingerprint}", json.dumps(plain))

    def is_confirmed(self, policy: Policy) -> bool:
        """True where a policy was measured on the report split."""
        return f"report:{policy.fingerprint}" in self.study.user_attrs

    def _frozen(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def _record(self, trial: FrozenTrial) -> TrialRecord:
        if not trial.state.is_finished():
            return trial_record(trial)
        if trial.number not in self._records:
            self._records[trial.number] = trial_record(trial)
        return self._records[trial.number]
