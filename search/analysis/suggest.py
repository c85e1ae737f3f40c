"""Suggests a policy that was not measured, where the search's models expect it to beat every measured one."""

from collections.abc import Mapping, Sequence

import numpy as np

from ...evaluators.base import Measurement
from ...policies.metadata import Provenance
from ...policies.policy import Policy
from ...policies.version import __version__
from ..sampler.additive_cost import AdditiveCost
from ..sampler.candidates import distinct, double_moves, single_moves
from ..sampler.gaussian_process import Surrogate
from ..sampler.knapsack import additive_front
from ..sampler.search_space import CategoricalSpace
from ..space.constraint import Constraint
from ..space.parameters import Parameters
from ..space.space import Space
from ..space.units import amount, unit_of
from ..study.expected_results import ScorePredictor
from ..trial.arrays import Codes, Floats
from ..trial.pareto import objective_value
from ..trial.trial_result import TrialResult
from .reselect import best_trial
from .study_record import StudyRecord

MIN_POLICIES = 20  # policies below which nothing is suggested; trials with scores on some of the examples count
MARGIN = 1.0  # standard deviations by which a prediction must keep a bound or beat a measurement
NUM_WEIGHTINGS = 16  # random weightings of the bounded costs, each with its own additive front
NUM_PARENTS = 32
NUM_MUTANTS = 2000


def why_no_suggestion(record: StudyRecord, space: Space) -> str | None:
    """Why no unmeasured policy can be suggested; None where one can."""
    parameters = Parameters(space, record.num_layers)
    if not has_only_layers(parameters):
        return "the space has variables besides the layers' choices (schedules, or how tokens are ranked)"
    found = len(PolicyPredictor(record, parameters, [next(iter(record.objectives))]).codes)
    return f"found {found} measured policies, expected at least {MIN_POLICIES}" if found < MIN_POLICIES else None


def has_only_layers(parameters: Parameters) -> bool:
    """True for a space whose variables are all choices of layers."""
    names = [*parameters.options]
    return bool(names) and all(name.startswith("layer_") for name in names)


def suggest(record: StudyRecord, space: Space, bounds: Sequence[Constraint]) -> Policy | None:
    """The unmeasured policy with the best expected first objective that is expected to keep all bounds.

    The search's surrogate predicts the first objective, and a sum over layers predicts each other bounded metric. By
    one standard deviation each, a suggestion must keep every bound and beat the best measured policy that keeps them.

    Args:
        record: The study, with violations and front by the bounds.
        space: Its search space.
        bounds: What the policy must keep.

    Returns:
        The policy, without measurements; None where no policy is expected to be better, too few were measured, or the
        space has variables besides the layers' choices.
    """
    parameters = Parameters(space, record.num_layers)
    if not has_only_layers(parameters):
        return None
    objective, direction = next(iter(record.objectives.items()))
    metrics = [objective, *dict.fromkeys(bound.metric for bound in bounds if bound.metric != objective)]
    predictor = PolicyPredictor(record, parameters, metrics)
    if len(predictor.codes) < MIN_POLICIES:
        return None
    sign = -1.0 if direction == "maximize" else 1.0
    codes, means, deviations = predictor.predict_candidates(sign)
    best = best_trial(record)
    limit = np.inf if best is None else sign * compared_value(record, best.search, objective)
    upper_bounds = means[:, 0] * sign + MARGIN * deviations[:, 0]
    for place in np.argsort(upper_bounds, kind="stable"):
        if upper_bounds[place] >= limit:
            break
        predicted = dict(zip(metrics, zip(means[place], deviations[place], strict=True), strict=True))
        if all(keeps_bound(record, bound, *predicted[bound.metric]) for bound in bounds):
            policy = predictor.unmeasured_policy(codes[place])
            if policy is not None:
                return with_expectation(record, policy, {name: mean for name, (mean, _) in predicted.items()})
    return None


class PolicyPredictor:
    """Predicts metrics of unmeasured policies from a study's trials.

    Args:
        record: The study.
        parameters: The variables of its space.
        metrics: The first objective, and the other metrics to predict.

    Attributes:
        codes: Measured policies, shape (policies, variables).
        values: Their metrics, shape (policies, metrics).
        errors: Standard error of the first metric, 0 where it was measured on all examples, shape (policies,).
    """

    def __init__(self, record: StudyRecord, parameters: Parameters, metrics: Sequence[str]) -> None:
        self._parameters = parameters
        dense = parameters.labels()
        # Each variable's options, with that of the dense model first: its code is 0.
        self._options = {name: sorted(options, key=lambda option: option != dense[name])
                         for name, options in parameters.options.items()}  # fmt: skip
        whole = [trial for trial in record.trials if not trial.estimates or trial.early_stopped]
        self._measured = {trial.policy.fingerprint for trial in whole}
        rows, scores = [], ScorePredictor.fit(record.trials)
        for trial in record.trials:
            code, found = self._encode(trial), scores.predict(trial)
            if code is not None and all(name in found for name in metrics):
                error = found[metrics[0]].stderr if metrics[0] in trial.estimates else None
                rows.append((code, [compared_value(record, found, name) for name in metrics], error or 0.0))
        self.codes: Codes = np.array([code for code, _, _ in rows], np.int16)
        self.values: Floats = np.array([values for _, values, _ in rows], float)
        self.errors: Floats = np.array([error for _, _, error in rows], float)
        layers = [parameters.layers[name] for name in self._options]
        self._space = CategoricalSpace([*self._options.values()], layers, parameters.scales)

    def _encode(self, trial: TrialResult) -> list[int] | None:
        """The code of each variable; None for a trial without a result of its own or outside the space's choices."""
        if trial.state != "complete" or trial.duplicate_of is not None:
            return None
        labels = self._parameters.encode(trial.policy)
        return None if labels is None else [options.index(labels[name]) for name, options in self._options.items()]

    def unmeasured_policy(self, code: Sequence[int]) -> Policy | None:
        """The policy of a code; None where it was measured, or the space forbids it."""
        pairs = zip(self._options.items(), code, strict=True)
        policy = self._parameters.policy({name: options[number] for (name, options), number in pairs})
        return None if policy.fingerprint in self._measured or not self._parameters.allows(policy) else policy

    def predict_candidates(self, sign: float) -> tuple[Codes, Floats, Floats]:
        """Candidate policies with the predicted mean and standard deviation of each metric.

        Args:
            sign: -1 where the first metric is maximised, else 1.

        Returns:
            Codes of shape (candidates, variables); means and deviations of shape (candidates, metrics).
        """
        space = self._space
        dense = self.values[np.flatnonzero(~self.codes.any(1))[0]]
        losses = sign * (self.values[:, 0] - dense[0])
        costs = [AdditiveCost(space, self.codes, values) for values in self.values[:, 1:].T]
        effects = [np.abs(cost.main_effects()) for cost in costs]
        saved = sum((effect / (effect.max() or 1.0) for effect in effects), np.zeros(len(space.kind)))
        surrogate = Surrogate(space, saved + 0.2 * (saved.max() or 1.0), self.codes, losses, self.errors)
        codes = self._candidates(surrogate, [cost.normalised for cost in costs], losses)
        mean, deviation = surrogate.predict(codes)
        loss = surrogate.warping.inverse(mean)
        means = [dense[0] + sign * loss, *(cost(codes) for cost in costs)]
        deviations = [surrogate.warping.inverse(mean + deviation) - loss]
        deviations += [np.full(len(codes), cost.error) for cost in costs]
        return codes, np.array(means).T, np.array(deviations).T

    def _candidates(self, surrogate: Surrogate, costs: Sequence[Floats], losses: Floats) -> Codes:
        """Additive fronts under random weightings of the costs, the best measured policies, and neighbours of both."""
        space, random = self._space, np.random.default_rng(0)
        main_effects = space.by_combination(space.table(surrogate.main_effects()))
        weights = random.dirichlet(np.ones(len(costs)), size=NUM_WEIGHTINGS) if costs else ()
        totals = [np.tensordot(weight, costs, 1) for weight in weights]
        fronts = [space.from_combinations(additive_front(main_effects, total)) for total in totals]
        parents = np.concatenate([*fronts, self.codes[np.argsort(losses, kind="stable")[:NUM_PARENTS]]])
        neighbours = [
            single_moves(space, parents[:: max(1, len(parents) // NUM_PARENTS)]),
            double_moves(space, parents, NUM_MUTANTS, random),
        ]
        return distinct(np.concatenate([parents, *neighbours]))


def compared_value(record: StudyRecord, found: Mapping[str, Measurement], name: str) -> float:
    """The value of a metric by which the search compares policies."""
    return objective_value(name, found[name], record.dense.search[name])


def keeps_bound(record: StudyRecord, bound: Constraint, mean: float, deviation: float) -> bool:
    """True where a prediction keeps a bound by the margin."""
    worse = mean - MARGIN * deviation if bound.at_least else mean + MARGIN * deviation
    dense = record.dense.search[bound.metric]
    return bound.excess(worse, dense.value, dense.floor) <= 0


def with_expectation(record: StudyRecord, policy: Policy, expected: dict[str, float]) -> Policy:
    """The policy with a provenance that marks it as unmeasured and says what is expected of it."""
    text = ", ".join(f"{name} {amount(value, unit_of(name))}" for name, value in expected.items())
    model = record.model_of(policy)
    provenance = Provenance(study=record.name, skipsearch=__version__, unmeasured=f"expected {text}")
    return policy.model_copy(update={"model": model, "provenance": provenance})
