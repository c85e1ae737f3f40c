"""SkipSampler: an Optuna sampler for one expensive objective and cheap additive ones over many categorical choices.

    study = optuna.create_study(
        directions=["maximize", "minimize"],
        sampler=SkipSampler(neutral={f"layer_{i}": "keep" for i in range(32)}),
    )

Any Optuna study can use it. It suits searches for layers to skip: accuracy costs a forward pass over a benchmark and
its choices interact, while FLOPs, bytes and (nearly) latency are sums over the layers.
"""

import threading
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial
from threadpoolctl import ThreadpoolController

from .candidates import Strategy
from .parameter_codec import ParameterCodec
from .search_space import Scales
from .trial_history import TrialHistory

Params = Mapping[str, Any]

# One thread for BLAS: the number of threads changes the rounding of sums, and so which of two nearly equal candidates
# is proposed. It costs little, because the matrices are small and the workers need the other cores.
BLAS = ThreadpoolController().select(user_api="blas")


class SkipSampler(BaseSampler):
    """Proposes the categorical parameters of a study; never a policy that is measured, running or queued already.

    Each proposal is a function of the study's trials and the seed alone, whatever the number of threads. So an
    interrupted study resumes with the same proposals, with this object or another one. Any number of trials may run at
    the same time.

    The first trial is dense, the next ones have each choice, or the choices of one scale in turn, on a third of the
    parameters. From then on a Gaussian process over all choices and pairs of choices, conditioned on every trial,
    predicts the expensive objective. The sampler proposes the candidate with the highest expected hypervolume
    improvement. Candidates are:

    - the exact front of the additive part by dynamic programming (Puzzle, arXiv:2411.19146; SPDY, arXiv:2201.13096),
      around dense or a member of the front
    - single moves away from the front, the steps of greedy searches (BlockPruner, arXiv:2406.10594; SLEB,
      arXiv:2402.09025)
    - mutants and crossovers of the front (EvoPress, arXiv:2410.14649)

    `benchmarks/search.py` compares it with each of them.

    Args:
        neutral: By parameter, the choice that leaves the model as it is. Other parameters of the study are drawn at
            random, independently.
        expensive: Index of the objective that is expensive and whose choices interact; the others are sums over the
            parameters.
        identity: Maps parameters to a value that is equal for parameters with the same meaning; default: the parameters
            themselves.
        allowed: False for parameters that must not be proposed.
        reference: The reference point of the hypervolume, in the objectives' own units, or a function that returns it
            once the first trials are measured. Where it, or an entry, is None, a cost counts below dense's, and the
            expensive objective down to the worst of the first trials.
        search_space: The distributions, for studies in which several trials start before the first one has its
            parameters; None reads them from the trials.
        estimate: Returns the expected values of a pruned trial (early-stopped, or paused until more is known), as
            `trial_history.TrialEstimate` or a tuple of its entries. A later trial of the same parameters replaces them.
            It is also called for complete trials; None keeps the values that these were told with.
        layers: By parameter, the number of its layer, ascending in the order of `neutral`; parameters of one layer have
            a joint cost. Parameters without a number are layers of their own and come last.
        chance_score: For a guided search, whose trials are measured by a graded loss before the expensive objective:
            returns the expensive objective at chance level. `estimate` is then called for every finished trial. It
            returns the loss, with the objective's sign, in the objective's place, and the objective as `score` where it
            was measured.
        ignored: Indices of objectives that another objective predicts; the sampler ignores them.
        scales: By choice that is one of several on an ordered scale, such as the ratios of one kind: the scale, and the
            choice's position on it from 0 (neutral) to 1. What one choice does tells of its neighbours on the scale.
        seed: Seeds everything random.

    Raises:
        ValueError: a parameter of `neutral` is not categorical in the study, its choice is not among the parameter's,
            or layers are not ascending.
    """

    strategy: ClassVar[type[Strategy]] = Strategy

    def __init__(
        self,
        neutral: Params,
        *,
        expensive: int = 0,
        identity: Callable[[Params], Hashable] | None = None,
        allowed: Callable[[Params], bool] | None = None,
        reference: Sequence[float | None] | Callable[[], Sequence[float | None]] | None = None,
        search_space: Mapping[str, BaseDistribution] | None = None,
        estimate: Callable[[FrozenTrial], tuple[Any, ...] | None] | None = None,
        layers: Mapping[str, int] | None = None,
        chance_score: Callable[[], float] | None = None,
        ignored: Collection[int] = (),
        scales: Scales = MappingProxyType({}),
        seed: int = 0,
    ) -> None:
        self._neutral = dict(neutral)
        self._expensive = expensive
        self._identity, self._allowed = identity, allowed
        self._reference = reference
        self._space = dict(search_space or {})
        self._estimate = estimate
        self._layers, self._chance_score = dict(layers or {}), chance_score
        self._seed = seed
        self._ignored, self._scales = ignored, dict(scales)
        self._history: tuple[str, TrialHistory] | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """The state without the lock and what is read from the trials; Ray Tune pickles a search with its sampler."""
        return {name: value for name, value in vars(self).items() if name not in ("_history", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _history=None, _lock=threading.Lock())

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The distributions of the parameters of `neutral`, from the first trial that has all of them."""
        space = self._space
        if not space:
            trials = study.get_trials(deepcopy=False)
            space = next((t.distributions for t in trials if self._neutral.keys() <= t.distributions.keys()), {})
        return {name: space[name] for name in self._neutral if name in space and not space[name].single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of the next policy."""
        if not search_space:
            return {}
        with self._lock, BLAS.limit(limits=1):
            trials = study.get_trials(deepcopy=False)
            name, history = self._history or ("", None)
            if history is None or name != study.study_name or not history.continues_with(trials):
                history = self._new_history(study, search_space)
                self._history = study.study_name, history
            return history.propose(trials, trial.number, self._seed)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The neutral choice in the first trial; else, and for parameters not in `neutral`, a random draw."""
        if trial.number == 0 and param_name in self._neutral:
            return self._neutral[param_name]
        seed = np.random.default_rng([self._seed, trial.number, *param_name.encode()]).integers(2**31)
        return RandomSampler(int(seed)).sample_independent(study, trial, param_name, param_distribution)

    def _new_history(self, study: Study, space: Mapping[str, BaseDistribution]) -> TrialHistory:
        choices = {}
        for name, distribution in space.items():
            if not isinstance(distribution, CategoricalDistribution):
                raise ValueError(f"parameter {name}: found {distribution}, expected a categorical distribution")
            if self._neutral[name] not in distribution.choices:
                found = self._neutral[name]
                raise ValueError(f"neutral choice of {name}: found {found!r}, expected one of {distribution.choices}")
            choices[name] = distribution.choices
        reference = self._reference() if callable(self._reference) else self._reference
        return TrialHistory(
            ParameterCodec(choices, self._neutral, self._identity, self._allowed), self.strategy,
            [1.0 if direction.name == "MINIMIZE" else -1.0 for direction in study.directions],
            self._expensive, reference, self._estimate, self._layers,
            None if self._chance_score is None else self._chance_score(), self._ignored, self._scales,
        )  # fmt: skip
