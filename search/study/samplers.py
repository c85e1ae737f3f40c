"""Makes the sampler that a space names.

Optuna's samplers are made anew for every proposal, seeded by the space's seed and the trial's number. So all state is
in the study, and a resumed search makes the proposals that it would have made without the interruption. `SkipSampler`
reads its state from the study by itself.
"""

import hashlib
from collections.abc import Callable, Mapping

from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler

from ...policies.policy import Policy
from ..sampler.skip_sampler import SkipSampler
from ..space.objectives import expensive_objective
from ..space.parameters import Parameters
from ..space.space import Space
from .sampler_inputs import SamplerInputs


def population_size(trials: int) -> int:
    """The population of NSGA for a budget of trials: small enough for several generations."""
    return max(8, min(50, trials // 4))


def distributions(parameters: Parameters) -> dict[str, CategoricalDistribution]:
    """The parameters that may be drawn, as Optuna's distributions."""
    return {name: CategoricalDistribution(labels) for name, labels in parameters.options.items()}


def make_skip_sampler(
    space: Space, parameters: Parameters, drawn: Mapping[str, CategoricalDistribution], inputs: SamplerInputs
) -> SkipSampler:
    """Make our own sampler.

    Args:
        space: The space.
        parameters: The parameters that may be drawn.
        drawn: The same as Optuna's distributions.
        inputs: What the sampler learns from the study.
    """
    return SkipSampler(
        parameters.labels(),
        expensive=expensive_objective(space),
        identity=lambda labels: policy_hash(parameters.policy(labels)),
        allowed=(lambda labels: parameters.allows(parameters.policy(labels))) if space.forbid else None,
        reference=inputs.reference,
        search_space={**drawn},
        estimate=inputs.estimate,
        layers=parameters.layers,
        chance_score=inputs.chance_accuracy if inputs.guide is not None else None,
        ignored=inputs.predicted_objectives(),
        scales=parameters.scales,
        seed=space.search.seed,
    )


def policy_hash(policy: Policy) -> int:
    """A number that is equal for policies with equal fingerprints, computed in a fraction of the time.

    Two different policies collide with a probability of 2^-64; then one of them is not proposed.
    """
    choices = tuple(policy.layers.items())
    return hash((choices, policy.token_selection, policy.width_selection, policy.model.quantization))


def make_optuna_sampler(name: str, seed: int, number: int, trials: int) -> BaseSampler:
    """Make one of Optuna's samplers, for one trial.

    Args:
        name: `nsga2`, `nsga3`, `tpe` or `random`.
        seed: The search's seed.
        number: The trial's number.
        trials: The search's budget.
    """
    trial_seed = int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:4])
    size = population_size(trials)
    samplers: dict[str, Callable[[], BaseSampler]] = {
        "nsga2": lambda: NSGAIISampler(population_size=size, seed=trial_seed),
        "nsga3": lambda: NSGAIIISampler(population_size=size, seed=trial_seed),
        "tpe": lambda: TPESampler(multivariate=True, constant_liar=True, n_startup_trials=size, seed=trial_seed),
        "random": lambda: RandomSampler(seed=trial_seed),
    }
    return samplers[name]()
