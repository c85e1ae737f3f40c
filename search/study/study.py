"""The study: an Optuna study in SQLite that holds every trial, and is the only truth about a search.

Measurements, fingerprints and reasons stand in trial attributes, so `optuna-dashboard` shows them, a killed search
resumes from them, and everything else in the study's folder can be made from them again.
"""

import json
import math
import random
import warnings
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from ...evaluators.base import Measurement
from ...policies.errors import StudyError
from ...policies.policy import Policy
from ..baselines.dense_stats import DENSE_STATS, DenseStats, load_or_probe
from ..guide.greedy import Probe
from ..guide.guide import DECIDED_BY, Guide, better_metric
from ..sampler.skip_sampler import SkipSampler
from ..sampler.trial_history import Estimated
from ..space.fingerprint import Digests
from ..space.guide_metrics import ANSWER_LOSS, QUALITY
from ..space.objectives import expensive_objective, greedy_cost
from ..space.parameters import Parameters
from ..space.space import Space
from ..trial.modelled_time import ModelledTime, at_best, plain
from ..trial.outcome import Outcome
from ..trial.pareto import objective_value
from ..trial.trial_result import TrialResult
from .expected_results import Known
from .guided_trials import corner, told_by_loss
from .samplers import make_sampler, own_sampler, population, quiet
from .storage import measurements_text, setback_key, storage, trial_record
from .study_times import TimedLedger, stand_ins_of
from .warm_start import saved, starts
from .write_through import WriteThrough

GUIDE = "guide"  # where a study keeps which figure guides it
CHOSEN = "guide_chosen"  # and that two figures were compared
QUEUED = "starts"  # and the rules that wait for the probes
DIGESTS = "digests.json"  # beside the study: what large files of weights contain
REPEATS = 1000  # random policies that are all known, after which a space is taken to have no other


def attributes(outcome: Outcome) -> dict[str, Any]:
    """What was measured, as a trial's attributes; where the last of them stands, the trial is measured."""
    predicted = [name for name, one in outcome.measurements.items() if isinstance(one, ModelledTime) and not one.n]
    measured, rough = (
        {name: plain(entry) for name, entry in entries.items() if name not in predicted}
        for entries in (outcome.measurements, outcome.estimates)
    )
    notes = {
        "failure": outcome.failure,
        "dropped": outcome.early_stopped,
        "worker": outcome.worker,
        "traceback": outcome.traceback,
    }
    return {
        "measurements": json.dumps(measured),
        **({"estimates": json.dumps(rough)} if rough else {}),
        **({"predicted": predicted} if predicted else {}),
        **{key: value for key, value in notes.items() if value is not None},
        "seconds": dict(outcome.seconds),
    }


@dataclass(frozen=True)
class Proposal:
    """A policy that Optuna asks to be measured."""

    trial: Trial
    policy: Policy

    @property
    def number(self) -> int:
        """Optuna's number of the trial."""
        return self.trial.number

    @property
    def baseline(self) -> str | None:
        """What rules it is, where the search starts from it."""
        rule: str | None = self.trial.user_attrs.get("rule")
        return rule


class SearchStudy(TimedLedger):
    """Asks Optuna for policies and tells it what they measured.

    Args:
        path: The database.
        name: The study's name.
        space: The search space.
        num_layers: The model's decoder layers.
        resume: Go on with a study that exists; else it must not.
        model_id: What to call the model; its id in the space where none is given.
        probe_dense: Finds out what some baselines need to know of the model; it is asked once in a study, and only
            where such a baseline is named.
        guide: The evaluator whose loss guides the search; None searches by accuracy alone. A study that is resumed
            keeps its own.
        commit: Of the model on the hub, where it comes from there.

    Raises:
        StudyError: the study exists and is not to be resumed, or was made for another space, model or task; or a rule
            needs statistics of the dense model, and nothing probes it.
    """

    def __init__(
        self, path: Path, name: str, space: Space, num_layers: int, resume: bool = False, model_id: str | None = None,
        probe_dense: Callable[[], DenseStats] | None = None, guide: str | None = None, commit: str | None = None,
    ) -> None:  # fmt: skip
        quiet()
        self.space = space
        self._commit, self._digests = commit, Digests(path.with_name(DIGESTS))
        self.model_id = model_id or space.model.id
        self.num_layers = num_layers
        self.parameters = Parameters(space, num_layers)
        self.check_free(path, resume)
        self.study = self._opened(path, name)
        self._check_same(path)
        if not self._any(TrialState.COMPLETE):
            # Nothing is measured yet, not even dense: what a kill left half begun is not worth mending.
            known = load_or_probe(self.study.user_attrs, self.space.search.baselines, self.parameters.domains, probe_dense)
            optuna.delete_study(study_name=self.study.study_name, storage=storage(path))
            self.study = self._opened(path, name)
            self._begin(known, guide)
        metric = self.study.user_attrs.get(GUIDE)
        self.guide = Guide(metric) if metric else None
        self._own = self._sampler() if space.search.sampler == "auto" else None
        super().__init__(self.study, space, num_layers)
        self._version = 0, 0
        self._told: dict[str, TrialResult] = {}
        self._failed: set[str] = set()
        self._known: Known | None = None
        for record in self.records():
            if record.state == "complete":
                self._told.setdefault(record.policy.fingerprint, record)
            elif record.state == "failed":
                self._failed.add(record.policy.fingerprint)
        self.study.set_user_attr("space", self.space.model_dump(mode="json", by_alias=True))
        self.end(None)
        self._interrupted: deque[FrozenTrial] = deque()
        self._probing: dict[str, FrozenTrial] = {}
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
        database = storage(path)
        known = optuna.get_all_study_names(database)
        if not known:
            optuna.create_study(study_name=name, storage=database, directions=list(self.space.objectives.values()))
        name = known[0] if known else name
        self._storage = WriteThrough(database, name)
        return optuna.load_study(study_name=name, storage=self._storage)

    def _any(self, *states: TrialState) -> bool:
        return bool(self.study.get_trials(deepcopy=False, states=states))

    def _facts(self) -> dict[str, Any]:
        commit = {} if self._commit is None else {"commit": self._commit}
        return {"fingerprint": self.space.fingerprint(self._digests), "num_layers": self.num_layers, **commit}

    def _check_same(self, path: Path) -> None:
        facts, known = self._facts(), self.study.user_attrs.get("facts")
        if known is not None and known.get("commit", self._commit) != self._commit:
            raise StudyError(
                "the study was made for another model",
                [f"{path}: commit {known['commit']} of {self.model_id}", f"the model now: commit {self._commit}"],
                "the hub or the cache gives another commit than the study's; load that one, or begin a new study",
            )
        if known is not None and any(known[key] != facts[key] for key in ("fingerprint", "num_layers")):
            raise StudyError(
                "the study was made for another space, model or task",
                [f"{path}: fingerprint {known['fingerprint']} with {known['num_layers']} layers",
                 f"the space now: fingerprint {facts['fingerprint']} with {facts['num_layers']} layers"],
                "resume with the space file and the `--set` it was begun with, or give the new study another `--name`",
            )  # fmt: skip

    def _begin(self, stats: DenseStats, guide: str | None) -> None:
        """Note what the study is about, and queue the dense model, which is trial 0, and the rules.

        A guided search has its greedy path in the place of rules that look at nothing but a layer's place.
        """
        self.study.set_user_attr(GUIDE, guide)
        self.study.set_user_attr("facts", self._facts())
        if stats.forwards:
            self.study.set_user_attr(DENSE_STATS, stats.to_dict())
        self.study.set_user_attr("model_id", self.model_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self.study.set_metric_names(list(self.space.objectives))
        budget = self.space.search.trials
        self.study.enqueue_trial(self.parameters.labels())
        rules = self.space.search.baselines
        if guide is not None and self.space.search.start == "rules":
            rules = []
        begun = starts(self.parameters, rules, min(population(budget), budget) - 1, stats)
        queued = [{"labels": dict(start.labels), "rule": start.baseline} for start in begun]
        if guide is None:
            self._queue(queued)
        else:
            self.study.set_user_attr(QUEUED, queued)

    def _queue(self, starts: Iterable[Mapping[str, Any]]) -> None:
        for start in starts:
            self.study.enqueue_trial(start["labels"], user_attrs={"rule": start["rule"]})

    def queue_starts(self) -> None:
        """Queue the rules that a guided search begins with besides its path, once, when the probes are done."""
        self._queue(self.study.user_attrs.get(QUEUED) or ())
        self.study.set_user_attr(QUEUED, None)

    def _finish_interrupted(self) -> None:
        """Tell what was measured when the driver died; what was not is asked for again, under its own number."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if "seconds" in trial.user_attrs:
                record = trial_record(trial)
                told = self.told(record.policy, record.search)
                self._tell(Trial(self.study, trial._trial_id), told, record.failure, trial.constraints)
            elif "probe" in trial.user_attrs:
                self._probing[trial.user_attrs.get("fingerprint", "")] = trial
            else:
                self._interrupted.append(trial)

    @property
    def interrupted(self) -> bool:
        """True while a trial is asked for again that ran when the driver died."""
        return bool(self._interrupted)

    def ask(self) -> Proposal | None:
        """The next policy to measure, noted as running; None where the space forbids what the sampler proposed."""
        search = self.space.search
        self._with_times()
        begun = self._interrupted.popleft() if self._interrupted else None
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        following = waiting[0].number if waiting else len(self.study.get_trials(deepcopy=False))
        number = begun.number if begun else following
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self.study.sampler = self._own or make_sampler(search.sampler, search.seed, number, search.trials)
            trial = Trial(self.study, begun._trial_id) if begun else self.study.ask()
            for name, labels in self.parameters.options.items():
                trial.suggest_categorical(name, labels)
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
        self._storage.write(trial._trial_id)
        return Proposal(trial, policy)

    def ask_probe(self, labels: Mapping[str, str], baseline: str) -> Proposal:
        """Note a policy as running that is measured by the guide alone, outside of the budget.

        Args:
            labels: By parameter.
            baseline: What it belongs to, as `name: setting`.

        Raises:
            StudyError: the space forbids it.
        """
        policy = self.parameters.policy(labels)
        begun = self._probing.pop(policy.fingerprint, None)
        if begun is not None:
            return Proposal(Trial(self.study, begun._trial_id), policy)
        self.study.enqueue_trial(self.parameters.labels(labels), user_attrs={"rule": baseline, "probe": True})
        proposal = self.ask()
        if proposal is None:
            raise StudyError("a probe is forbidden by the space", [str(dict(labels))], "report this: it is a defect")
        return proposal

    def is_known(self, fingerprint: str) -> bool:
        """True for a policy that was measured, by the guide at least, or that failed."""
        return fingerprint in self._told or fingerprint in self._failed

    def probed(self, labels: Mapping[str, str]) -> Probe | None:
        """What a policy measured by the guide, and the cost that it saves; None where it was not measured."""
        record = self._told.get(self.parameters.policy(labels).fingerprint)
        loss = None if record is None or self.guide is None else self.guide.loss(record.search)
        if record is None or loss is None:
            return None
        name = greedy_cost(self.space)
        cost = record.search[name].value if name else -saved(record.policy.choices(self.num_layers))
        return Probe(loss, cost)

    def guessing_loss(self) -> float:
        """The guide's loss of guessing, beyond which a policy is no use; infinite where the tasks do not tell."""
        return math.inf if self.guide is None else self.guide.guessing(self._dense())

    def _sampler(self) -> SkipSampler:
        guessing = None if self.guide is None else (lambda: self._dense()[QUALITY].floor)
        told = self._estimate if self.guide is None else self._guided
        known = {one.metric for one in stand_ins_of(self.study.user_attrs) if one.cost in self.space.objectives}
        ignored = [place for place, name in enumerate(self.space.objectives) if name in known]
        return own_sampler(
            self.space, self.parameters, told, lambda: corner(self.space, self._dense(), self.guide), guessing, ignored
        )

    def _dense(self) -> Mapping[str, Measurement]:
        """What the dense model measured, of a search that has begun."""
        return self.dense_measurements() or {}

    def _guided(self, trial: FrozenTrial) -> Estimated | None:
        """What the sampler is told of a trial of a guided search."""
        record = self.times.smoothed(self.read(trial))
        broken = self.violations(record.search)
        return None if self.guide is None else told_by_loss(record, self.guide, self.space, self._dense(), broken)

    def _choose_metric(self) -> None:
        """Choose between the two figures of the right answers, when enough policies have their accuracy."""
        if self.guide is None or self.guide.evaluator != ANSWER_LOSS or CHOSEN in self.study.user_attrs:
            return
        both = [record for record in self._told.values() if {QUALITY, ANSWER_LOSS} <= record.search.keys()]
        if len(both) < DECIDED_BY:
            return
        metric = better_metric(both)
        self.study.set_user_attr(CHOSEN, metric)
        if metric != self.guide.metric:
            self.study.set_user_attr(GUIDE, metric)
            self.guide, self._known = Guide(metric), None
            self._own = self._sampler()

    def _estimate(self, trial: FrozenTrial) -> Estimated | None:
        """What a trial that answered few examples is expected to measure, and one in full where times are smoothed."""
        dense, objectives = self.dense_measurements(), list(self.space.objectives)
        record = self.times.smoothed(self.read(trial))
        if dense is not None and record.full_fidelity and all(name in record.search for name in objectives):
            modelled = any(isinstance(record.search[name], ModelledTime) for name in objectives)
            return Estimated(self.values(record.search), 0.0) if modelled else None
        if dense is None or not record.estimates:
            return None
        found, name = self.known_in_full().expected(record), objectives[expensive_objective(self.space)]
        if any(objective not in found for objective in objectives):
            return None
        # Of a bound on an objective the sampler learns how it depends on that.
        bounded = {bound: excess for bound, excess in self.violations(found).items() if bound not in objectives}
        return Estimated(self.values(found), found[name].stderr or 0.0 if name in record.estimates else 0.0, bounded)

    def known_in_full(self) -> Known:
        """Who has answered all examples, dense first."""
        if self._known is None:
            records = sorted(self._told.values(), key=lambda record: record.number)
            self._known = Known.of(records, self.guide, self.space)
        return self._known

    def _tells(self, record: TrialResult) -> None:
        """Keep what a policy measured, for those that are to be told by it."""
        self._told[record.policy.fingerprint] = record
        if not record.estimates:
            self._known = None
        self._choose_metric()

    def enqueue_random(self, known: Container[str]) -> bool:
        """Queue a policy drawn at random, for a sampler that repeats itself.

        Args:
            known: Fingerprints of policies that are not wanted, besides those that were measured.

        Returns:
            False where many draws found none that is new.
        """
        draw = random.Random(f"{self.space.search.seed}:{len(self.study.get_trials(deepcopy=False))}")
        for _ in range(REPEATS):
            labels = self.parameters.random(draw)
            fingerprint = self.parameters.policy(labels).fingerprint
            if fingerprint not in self._told and fingerprint not in known:
                self.study.enqueue_trial(labels)
                return True
        return False

    def find_duplicate(self, proposal: Proposal) -> TrialResult | None:
        """The trial that measured the same policy already, or None."""
        return self._told.get(proposal.policy.fingerprint)

    def tell(self, proposal: Proposal, outcome: Outcome, duplicate_of: int | None = None) -> None:
        """Finish a trial with what it measured; one that measured too little is told as failed or stopped early."""
        trial, told = proposal.trial, self.told(proposal.policy, outcome.measurements)
        outcome = replace(outcome, measurements=told)
        shared = {} if duplicate_of is None else {"shared_from": duplicate_of}
        for key, value in {**shared, **attributes(outcome)}.items():
            trial.set_user_attr(key, value)
        self._tell(trial, outcome.measurements, outcome.failure)

    def keep_promoted(self, record: TrialResult, outcome: Outcome, begun: datetime) -> TrialResult | None:
        """Keep what a trial that was set aside has measured by now, in one piece, as a trial that continues it.

        Args:
            record: The trial.
            outcome: What it measured, before and since. Where it failed, the trial stays as it was, and the reason is
                kept beside it.
            begun: When it went on.

        Returns:
            The trial that continues it; None where it failed.
        """
        if outcome.failure is not None:
            self._keep_setback(record.number, outcome)
            return None
        outcome = replace(outcome, measurements=self.told(record.policy, outcome.measurements))
        first = self.frozen(record.number)
        kept: dict[str, Any] = {
            key: first.user_attrs[key] for key in ("policy", "fingerprint", "rule", "probe") if key in first.user_attrs
        }
        state = self._state(outcome.measurements, None, outcome.early_stopped is None and not outcome.estimates)
        trial = create_trial(
            state=state,
            values=self.values(outcome.measurements) if state == TrialState.COMPLETE else None,
            params=first.params,
            distributions=first.distributions,
            user_attrs={**kept, "continues": record.number, **attributes(outcome)},
            constraints=self.violations(outcome.measurements),
        )
        trial.datetime_start = begun
        self.study.add_trial(trial)
        continued = self.record(-1)
        self._tells(replace(continued, number=record.number))
        return continued

    def _keep_setback(self, number: int, outcome: Outcome) -> None:
        kept = json.loads(self.study.user_attrs.get(setback_key(number), "[]"))
        kept.append({"failure": outcome.failure, "traceback": outcome.traceback, "seconds": dict(outcome.seconds)})
        self.study.set_user_attr(setback_key(number), json.dumps(kept))

    def setbacks(self, number: int) -> int:
        """How often a trial failed when it was to answer more."""
        return len(json.loads(self.study.user_attrs.get(setback_key(number), "[]")))

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
        state = self._state(measurements, failure, trial.user_attrs.keys().isdisjoint({"dropped", "estimates"}))
        self.study.tell(trial, self.values(measurements) if state == TrialState.COMPLETE else None, state)
        record = self.record(trial.number)
        if failure is not None:
            self._failed.add(record.policy.fingerprint)
        elif record.policy.fingerprint not in self._told:
            self._tells(record)

    def _state(self, measurements: Mapping[str, Measurement], failure: str | None, full_fidelity: bool) -> TrialState:
        """What a trial is to Optuna: stopped early, where something was not measured, or not on all examples."""
        if failure is not None:
            return TrialState.FAIL
        whole = full_fidelity and all(name in measurements for name in self.space.objectives)
        return TrialState.COMPLETE if whole else TrialState.PRUNED

    def _with_times(self) -> None:
        """Let the sampler read all trials anew when a model of times was fitted anew: those of old trials change."""
        self.follow_times()
        version = self.times.version, len(self.times.stand_ins)
        if self._own is not None and version != self._version:
            self._own, self._version = self._sampler(), version

    def values(self, measurements: Mapping[str, Measurement]) -> list[float]:
        """The objectives of a trial, latencies corrected for the drift of the machine."""
        dense = self.dense_measurements() or measurements
        return [objective_value(name, measurements[name], dense.get(name)) for name in self.space.objectives]

    def violations(self, measurements: Mapping[str, Measurement]) -> dict[str, float]:
        """How far each bounded metric that was measured lies beyond its bound."""
        dense = self.dense_measurements() or measurements
        return {
            name: bound.excess(
                objective_value(name, measurements[name], dense[name]), dense[name].value, dense[name].floor
            )
            for name, bound in self.space.constraints.items()
            if name in measurements and name in dense
        }

    def breaks(self, policy: Policy, outcome: Outcome) -> bool:
        """True where a policy is sure to break a constraint by what was measured of it so far."""
        told, bounds = self.told(policy, outcome.measurements), self.space.constraints
        best = {name: at_best(entry, bounds[name]) for name, entry in told.items() if name in bounds}
        return any(excess > 0 for excess in self.violations(best).values())

    def dense_measurements(self) -> Mapping[str, Measurement] | None:
        """What the dense model measured; None before trial 0 is finished."""
        first = next((r for r in self._told.values() if r.policy.is_dense and r.state == "complete"), None)
        return first.search if first else None

    def dense_seconds(self) -> float | None:
        """How long the dense model's trial took; None before it is finished."""
        first = next((r for r in self._told.values() if r.policy.is_dense and r.state == "complete"), None)
        return first.seconds.get("total") if first else None

    @property
    def size(self) -> int:
        """How many different policies there are in the space, at most."""
        return self.parameters.size

    @property
    def known(self) -> int:
        """How many different policies were measured."""
        return len(self._told)

    def end(self, reason: str | None) -> None:
        """Keep why the search ended."""
        self.study.set_user_attr("ended", reason)

    def confirm(self, fingerprint: str, measurements: Mapping[str, Measurement]) -> None:
        """Keep what a policy measured on the report split."""
        self.study.set_user_attr(f"report:{fingerprint}", measurements_text(measurements))

    def is_confirmed(self, policy: Policy) -> bool:
        """True where a policy was measured on the report split."""
        return f"report:{policy.fingerprint}" in self.study.user_attrs
