"""A policy that nobody measured, where all that was measured lets one expect it to be better under some bounds."""

from collections.abc import Mapping, Sequence

import numpy as np

from ...evaluators.base import Measurement
from ...policies.policy import ModelRef, Policy, Provenance
from ...policies.version import __version__
from ..sampler.additive_cost import Sum
from ..sampler.candidates import double_moves, single_moves
from ..sampler.gaussian_process import FEWEST, Surrogate
from ..sampler.knapsack import additive_front
from ..sampler.search_space import Alternatives
from ..space.constraint import Constraint
from ..space.parameters import Parameters
from ..space.space import Space
from ..space.units import amount, unit_of
from ..study.expected_results import Known
from ..trial.arrays import Codes, Floats
from ..trial.pareto import objective_value
from ..trial.trial_result import TrialResult
from .reselect import best
from .study_record import StudyRecord

LEAST = 20  # policies below which nothing is expected of others; those that answered few examples count
CAUTION = 1.0  # standard deviations by which an expectation must be on the right side
WEIGHINGS = 16  # of the bounded costs, for each of which the additive front is solved
PARENTS = 32
MUTANTS = 2000


def cannot_tell(record: StudyRecord, space: Space) -> str | None:
    """Why nothing can be expected of policies that were not measured; None where something may be."""
    parameters = Parameters(space, record.num_layers)
    names = [*parameters.options]
    if not names or not all(name.startswith("layer_") for name in names):
        return "the space leaves more to choose than layers (schedules, or how tokens are ranked)"
    found = len(Archive(record, parameters, [next(iter(record.objectives))]).codes)
    return f"found {found} policies of use, expected at least {LEAST}" if found < LEAST else None


def offer(record: StudyRecord, space: Space, bounds: Sequence[Constraint]) -> Policy | None:
    """The policy not measured in full of which most is expected in the first objective.

    That objective is expected by the surrogate of the search, every other bounded figure by a sum over the layers. What
    is expected must keep every bound, and be better than the best that was measured and keeps them, each by a standard
    deviation.

    Args:
        record: The study under the bounds.
        space: Its space.
        bounds: What the policy must keep.

    Returns:
        The policy, without measured figures; None where nothing better is expected, too little was measured, or the
        space leaves more to choose than layers.
    """
    parameters = Parameters(space, record.num_layers)
    names = [*parameters.options]
    if not names or not all(name.startswith("layer_") for name in names):
        return None
    objective, direction = next(iter(record.objectives.items()))
    costs = [*dict.fromkeys(bound.metric for bound in bounds if bound.metric != objective)]
    archive = Archive(record, parameters, [objective, *costs])
    if len(archive.codes) < LEAST:
        return None
    sign = -1.0 if direction == "maximize" else 1.0
    codes, expected, spread = archive.outlook(sign)
    found = best(record)
    limit = np.inf if found is None else sign * figure(record, found.search, objective)
    cautious = expected[:, 0] * sign + CAUTION * spread[:, 0]
    for place in np.argsort(cautious, kind="stable"):
        if cautious[place] >= limit:
            break
        figures = dict(zip([objective, *costs], zip(expected[place], spread[place], strict=True), strict=True))
        if all(keeps(record, bound, *figures[bound.metric]) for bound in bounds):
            policy = archive.unseen(codes[place])
            if policy is not None:
                return marked(record, policy, {name: value for name, (value, _) in figures.items()})
    return None


class Archive:
    """What was measured of a study, as the surrogate takes it.

    Args:
        record: The study.
        parameters: Its space's.
        metrics: The first objective, and what else is of interest.
    """

    def __init__(self, record: StudyRecord, parameters: Parameters, metrics: Sequence[str]) -> None:
        self._parameters = parameters
        labels = parameters.options
        dense = parameters.labels()
        self._labels = {name: sorted(known, key=lambda label: label != dense[name]) for name, known in labels.items()}
        self._seen = {trial.policy.fingerprint for trial in record.trials if not trial.estimates or trial.early_stopped}
        rows, known = [], Known.of(record.trials)
        for trial in record.trials:
            code, told = self._code(trial), known.expected(trial)
            if code is not None and all(name in told for name in metrics):
                rough = told[metrics[0]].stderr if metrics[0] in trial.estimates else None
                figures = [figure(record, told, name) for name in metrics]
                rows.append((code, figures, rough or 0.0))
        self.codes: Codes = np.array([code for code, _, _ in rows], np.int16)
        self.figures: Floats = np.array([figures for _, figures, _ in rows], float)
        self.errors: Floats = np.array([error for _, _, error in rows], float)
        layers = [parameters.layers[name] for name in self._labels]
        self._alternatives = Alternatives([*self._labels.values()], layers)

    def _code(self, trial: TrialResult) -> list[int] | None:
        """The number of each layer's or group's choice; None for what no choices of the layers come to."""
        if trial.state != "complete" or trial.duplicate_of is not None:
            return None
        given = self._parameters.encode(trial.policy)
        return None if given is None else [known.index(given[name]) for name, known in self._labels.items()]

    def unseen(self, code: Sequence[int]) -> Policy | None:
        """The policy of a code; None where it was tried, or the space forbids it."""
        labels = {name: known[number] for (name, known), number in zip(self._labels.items(), code, strict=True)}
        policy = self._parameters.policy(labels)
        return None if policy.fingerprint in self._seen or not self._parameters.allows(policy) else policy

    def outlook(self, sign: float) -> tuple[Codes, Floats, Floats]:
        """Candidates, what each metric of theirs is expected to be, and its standard deviation.

        Args:
            sign: -1 where the first metric is to be maximised, else 1.
        """
        space = self._alternatives
        dense = self.figures[np.flatnonzero(~self.codes.any(1))[0]]
        losses = sign * (self.figures[:, 0] - dense[0])
        sums = [Sum(space, self.codes, figures) for figures in self.figures[:, 1:].T]
        changes = [np.abs(figure.alone()) for figure in sums]
        saved = sum((change / (change.max() or 1.0) for change in changes), np.zeros(len(space.kind)))
        weights, whole = saved + 0.2 * (saved.max() or 1.0), int(np.count_nonzero(self.errors == 0))
        surrogate = Surrogate(space, weights, self.codes, losses, self.errors, sparse=whole >= FEWEST)
        codes = self._candidates(surrogate, [figure.axis for figure in sums], losses)
        mean, deviation = surrogate.predict(codes)
        middle = surrogate.link.inverse(mean)
        expected = [dense[0] + sign * middle, *(figure(codes) for figure in sums)]
        spread = [surrogate.link.inverse(mean + deviation) - middle]
        spread += [np.full(len(codes), figure.error) for figure in sums]
        return codes, np.array(expected).T, np.array(spread).T

    def _candidates(self, surrogate: Surrogate, axes: Sequence[Floats], losses: Floats) -> Codes:
        """The additive front of every weighing, the best that were measured, and what is near to both."""
        space, draw = self._alternatives, np.random.default_rng(0)
        alone = space.by_combination(space.table(surrogate.alone()))
        weights = draw.dirichlet(np.ones(len(axes)), size=WEIGHINGS) if axes else ()
        fronts = [space.separate(additive_front(alone, np.tensordot(weight, axes, 1))) for weight in weights]
        parents = np.concatenate([*fronts, self.codes[np.argsort(losses, kind="stable")[:PARENTS]]])
        nearby = [
            single_moves(space, parents[:: max(1, len(parents) // PARENTS)]),
            double_moves(space, parents, MUTANTS, draw),
        ]
        return np.unique(np.concatenate([parents, *nearby]), axis=0)


def figure(record: StudyRecord, found: Mapping[str, Measurement], name: str) -> float:
    """What was found of a metric, as the search compares it."""
    return objective_value(name, found[name], record.dense.search[name])


def keeps(record: StudyRecord, bound: Constraint, value: float, spread: float) -> bool:
    """True where an expected figure keeps a bound even if it is a little worse."""
    worse = value - CAUTION * spread if bound.at_least else value + CAUTION * spread
    dense = record.dense.search[bound.metric]
    return bound.excess(worse, dense.value, dense.floor) <= 0


def marked(record: StudyRecord, policy: Policy, expected: dict[str, float]) -> Policy:
    """A policy that says that nobody measured it, and what is expected."""
    told = ", ".join(f"{name} {amount(value, unit_of(name))}" for name, value in expected.items())
    model = ModelRef(id=record.model_id, revision=record.environment.get("revision"), num_layers=record.num_layers)
    provenance = Provenance(study=record.name, skipsearch=__version__, unmeasured=f"expected {told}")
    return policy.model_copy(update={"model": model, "provenance": provenance})
