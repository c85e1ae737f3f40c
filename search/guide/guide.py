"""What guides a search: a graded loss of the right answers, measured before any accuracy.

Accuracy on a few hundred examples moves in coarse steps, so that single moves look alike; the loss of the right answers
tells them apart, for one teacher-forced pass over a few dozen examples. Accuracy decides all the same: it is measured
where the loss lets a place on the front be expected.
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
from .accuracy_curve import Quality
from .rank_correlation import kendall

ANSWER_DIVERGENCE: Final = "answer_divergence"  # of the same answers, as a detail of their loss
EXAMPLES: Final = 48  # that the guide is measured on
FEWEST: Final = 64  # examples of the search split below which there is no guide
DECIDED_BY: Final = 12  # policies with their accuracy that choose between two metrics


@dataclass(frozen=True)
class Guide:
    """Which figure guides.

    Attributes:
        metric: `answer_loss`, `answer_divergence` or `divergence`.
    """

    metric: str

    @property
    def evaluator(self) -> str:
        """The evaluator that measures it."""
        return DIVERGENCE if self.metric == DIVERGENCE else ANSWER_LOSS

    def loss(self, measured: Mapping[str, Measurement]) -> float | None:
        """The figure among measurements; None where it was not measured."""
        entry = measured.get(self.evaluator)
        if entry is None:
            return None
        return float(entry.detail["divergence"]) if self.metric == ANSWER_DIVERGENCE else entry.value

    def guessing(self, dense: Mapping[str, Measurement]) -> float:
        """The loss of guessing; infinite where the tasks do not tell it, or dense is no better.

        Args:
            dense: What the dense model measured.
        """
        entry = dense.get(self.evaluator)
        return entry.floor if entry is not None and entry.floor > entry.value else math.inf

    def quality(self, records: Sequence[TrialResult], dense: Mapping[str, Measurement]) -> Quality | None:
        """How accuracy depends on the loss, from all trials that have both; None where no loss is known.

        Args:
            records: Trials.
            dense: What the dense model measured.
        """
        pairs = [(loss, record) for record in records if (loss := self.loss(record.search)) is not None]
        if not pairs:
            return None
        scored = [(loss, record.search[QUALITY]) for loss, record in pairs if QUALITY in record.search]
        losses = np.array([loss for loss, _ in scored])
        scores = np.array([-entry.value for _, entry in scored])
        errors = np.array([entry.stderr or 0.0 for _, entry in scored])
        return Quality.fit(losses, scores, errors, -dense[QUALITY].floor, np.array([loss for loss, _ in pairs]))


def least_of_use(dense: Measurement, bound: Constraint | None) -> float:
    """The accuracy at which a guided search ends: its bound, or half of what dense has beyond guessing.

    Args:
        dense: The dense model's accuracy.
        bound: On accuracy; None where there is none.
    """
    half = (dense.value + dense.floor) / 2
    return half if bound is None else max(bound.limit(dense.value, dense.floor), dense.floor)


def better_metric(records: Sequence[TrialResult]) -> str:
    """Which of the two figures of the right answers ranks accuracy better, by Kendall's tau-b; of equal ones the loss.

    Args:
        records: Trials with both figures and with their accuracy.
    """
    accuracies = np.array([record.search[QUALITY].value for record in records])
    found = {}
    for metric in (ANSWER_LOSS, ANSWER_DIVERGENCE):
        losses = np.array([Guide(metric).loss(record.search) for record in records], float)
        told = kendall(-losses, accuracies)
        found[metric] = -1.0 if told is None else told.value
    return max(found, key=lambda metric: found[metric])
