"""Names of the metrics that can guide a search, and of the one that they stand for."""

from typing import Final

QUALITY: Final = "accuracy"  # what the guide stands for
ANSWER_LOSS: Final = "answer_loss"
DIVERGENCE: Final = "divergence"
