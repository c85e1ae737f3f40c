"""Contract suites that a plug-in subclasses in its own tests: evaluators, scores of image tokens, model families."""

from .evaluators import EvaluatorContract
from .families import FamilyContract
from .scores import check_score

__all__ = ["EvaluatorContract", "FamilyContract", "check_score"]
