"""An Optuna sampler for one expensive objective over many categorical choices, with cheap additive ones beside it.

    study = optuna.create_study(
        directions=["maximize", "minimize"],
        sampler=SkipSampler(neutral={f"layer_{i}": "keep" for i in range(32)}),
    )

It needs nothing else of skipsearch. Searches of which layers to skip are of this kind: accuracy costs a forward pass
over a benchmark and the choices interact, while FLOPs, bytes and (nearly) latency are sums over the layers.
"""

import threading
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial
from threadpoolctl import ThreadpoolController

from .candidates import PARTS
from .trial_history import Meaning, View

Params = Mapping[str, Any]

# With another number of threads sums are rounded otherwise, and of two nearly equal candidates the other one is taken.
# It costs little: products are small, and workers need the other cores.
BLAS = ThreadpoolController().select(user_api="blas")


class SkipSampler(BaseSampler):
    """Proposes the categorical parameters of a study; never what is measured, being measured or queued already.

    Each proposal is a function of the study's trials and the seed alone, whatever the number of threads: a study that
    was interrupted goes on as if it had not been, with this object or another one. Any number of trials may run at the
    same time.

    The first trial is dense, the next have each choice on a third of the parameters. From then on a Gaussian process
    over all choices and pairs of choices, refitted on every trial, and with it what pairs of parameters interact most
    (Tipping 2001), picks the candidate that promises most hypervolume, among: the exact front of the additive part by
    dynamic programming (Puzzle, arXiv:2411.19146; SPDY, arXiv:2201.13096), also around members of the front; single
    moves away from the front, as greedy searches take them (BlockPruner, arXiv:2406.10594; SLEB, arXiv:2402.09025);
    mutants and crossovers of it (EvoPress, arXiv:2410.14649). `benchmarks/search.py` compares it with each of them.

    Args:
        neutral: By parameter the choice that leaves the model as it is. Parameters that are not named are drawn at
            random, independently.
        expensive: Which objective is expensive and interacts; the others are sums over the parameters.
        identity: Equal for parameters that mean the same thing; default: the parameters themselves.
        allowed: False for parameters that must not be proposed.
        tied: Groups of parameters that always have the same choice.
        prior_costs: By objective, parameter and choice, what the choice adds to the objective, where that is known
            before any trial; choices left out add nothing.
        reference: The point from which the hypervolume counts, in the objectives' own units, or a function that gives
            it when the first trials are measured. Where it, or an entry of it, is None, costs count below those of
            dense, the expensive objective down to the worst of the first trials.
        search_space: The distributions, for studies of which several trials begin before the first one has drawn its
            parameters; None reads them from the trials.
        estimate: What is expected of a pruned trial, one that was given up or set aside until later ones are known, as
            `view.Estimated` or a tuple of its entries. A later trial of the same parameters replaces it. It is asked of
            complete trials too; None leaves these as they were told.
        layers: By parameter, the number of the layer that it belongs to; parameters of one layer have their costs
            together. Those that are not named are layers of their own.
        guessing: For a search that is guided by a graded loss instead of the expensive objective: gives the expensive
            objective when guessing. `estimate` is then asked of every finished trial, gives the loss, signed as the
            objective is, in the objective's place, and the objective itself as `score` where it was measured.
        ignored: Places of objectives that say what another one says; no policy is proposed for their sake.
        seed: Of everything that is random.
        parts: Which candidates and what learning are used, for ablations; `sensitivity` may be added, which measures
            single choices first, the most promising ones before others.

    Raises:
        ValueError: a parameter of `neutral` is no categorical one of the study, its choice is not among the
            parameter's, or tied parameters have different choices.
    """

    def __init__(
        self,
        neutral: Params,
        *,
        expensive: int = 0,
        identity: Callable[[Params], Hashable] | None = None,
        allowed: Callable[[Params], bool] | None = None,
        tied: Sequence[Sequence[str]] = (),
        prior_costs: Mapping[int, Mapping[str, Mapping[Any, float]]] | None = None,
        reference: Sequence[float | None] | Callable[[], Sequence[float | None]] | None = None,
        search_space: Mapping[str, BaseDistribution] | None = None,
        estimate: Callable[[FrozenTrial], tuple[Any, ...] | None] | None = None,
        layers: Mapping[str, int] | None = None,
        guessing: Callable[[], float] | None = None,
        ignored: Collection[int] = (),
        seed: int = 0,
        parts: Collection[str] = PARTS,
    ) -> None:
        self._neutral = dict(neutral)
        self._expensive = expensive
        self._identity, self._allowed = identity, allowed
        self._tied = [tuple(group) for group in tied]
        self._prior_costs = prior_costs or {}
        self._reference = reference
        self._space = dict(search_space or {})
        self._estimate = estimate
        self._layers, self._guessing = dict(layers or {}), guessing
        self._seed = seed
        self._ignored = ignored
        self._parts = parts
        self._view: tuple[str, View] | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """All but what is read from the trials anyway, and the lock: Ray Tune pickles a search with its sampler."""
        return {name: value for name, value in vars(self).items() if name not in ("_view", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _view=None, _lock=threading.Lock())

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters of `neutral`, from the first trial that had all of them on."""
        space = self._space
        if not space:
            trials = study.get_trials(deepcopy=False)
            space = next((t.distributions for t in trials if self._neutral.keys() <= t.distributions.keys()), {})
        return {name: space[name] for name in self._neutral if name in space and not space[name].single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next policy, as parameters."""
        if not search_space:
            return {}
        with self._lock, BLAS.limit(limits=1):
            trials = study.get_trials(deepcopy=False)
            if self._view is None or self._view[0] != study.study_name or not self._view[1].precedes(trials):
                self._view = study.study_name, self._new_view(study, search_space)
            return self._view[1].propose(trials, trial.number, self._seed)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """What dense does, in the first trial; else, and for parameters that `neutral` does not name, a random draw."""
        if trial.number == 0 and param_name in self._neutral:
            return self._neutral[param_name]
        seed = np.random.default_rng([self._seed, trial.number, *param_name.encode()]).integers(2**31)
        return RandomSampler(int(seed)).sample_independent(study, trial, param_name, param_distribution)

    def _new_view(self, study: Study, space: Mapping[str, BaseDistribution]) -> "View":
        for name, kind in space.items():
            if not isinstance(kind, CategoricalDistribution):
                raise ValueError(f"{name} is no categorical parameter: {kind}")
            if self._neutral[name] not in kind.choices:
                raise ValueError(f"{self._neutral[name]!r} is none of the choices of {name}: {kind.choices}")
        choices = {name: kind.choices for name, kind in space.items() if isinstance(kind, CategoricalDistribution)}
        reference = self._reference() if callable(self._reference) else self._reference
        return View(
            Meaning(choices, self._neutral, self._tied, self._identity, self._allowed),
            [1.0 if direction.name == "MINIMIZE" else -1.0 for direction in study.directions],
            self._expensive, self._prior_costs, reference, self._parts, self._estimate, self._layers,
            None if self._guessing is None else self._guessing(), self._ignored,
        )  # fmt: skip
