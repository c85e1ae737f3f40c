"""Predicts what paused trials would score on all examples, from the trials that answered all of them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...evaluators.base import Direction, Measurement
from ..guide.accuracy_curve import AccuracyCurve
from ..guide.guide import Guide
from ..space.guide_metrics import QUALITY
from ..space.space import Space
from ..trial.arrays import Floats
from ..trial.pareto import front_trials, objective_value
from ..trial.scores import example_weights, task_sizes
from ..trial.trial_result import TrialResult

MAX_CONFIRMED = 12  # baselines that are confirmed on the report split beside the front of the search, at most


@dataclass(frozen=True)
class ScorePredictor:
    """Predicts the scores of paused trials on all examples from the trials that answered all examples.

    Attributes:
        dense: The measurements of the dense model.
        scores: By metric, the score of each example under each fully measured policy, shape (policies, examples).
        guide: The loss that guides the search; None where accuracy alone does.
        accuracy_curve: How accuracy depends on the guide's loss; None where no loss was measured.
        saving_ratios: For each cost that guided trials do not measure at first, the name of a cost that they do
            measure, and the share of that cost's saving that this one saves too.
    """

    dense: Mapping[str, Measurement]
    scores: Mapping[str, Floats]
    guide: Guide | None = None
    accuracy_curve: AccuracyCurve | None = None
    saving_ratios: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    _predicted: dict[tuple[int, str, int], Measurement] = field(default_factory=dict, repr=False)

    @classmethod
    def fit(
        cls, results: Sequence[TrialResult], guide: Guide | None = None, space: Space | None = None
    ) -> "ScorePredictor":
        """Collect the example scores of all trials that answered every example, and fit the accuracy curve.

        Args:
            results: The trials; the first is dense.
            guide: The loss that guides the search.
            space: The search space, needed where a loss guides the search.
        """
        dense = results[0].search
        scores = {}
        for name, entry in dense.items():
            per_example = [r.search[name].detail.get("per_example", ()) for r in results if name in r.search]
            complete = [row for row in per_example if row and len(row) == len(entry.detail.get("per_example", ()))]
            if complete:
                scores[name] = np.array(complete, float)
        if guide is None or space is None:
            return cls(dense, scores)
        return cls(dense, scores, guide, guide.accuracy_curve(results, dense), saving_ratios(results, space.objectives))

    def predict(self, result: TrialResult) -> dict[str, Measurement]:
        """The measurements of a trial, with predictions in place of those on some of the examples."""
        predicted = {}
        for name, part in result.estimates.items():
            if name not in self.dense:
                continue
            key = result.number, name, part.n
            if key not in self._predicted:
                self._predicted[key] = self.predict_score(name, part)
            predicted[name] = self._predicted[key]
        if self.guide is not None and self.accuracy_curve is not None and QUALITY not in result.search:
            predicted |= self._predict_from_loss(result, self.guide, self.accuracy_curve, predicted.get(QUALITY))
        return {**predicted, **result.search}

    def _predict_from_loss(
        self, result: TrialResult, guide: Guide, curve: AccuracyCurve, part: Measurement | None
    ) -> dict[str, Measurement]:
        """Accuracy from the guide's loss, and the costs that the trial has not measured from those that it has.

        Args:
            result: The trial.
            guide: The loss that guides the search.
            curve: How accuracy depends on it.
            part: The accuracy that is predicted from the examples answered so far; None where there are none.
        """
        loss = guide.loss(result.search)
        if loss is None:
            return {}
        score, error = (math.nan, 1.0) if part is None else (-part.value, part.stderr or 0.0)
        mean, deviation = curve.posterior(np.array([loss]), np.array([score]), np.array([error]))
        found = {QUALITY: Measurement(-float(mean[0]), part.n if part else 0, stderr=float(deviation[0]))}
        for name, (other, ratio) in self.saving_ratios.items():
            if name not in result.search and other in result.search:
                saving = 1 - result.search[other].value / self.dense[other].value
                found[name] = Measurement(self.dense[name].value * (1 - ratio * saving))
        return found

    def predict_score(self, name: str, part: Measurement) -> Measurement:
        """Predict a metric on all examples, with its standard error, from its value on some of them.

        The difference estimator (Cochran, Sampling Techniques, 1977, chapter 7): the score of similar policies on all
        examples, plus the mean difference to them on the answered ones. Its error depends on the differences alone.
        """
        answered, scores = part.detail.get("places", []), np.array(part.detail.get("per_example", []), float)
        if name not in self.scores or not len(scores):
            return replace(part, stderr=part.stderr or 1.0)
        weights = example_weights(task_sizes(self.dense[name]))
        similar = self._similarity(self.scores[name], answered, scores)
        auxiliary = weights * (similar @ self.scores[name])
        differences = weights[answered] * scores - auxiliary[answered]
        count, total = len(scores), part.detail["total"]
        # A few equal differences do not show that all are equal, so a quarter of an example counts with variance 1.
        variance = (count * differences.var() + 0.25) / (count + 0.25)
        error = math.sqrt(variance / count * max(1 - count / total, 1 / total))
        if self.guide is not None:
            # The posterior weighs this prediction against the one from the loss, so its error includes the spread among
            # similar policies.
            others = np.delete(weights * self.scores[name] - auxiliary, answered, 1).sum(1) / total
            error = math.hypot(error, math.sqrt(similar @ others**2))
        return replace(part, value=float(auxiliary.mean() + differences.mean()), stderr=error)

    @staticmethod
    def _similarity(known: Floats, answered: Sequence[int], scores: Floats) -> Floats:
        """How alike known policies score the answered examples.

        Args:
            known: (policies, examples): the scores of policies that answered every example.
            answered: The indices of the answered examples.
            scores: (answered,): the policy's scores of these.

        Returns:
            (policies,): weights that sum to 1: the inverse square of the mean squared difference.
        """
        distances = ((known[:, answered] - scores) ** 2).mean(1)
        # A policy with equal scores so far may differ on the rest, so no distance is 0.
        weights = (distances + 2 * distances.mean() / len(scores) + 1e-12) ** -2.0
        similarity: Floats = weights / weights.sum()
        return similarity


def with_predicted_scores(
    result: TrialResult, predictor: ScorePredictor, violations: Callable[[TrialResult], Mapping[str, float]]
) -> TrialResult:
    """A trial as if it had answered all examples, with predicted scores where it answered some.

    Args:
        result: The trial.
        predictor: Predicts the scores.
        violations: Computes how far a trial violates each constraint, from its `search`.
    """
    if not result.estimates:
        return result
    complete = replace(result, search=predictor.predict(result), early_stopped=None, estimates={})
    return replace(complete, violations=violations(complete))


def baseline_front(
    results: Sequence[TrialResult],
    objectives: Mapping[str, Direction],
    violations: Callable[[TrialResult], Mapping[str, float]],
) -> list[TrialResult]:
    """The baselines on the Pareto front of dense and all baselines, the most expensive first.

    Args:
        results: All trials; the first is dense.
        objectives: Direction by metric.
        violations: See `with_predicted_scores`.
    """
    predictor = ScorePredictor.fit(results)
    baselines = [with_predicted_scores(r, predictor, violations) for r in results if r.baseline is not None]
    by_number = {result.number: result for result in baselines}
    front = front_trials([results[0], *baselines], objectives)
    return [by_number[number] for number in front if number in by_number]


def saving_ratios(results: Sequence[TrialResult], objectives: Iterable[str]) -> dict[str, tuple[str, float]]:
    """How the saving of each cost that some trials lack depends on the saving of a cost that all trials have.

    The ratio of the two savings is fitted by least squares, with one policy that saves the same share of both added.

    Args:
        results: All trials; the first is dense.
        objectives: The objectives.

    Returns:
        By cost, the other cost and the ratio.
    """
    dense, unscored = results[0].search, [result for result in results if QUALITY not in result.search]
    costs = [name for name in objectives if name != QUALITY and dense[name].value]
    complete = [name for name in costs if all(name in result.search for result in unscored)]
    if not complete:
        return {}
    base, found = complete[0], {}
    for name in costs:
        if name in complete:
            continue
        both = [result.search for result in results if {name, base} <= result.search.keys()]
        ours = np.array([1 - objective_value(name, one[name], dense[name]) / dense[name].value for one in both])
        theirs = np.array([1 - one[base].value / dense[base].value for one in both])
        found[name] = base, float((ours @ theirs + 1) / (theirs @ theirs + 1))
    return found
