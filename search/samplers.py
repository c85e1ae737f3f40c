"""Optuna's samplers by the names a space uses.

A sampler is made anew for every proposal, seeded by the space's seed and the trial's number: all state lives in the
study, so a search that was killed goes on with the proposals it would have made.
"""

import hashlib
from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler


def population(trials: int) -> int:
    """A generation for a budget of trials: small enough for several generations."""
    return max(8, min(50, trials // 4))


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
