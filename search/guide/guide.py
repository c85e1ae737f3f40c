"""The guide of a search: a graded loss of the right answers, measured before accuracy.

On a few hundred examples accuracy moves in coarse steps, so policies that differ in one sublayer look equal. The loss
of the right answers ranks them, for one teacher-forced pass over a few dozen examples. Accuracy still decides: it is
measured where the loss predicts a place on the front.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ...evaluators.base import Measurement
from ..space.constraint import Constraint
from ..space.guide_metrics import ANSWER_LOSS, DIVERGENCE, QUALITY
from ..trial.trial_result import TrialResult
from .accuracy_curve import AccuracyCurve
from .rank_correlation import kendall

ANSWER_DIVERGENCE: Final = "answer_divergence"  # divergence on the right answers, a detail of `answer_loss`
GUIDE_EXAMPLES: Final = 48  # examples that the guide is measured on
MIN_EXAMPLES_TO_GUIDE: Final = 64  # a search split with fewer examples has no guide
TRIALS_TO_CHOOSE_METRIC: Final = 12  # trials with accuracy from which the guide's metric is chosen


@dataclass(frozen=True)
class Guide:
    """The metric that guides a search.

    Attributes:
        metric: `answer_loss`, `answer_divergence` or `divergence`.
    """

    metric: str

    @property
    def evaluator(self) -> str:
        """The evaluator that measures it."""
        return DIVERGENCE if self.metric == DIVERGENCE else ANSWER_LOSS

    def loss(self, measured: Mapping[str, Measurement]) -> float | None:
        """The guide's loss among measurements; None where it was not measured."""
        entry = measured.get(self.evaluator)
        if entry is None:
            return None
        return float(entry.detail["divergence"]) if self.metric == ANSWER_DIVERGENCE else entry.value

    def chance_loss(self, dense: Mapping[str, Measurement]) -> float:
        """The loss at chance level; infinite where the tasks do not give it, or dense is no better.

        Args:
            dense: Measurements of the dense model.
        """
        entry = dense.get(self.evaluator)
        return entry.floor if entry is not None and entry.floor > entry.value else math.inf

    def accuracy_curve(self, results: Sequence[TrialResult], dense: Mapping[str, Measurement]) -> AccuracyCurve | None:
        """Fits accuracy as a function of the loss to all trials that have both; None where no trial has a loss.

        Args:
            results: The trials.
            dense: Measurements of the dense model.
        """
        with_loss = [(loss, result) for result in results if (loss := self.loss(result.search)) is not None]
        if not with_loss:
            return None
        scored = [(loss, result.search[QUALITY]) for loss, result in with_loss if QUALITY in result.search]
        losses = np.array([loss for loss, _ in scored])
        scores = np.array([-entry.value for _, entry in scored])
        # The front stands on the accuracy of the whole search split, of which these are exact measurements.
        errors = np.zeros(len(scored))
        all_losses = np.array([loss for loss, _ in with_loss])
        return AccuracyCurve.fit(losses, scores, errors, -dense[QUALITY].floor, all_losses)


def min_useful_accuracy(dense: Measurement, bound: Constraint | None) -> float:
    """Accuracy of the reference point of a guided search: its constraint, or halfway between chance level and dense.

    Args:
        dense: The dense model's accuracy.
        bound: The constraint on accuracy; None where there is none.
    """
    halfway = (dense.value + dense.floor) / 2
    return halfway if bound is None else max(bound.limit(dense.value, dense.floor), dense.floor)


def best_guide_metric(results: Sequence[TrialResult]) -> str:
    """Which metric of the right answers ranks accuracy better, by Kendall's tau-b; `answer_loss` where they tie.

    Args:
        results: Trials with both metrics and with accuracy.
    """
    accuracies = np.array([result.search[QUALITY].value for result in results])
    correlations = {}
    for metric in (ANSWER_LOSS, ANSWER_DIVERGENCE):
        losses = np.array([Guide(metric).loss(result.search) for result in results], float)
        tau = kendall(-losses, accuracies)
        correlations[metric] = -1.0 if tau is None else tau.value
    return max(correlations, key=lambda metric: correlations[metric])
