"""The roles of a space's objectives: the expensive one, the first cost, the cost that greedy deletion saves."""

from collections.abc import Mapping

from ...evaluators.base import Direction, Metric, evaluator_class, metrics_of
from ...policies.errors import EvaluatorError
from .space import Space
from .units import unit_of


def greedy_cost(space: Space) -> str | None:
    """The cost that greedy deletion saves: the first objective that is counted rather than timed, or else FLOPs."""
    evaluators = [evaluator_class(name) for name in space.evaluate]
    counted = {
        metric
        for evaluator in evaluators
        if not (evaluator.exclusive or evaluator.splits)
        for metric in evaluator.metrics
    }
    candidates = (*space.objectives, "prefill_flops", "decode_flops")
    return next((metric for metric in candidates if metric in counted), None)


def metric_definitions(space: Space) -> dict[str, Metric]:
    """Unit, direction and meaning of the space's metrics, also of objectives whose evaluator is not installed."""
    missing = "its evaluator is not installed here"
    definitions = {name: Metric(unit_of(name), direction, missing) for name, direction in space.objectives.items()}
    for name, options in space.evaluate.items():
        try:
            definitions |= metrics_of(name, options)
        except EvaluatorError:
            continue
    return definitions


def expensive_objective(space: Space) -> int:
    """Index of the first objective that is measured on examples; 0 where there is none."""
    evaluators = [evaluator_class(name) for name in space.evaluate]
    on_examples = {metric for evaluator in evaluators if evaluator.splits for metric in evaluator.metrics}
    return next((index for index, name in enumerate(space.objectives) if name in on_examples), 0)


def first_cost(objectives: Mapping[str, Direction]) -> str | None:
    """The first minimised objective that is a cost; a distance from dense, in nats, is none."""
    minimised = (name for name, direction in objectives.items() if direction == "minimize")
    return next((name for name in minimised if unit_of(name) != "nats"), None)
