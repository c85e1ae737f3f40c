"""The samplers by the names a space uses.

Optuna's are made anew for every proposal, seeded by the space's seed and the trial's number: all state lives in the
study, so a search that was killed goes on with the proposals it would have made. Ours reads the study by itself.
"""

import hashlib
from collections.abc import Callable, Collection

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from ...policies.policy import Policy
from ..sampler.skip_sampler import SkipSampler
from ..sampler.trial_history import Estimated
from ..space.objectives import expensive_objective
from ..space.parameters import Parameters
from ..space.space import Space


def population(trials: int) -> int:
    """A generation for a budget of trials: small enough for several generations."""
    return max(8, min(50, trials // 4))


def own_sampler(
    space: Space,
    parameters: Parameters,
    estimate: Callable[[FrozenTrial], Estimated | None],
    reference: Callable[[], list[float | None]],
    guessing: Callable[[], float] | None = None,
    ignored: Collection[int] = (),
) -> SkipSampler:
    """Our sampler for a space, which reads from the study what others would keep to themselves.

    Args:
        space: The space.
        parameters: What may be drawn.
        estimate: What a trial that was paused on few examples is expected to measure; of a guided search, what
            any trial is told as.
        reference: Gives the point from which the hypervolume counts.
        guessing: Gives the accuracy of guessing, where a loss guides the search.
        ignored: Places of objectives that another one tells.
    """
    return SkipSampler(
        parameters.labels(),
        expensive=expensive_objective(space),
        identity=lambda labels: what_it_computes(parameters.policy(labels)),
        allowed=(lambda labels: parameters.allows(parameters.policy(labels))) if space.forbid else None,
        reference=reference,
        search_space={name: CategoricalDistribution(labels) for name, labels in parameters.options.items()},
        estimate=estimate,
        layers=parameters.layers,
        guessing=guessing,
        ignored=ignored,
        seed=space.search.seed,
    )


def what_it_computes(policy: Policy) -> int:
    """Equal for policies that compute the same, as fingerprints are, and told in a fraction of the time.

    Two others have the same number once in 2^64; then one of them is not proposed.
    """
    return hash((tuple(policy.layers.items()), policy.token_selection))


def make_sampler(name: str, seed: int, number: int, trials: int) -> BaseSampler:
    """The sampler that proposes one trial.

    Args:
        name: `nsga2`, `nsga3`, `tpe` or `random`.
        seed: The search's seed.
        number: The trial's number.
        trials: The search's budget.
    """
    drawn = int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:4])
    size = population(trials)
    kinds: dict[str, Callable[[], BaseSampler]] = {
        "nsga2": lambda: NSGAIISampler(population_size=size, seed=drawn),
        "nsga3": lambda: NSGAIIISampler(population_size=size, seed=drawn),
        "tpe": lambda: TPESampler(multivariate=True, constant_liar=True, n_startup_trials=size, seed=drawn),
        "random": lambda: RandomSampler(seed=drawn),
    }
    return kinds[name]()


def quiet() -> None:
    """Keep Optuna's log to warnings; the progress bar says what happens."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
