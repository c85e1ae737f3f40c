"""Evaluators on examples that stand beside `accuracy` have its examples, where they do not name others."""

from collections.abc import Mapping
from typing import Any

from ...evaluators.base import evaluator_class
from ...evaluators.example_options import ExampleOptions
from ...policies.errors import EvaluatorError

MOST = 64  # evaluators of a space
WHICH = ("tasks", "search", "report")  # together they say which examples: they are taken all three or not at all


def shared(evaluate: Mapping[str, Any]) -> dict[str, Any]:
    """The options of all evaluators, with those of `accuracy` where others leave them out.

    Args:
        evaluate: Options by evaluator, as they are written; not checked yet.
    """
    whole = evaluate.get("accuracy")
    if not isinstance(whole, Mapping) or len(evaluate) > MOST:
        return dict(evaluate)
    return {name: with_those(name, options, whole) for name, options in evaluate.items()}


def with_those(name: str, options: Any, given: Mapping[str, Any]) -> Any:
    """The options of one evaluator, with those given where it has the same and leaves them out."""
    if not isinstance(options, Mapping | None) or not on_examples(name):
        return options
    own, known = dict(options or {}), evaluator_class(name).options.model_fields
    names_its_own = any(key in own for key in WHICH)
    usable = {key: value for key, value in given.items() if key in known}
    return {key: value for key, value in usable.items() if not (names_its_own and key in WHICH)} | own


def on_examples(name: str) -> bool:
    """True for an evaluator whose options say which examples."""
    try:
        return issubclass(evaluator_class(name).options, ExampleOptions)
    except EvaluatorError:
        return False
