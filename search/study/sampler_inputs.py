"""What `SkipSampler` learns from a study: an estimate of each trial, the reference point, and the accuracy of guessing.

In a guided search the sampler learns the guide's loss of every trial in place of accuracy, and accuracy itself where it
was measured.
"""

import math
from collections.abc import Callable, Mapping

from optuna.trial import FrozenTrial

from ...evaluators.base import Measurement
from ..guide.guide import Guide, min_useful_accuracy
from ..sampler.trial_history import TrialEstimate
from ..space.guide_metrics import QUALITY
from ..space.objectives import expensive_objective
from ..space.space import Space
from ..trial.hypervolume import reference_value
from ..trial.modelled_time import ModelledTime
from ..trial.pareto import objective_value
from ..trial.trial_result import TrialResult
from .policy_results import PolicyResults


class SamplerInputs:
    """Reads the inputs of `SkipSampler` from a study.

    Args:
        space: The search space.
        results: The results of the study by policy.
        guide: The loss that guides the search; None where accuracy alone does.
        read: Reads one of Optuna's trials, with smoothed times.
        predicted: The times that are not measured any more because a counted objective predicts them.
    """

    def __init__(
        self,
        space: Space,
        results: PolicyResults,
        guide: Guide | None,
        read: Callable[[FrozenTrial], TrialResult],
        predicted: set[str],
    ) -> None:
        self.guide = guide
        self._space, self._results, self._read, self._predicted = space, results, read, predicted

    def reference(self) -> list[float | None]:
        """The reference point by objective; None for a cost, which is counted below the dense model's.

        It is the reference point of the reports, except for the accuracy of a guided search, which starts at its bound,
        or at half of what dense has above guessing.
        """
        dense, metrics = self._dense(), self._space.metrics()
        point = {name: reference_value(metrics[name], direction) for name, direction in self._space.objectives.items()}
        point |= {name: max(value, dense[name].floor) for name, value in point.items() if value is not None}
        if self.guide is not None:
            point[QUALITY] = min_useful_accuracy(dense[QUALITY], self._space.constraints.get(QUALITY))
        return [*point.values()]

    def chance_accuracy(self) -> float:
        """The accuracy of guessing."""
        return self._dense()[QUALITY].floor

    def _dense(self) -> Mapping[str, Measurement]:
        """The measurements of the dense model; empty before it is measured."""
        return self._results.dense_measurements() or {}

    def predicted_objectives(self) -> list[int]:
        """The indices of objectives that another objective predicts."""
        return [index for index, name in enumerate(self._space.objectives) if name in self._predicted]

    def estimate(self, trial: FrozenTrial) -> TrialEstimate | None:
        """What the sampler learns of a trial; None where it learns Optuna's values, or nothing."""
        result = self._read(trial)
        return self._from_scores(result) if self.guide is None else self._from_loss(result, self.guide)

    def _from_scores(self, result: TrialResult) -> TrialEstimate | None:
        """The predicted objectives of a paused trial, and the smoothed ones of a trial with smoothed times."""
        dense, objectives = self._results.dense_measurements(), list(self._space.objectives)
        if dense is None:
            return None
        if result.full_fidelity and all(name in result.search for name in objectives):
            smoothed = any(isinstance(result.search[name], ModelledTime) for name in objectives)
            return TrialEstimate(self._results.objective_values(result.search), 0.0) if smoothed else None
        if not result.estimates:
            return None
        found = self._results.score_predictor(self.guide).predict(result)
        if any(name not in found for name in objectives):
            return None
        # The sampler derives a bound on an objective from the objective itself.
        violations = self._results.violations(found)
        others = {name: excess for name, excess in violations.items() if name not in objectives}
        name = objectives[expensive_objective(self._space)]
        error = found[name].stderr or 0.0 if name in result.estimates else 0.0
        return TrialEstimate(self._results.objective_values(found), error, others)

    def _from_loss(self, result: TrialResult, guide: Guide) -> TrialEstimate | None:
        """The guide's loss and the costs of a trial, with its accuracy where that was measured."""
        loss = guide.loss(result.search)
        if loss is None:
            return None
        dense = self._dense()
        costs = {
            name: objective_value(name, result.search[name], dense.get(name)) if name in result.search else math.nan
            for name in self._space.objectives
        }
        # The loss takes the place of accuracy, with the sign of a maximised objective.
        values = [-loss if name == QUALITY else cost for name, cost in costs.items()]
        # The bound on accuracy is the reference point.
        violations = self._results.violations(result.search)
        others = {name: excess for name, excess in violations.items() if name != QUALITY}
        accuracy = result.search.get(QUALITY)
        if accuracy is None:
            return TrialEstimate(values, 0.0, others)
        return TrialEstimate(values, 0.0, others, accuracy.value, accuracy.stderr or 0.0)
