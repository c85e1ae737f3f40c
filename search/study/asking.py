"""Proposes policies: with the space's sampler, or at random where that sampler repeats itself."""

import random
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, Trial, TrialState

from ...policies.policy import Policy
from ..sampler.skip_sampler import SkipSampler
from ..space.parameters import Parameters
from ..space.space import Space
from .samplers import make_optuna_sampler

MAX_DRAWS = 1000  # random policies that were all tried before, after which the space counts as exhausted


@dataclass(frozen=True)
class Proposal:
    """A policy to be measured, with Optuna's running trial."""

    trial: Trial
    policy: Policy

    @property
    def number(self) -> int:
        """The number of the trial."""
        return self.trial.number

    @property
    def baseline(self) -> str | None:
        """The baselines that propose this policy, as `name: setting`; None where the sampler did."""
        baseline: str | None = self.trial.user_attrs.get("rule")
        return baseline


def sample_trial(
    study: optuna.Study,
    space: Space,
    drawn: Mapping[str, CategoricalDistribution],
    skip_sampler: SkipSampler | None,
    interrupted: FrozenTrial | None,
) -> Trial:
    """Start a trial and draw its parameters.

    Args:
        study: The study.
        space: The search space.
        drawn: The parameters to draw, as Optuna's distributions.
        skip_sampler: Our own sampler; None where the space names one of Optuna's.
        interrupted: A trial that was interrupted, whose missing parameters are drawn instead of a new trial's.
    """
    number = next_number(study) if interrupted is None else interrupted.number
    search = space.search
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.sampler = skip_sampler or make_optuna_sampler(search.sampler, search.seed, number, search.trials)
        if interrupted is None:
            trial = study.ask({**drawn})
        else:
            trial = writable(study, interrupted)
            for name, distribution in drawn.items():
                trial.suggest_categorical(name, distribution.choices)
        if skip_sampler is None:
            # NSGA-II stores a trial's generation when its relative parameters are read. Without a generation, an
            # enqueued trial is never a parent.
            _ = trial.relative_params
    return trial


def next_number(study: optuna.Study) -> int:
    """The number of the trial that `study.ask` starts next: the first enqueued one, or else a new one."""
    enqueued = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    return enqueued[0].number if enqueued else len(study.get_trials(deepcopy=False))


def writable(study: optuna.Study, trial: FrozenTrial) -> Trial:
    """A handle that writes to a running trial."""
    return Trial(study, trial._trial_id)


def draw_new(parameters: Parameters, seed: str, is_tried: Callable[[str], bool]) -> dict[str, str] | None:
    """Draw a random policy that was not tried.

    Args:
        parameters: The parameters to draw.
        seed: The seed of the draw.
        is_tried: True for the fingerprint of a policy that must not be drawn.

    Returns:
        Its labels by parameter; None where no draw found one.
    """
    generator = random.Random(seed)
    for _ in range(MAX_DRAWS):
        labels = parameters.random(generator)
        if not is_tried(parameters.policy(labels).fingerprint):
            return labels
    return None
