"""How well the metric that guides a search, or the divergence, ranks policies by accuracy."""

import numpy as np

from ..guide.guide import Guide
from ..guide.rank_correlation import kendall
from ..space.guide_metrics import DIVERGENCE, QUALITY
from ..trial.trial_result import IntervalEstimate
from .study_record import StudyRecord

MIN_TRIALS = 8  # A rank correlation of fewer trials is not reported.
GUIDE_NAMES = {
    "answer_loss": "The loss of the right answers",
    "answer_divergence": "The divergence at the right answers",
    "divergence": "Divergence",
}


def losses_and_accuracies(record: StudyRecord) -> list[tuple[float, float]]:
    """The guide's loss and the accuracy of each policy that measured both on all examples."""
    guide = Guide(record.guide or DIVERGENCE)
    pairs = []
    for trial in record.trials:
        loss, accuracy = guide.loss(trial.search), trial.search.get(QUALITY)
        counts = trial.state == "complete" and trial.duplicate_of is None
        if counts and loss is not None and accuracy is not None and not accuracy.is_partial:
            pairs.append((loss, accuracy.value))
    return pairs


def agreement(record: StudyRecord) -> IntervalEstimate | None:
    """Kendall's tau-b between a low loss and a high accuracy; None with too few trials."""
    pairs = losses_and_accuracies(record)
    if len(pairs) < MIN_TRIALS:
        return None
    losses, accuracies = np.array(pairs).T
    return kendall(-losses, accuracies)
