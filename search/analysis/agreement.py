"""How well what guides a search, or the divergence, ranks policies by accuracy, in the trials that measured both."""

import numpy as np

from ..guide.guide import Guide
from ..guide.rank_correlation import kendall
from ..space.guide_metrics import DIVERGENCE, QUALITY
from ..trial.trial_result import Estimate
from .study_record import StudyRecord

LEAST = 8  # trials below which a rank correlation says nothing
IN_WORDS = {
    "answer_loss": "The loss of the right answers",
    "answer_divergence": "The divergence at the right answers",
    "divergence": "Divergence",
}


def figures(record: StudyRecord) -> list[tuple[float, float]]:
    """Loss and accuracy of the trials that measured both on all examples they are measured on, each policy once."""
    guide = Guide(record.guide or DIVERGENCE)
    found = []
    for trial in record.trials:
        loss, scored = guide.loss(trial.search), trial.search.get(QUALITY)
        whole = trial.state == "complete" and trial.duplicate_of is None
        if whole and loss is not None and scored is not None and not scored.is_partial:
            found.append((loss, scored.value))
    return found


def agreement(record: StudyRecord) -> Estimate | None:
    """Kendall's tau-b of a small loss and high accuracy; None after too few trials."""
    found = figures(record)
    if len(found) < LEAST:
        return None
    losses, accuracies = np.array(found).T
    return kendall(-losses, accuracies)
