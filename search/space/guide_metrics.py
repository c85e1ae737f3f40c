"""Names of the metric that a guided search is about, and of the losses that can guide it."""

from typing import Final

QUALITY: Final = "accuracy"
ANSWER_LOSS: Final = "answer_loss"
DIVERGENCE: Final = "divergence"
