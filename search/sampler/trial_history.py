"""A study's trials as observations of the search strategy, and its proposals as parameters.

All state here is derived from the trials. It is cached, because reading two thousand trials at every proposal is slow.
"""

import math
from bisect import insort
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from ..trial.arrays import Codes
from .candidates import Strategy
from .observation import Finished, Observation, merge_by_policy
from .observations import Observations
from .parameter_codec import Code, ParameterCodec, Params
from .search_space import CategoricalSpace, Scales

ASKING = timedelta(minutes=1)  # a running trial without parameters after that time never gets any: its process died


class TrialEstimate(NamedTuple):
    """Values of a trial that the sampler uses in place of those told to the study.

    Attributes:
        values: Its objectives.
        error: Standard error of the expensive objective; 0 where it was measured at full fidelity.
        constraints: Expected violations of constraints that the trial itself does not have.
        score: In a guided search the expensive objective itself, where `values` has the guide's loss in its place; NaN
            where it was not measured.
        score_error: Standard error of the score.
    """

    values: Sequence[float]
    error: float
    constraints: Mapping[str, float] = MappingProxyType({})
    score: float = math.nan
    score_error: float = 0.0


class TrialHistory:
    """Reads a study's trials and proposes the next one.

    Args:
        codec: Converts parameters.
        strategy: Makes the search strategy.
        signs: By objective 1 where it is minimised, else -1.
        expensive: Index of the objective that is no sum over the parameters.
        reference: The reference point in the objectives' own units; None derives it from the first trials.
        estimate: Gives the estimate of a pruned trial; in a guided search, the values of any trial. Where it gives None
            for a complete trial, the values told to the study count.
        layers: By parameter, its layer; parameters without one are layers of their own.
        chance_score: In a guided search, the expensive objective at chance level; else None.
        ignored: Indices of objectives that the sampler ignores.
        scales: See `CategoricalSpace`.
    """

    def __init__(
        self, codec: ParameterCodec, strategy: type[Strategy], signs: Sequence[float], expensive: int,
        reference: Sequence[float | None] | None, estimate: Callable[[Any], tuple[Any, ...] | None] | None,
        layers: Mapping[str, int], chance_score: float | None, ignored: Collection[int], scales: Scales,
    ) -> None:  # fmt: skip
        self._codec = codec
        self._estimate = estimate
        self._guided = chance_score is not None
        # The expensive objective comes first.
        self._order = [expensive, *(one for one in range(len(signs)) if one != expensive and one not in ignored)]
        self._objectives = len(signs)
        self._signs = np.array(signs)[self._order]
        beyond = len(codec.names) + max(layers.values(), default=0)
        layer_numbers = [layers.get(name, beyond + number) for number, name in enumerate(codec.names)]
        self._space = CategoricalSpace(codec.values, layer_numbers, scales)
        minimised_reference = None if reference is None else np.array(reference, float)[self._order] * self._signs
        minimised_chance = np.inf if chance_score is None else float(self._signs[0] * chance_score)
        self._strategy = strategy(self._space, minimised_reference, minimised_chance)
        # Trials: how many were read, which of them are unfinished, and in which order the others finished.
        self._num_read = 0
        self._unfinished: list[int] = []
        self._finished: list[Finished] = []
        self._estimated: list[int] = []
        self._by_number: dict[int, Observation] = {}
        self._latest: dict[Hashable | None, Finished] = {}
        self._failed = 0
        self._constraint_names: list[str] = []
        self._observations = self._no_observations()
        # By trial, policies proposed here, and parameters of running trials.
        self._proposed: dict[int, Code] = {}
        self._running: dict[int, tuple[Hashable | None, Code | None]] = {}

    def continues_with(self, trials: Sequence[Any]) -> bool:
        """False for the trials of another study, even where its name is the same."""
        finished = self._finished[-1:]
        return len(trials) >= self._num_read and all(trials[last].datetime_complete == at for at, last in finished)

    def propose(self, trials: Sequence[Any], number: int, seed: int) -> dict[str, Any]:
        """The parameters of the next trial.

        Args:
            trials: All trials of the study, Optuna's `FrozenTrial`.
            number: The number of the trial that asks.
            seed: The sampler's seed.
        """
        self._read(trials)
        others = [trials[other] for other in self._unfinished if other != number]
        ahead = sum(self._asks_before(trial, trials[number]) for trial in others)
        pending, unavailable = self._pending(others)
        observations = replace(self._observations, pending=pending)

        def possible(code: Code) -> bool:
            identity, allowed = self._codec.check(code)
            return allowed and identity not in unavailable and identity not in self._latest

        # Failed trials do not count: so a trial that was killed and is measured again leaves the seed unchanged.
        count = len(others) + len(self._finished) - self._failed
        proposals = self._strategy.propose(observations, np.random.default_rng([seed, count]), possible)
        for code in islice(proposals, ahead):
            unavailable.add(self._codec.check(code)[0])
        code = next(proposals)
        self._proposed[number] = code
        return self._codec.decode(code)

    def _read(self, trials: Sequence[Any]) -> None:
        """Reads the trials that finished since the last call; Optuna never changes a finished trial."""
        numbers = [*self._unfinished, *range(self._num_read, len(trials))]
        self._num_read = len(trials)
        self._unfinished = [one for one in numbers if not trials[one].state.is_finished()]
        new = [self._observe(trials[one]) for one in numbers if trials[one].state.is_finished()]
        new.sort(key=lambda one: one.finished)
        # Estimates depend on the trials at full fidelity, so any new one of these changes all estimates.
        rebuild = bool(self._estimated) and not all(one.is_estimate or one.failed for one in new)
        if rebuild:
            self._by_number |= {number: self._observe(trials[number]) for number in self._estimated}
        self._estimated += [one.finished[1] for one in new if one.is_estimate]
        for one in new:
            # Also where a trial finished before one that is read already, repeats a policy, or has new constraints.
            rebuild |= [one.finished] < self._finished[-1:] or one.key in self._latest
            rebuild |= not one.constraint_names <= set(self._constraint_names)
            self._by_number[one.finished[1]] = one
            self._latest[one.key] = max(one.finished, self._latest.get(one.key, one.finished))
            self._failed += one.failed
            insort(self._finished, one.finished)
            if not rebuild:
                self._append([one])
        if rebuild:
            self._rebuild()

    def _rebuild(self) -> None:
        """Collects the observations of all finished trials again."""
        every = [self._by_number[number] for _, number in self._finished]
        self._constraint_names = sorted(set().union(*(one.constraint_names for one in every)))
        self._observations = self._no_observations()
        if self._guided:
            self._append(merge_by_policy(every))
        else:
            self._append([one for one in every if not one.is_estimate or self._latest[one.key] == one.finished])

    def _observe(self, trial: Any) -> Observation:
        """Reads a finished trial."""
        key, code = self._identify(trial.params)
        state, finished = trial.state.name, (trial.datetime_complete, trial.number)
        has_values = state in ("PRUNED", "COMPLETE")
        given = self._estimate(trial) if has_values and self._estimate is not None else None
        if given is not None:
            estimate = TrialEstimate(*given)
        else:
            use_told = state == "COMPLETE" and not self._guided
            estimate = TrialEstimate(trial.values if use_told else [np.nan] * self._objectives, 0.0)
        values = self._signs * np.array(estimate.values, float)[self._order]
        return Observation(
            finished, key, None if state == "FAIL" else code, tuple(values),
            dict(estimate.constraints) if self._guided else {**estimate.constraints, **trial.constraints},
            estimate.error, given is not None and not self._guided and state == "PRUNED", state == "FAIL",
            float(self._signs[0] * estimate.score), estimate.score_error, len(self._latest) + 1,
        )  # fmt: skip

    def _identify(self, params: Params) -> tuple[Hashable | None, Code | None]:
        """The identity of parameters and their codes; None where parameters are missing or values are no choices."""
        if not params.keys() >= set(self._codec.names):
            return None, None
        code = self._codec.encode(params)
        return self._codec.identity(params) if code is None else self._codec.check(code)[0], code

    def _asks_before(self, trial: Any, ours: Any) -> bool:
        """True where another process asks at this moment and comes first; it is taken to get the same proposals."""
        waits = trial.state.name == "RUNNING" and not trial.params and trial.number not in self._proposed
        return waits and trial.number < ours.number and ours.datetime_start - trial.datetime_start < ASKING

    def _pending(self, trials: Sequence[Any]) -> tuple[Codes, set[Hashable]]:
        """The policies of running and queued trials, and their identities.

        Args:
            trials: The unfinished trials.
        """
        codes, identities = [], set()
        for trial in trials:
            key, code = self._identify_unfinished(trial)
            if key is not None:
                identities.add(key)
            if code is not None:
                codes.append(code)
        return np.array(codes, np.int16).reshape(-1, self._space.num_variables), identities

    def _identify_unfinished(self, trial: Any) -> tuple[Hashable | None, Code | None]:
        """The identity and codes of a running or queued trial; None where they are not known yet."""
        if trial.number in self._running:
            return self._running[trial.number]
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if trial.number in self._proposed:
            # Proposed here, but another thread may not have stored the parameters yet.
            params = {**self._codec.decode(self._proposed[trial.number]), **params}
        found = self._identify(params)
        if trial.params.keys() >= set(self._codec.names):
            self._running[trial.number] = found
        return found

    def _no_observations(self) -> Observations:
        no_codes = np.zeros((0, self._space.num_variables), np.int16)
        costs, excess = np.zeros((0, len(self._order) - 1)), np.zeros((0, len(self._constraint_names)))
        scores = (np.zeros(0), np.zeros(0), np.zeros(0, np.int64)) if self._guided else (None, None, None)
        return Observations(no_codes, np.zeros(0), costs, excess, np.zeros(0), no_codes, *scores)

    def _append(self, new: Sequence[Observation]) -> None:
        """Appends trials to the observations, in the order in which they finished."""
        used = [one for one in new if one.code is not None]
        if not used:
            return
        values, before = np.array([one.values for one in used]), self._observations
        excess = np.array([[one.constraints.get(name, np.nan) for name in self._constraint_names] for one in used])
        self._observations = replace(
            before,
            codes=np.vstack([before.codes, *(one.code for one in used if one.code is not None)]),
            losses=np.r_[before.losses, values[:, 0]],
            costs=np.vstack([before.costs, values[:, 1:]]),
            excess=np.vstack([before.excess, excess.reshape(len(used), len(self._constraint_names))]),
            errors=np.r_[before.errors, [one.error for one in used]],
        )
        if before.scores is not None and before.score_errors is not None and before.scored_at is not None:
            self._observations = replace(
                self._observations,
                scores=np.r_[before.scores, [one.score for one in used]],
                score_errors=np.r_[before.score_errors, [one.score_error for one in used]],
                scored_at=np.r_[before.scored_at, [one.scored_at for one in used]],
            )
