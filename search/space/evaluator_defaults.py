"""Default options of evaluators on examples: those of `accuracy` in the same space."""

from collections.abc import Mapping
from typing import Any

from ...evaluators.base import evaluator_class
from ...evaluators.example_options import ExampleOptions
from ...policies.errors import EvaluatorError

MAX_EVALUATORS = 64
EXAMPLE_KEYS = ("tasks", "search", "report")  # they select the examples together, so they are copied together or not


def with_accuracy_defaults(evaluate: Mapping[str, Any]) -> dict[str, Any]:
    """Options by evaluator; an evaluator on examples takes the options that it leaves out from `accuracy`.

    Args:
        evaluate: Options by evaluator as written, before validation.
    """
    accuracy = evaluate.get("accuracy")
    if not isinstance(accuracy, Mapping) or len(evaluate) > MAX_EVALUATORS:
        return dict(evaluate)
    return {name: _with_defaults(name, options, accuracy) for name, options in evaluate.items()}


def _with_defaults(name: str, options: Any, accuracy: Mapping[str, Any]) -> Any:
    """The options of one evaluator, completed from those of accuracy where both have the key."""
    if not isinstance(options, Mapping | None) or not _measures_examples(name):
        return options
    own, fields = dict(options or {}), evaluator_class(name).options.model_fields
    skipped = EXAMPLE_KEYS if any(key in own for key in EXAMPLE_KEYS) else ()
    return {key: value for key, value in accuracy.items() if key in fields and key not in skipped} | own


def _measures_examples(name: str) -> bool:
    """True for an installed evaluator whose options select examples."""
    try:
        return issubclass(evaluator_class(name).options, ExampleOptions)
    except EvaluatorError:
        return False
