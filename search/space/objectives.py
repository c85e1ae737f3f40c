"""Which objective plays which part: the one measured on examples, the first cost, the cost of a greedy deletion."""

from collections.abc import Mapping

from ...evaluators.base import Direction, Metric, evaluator_class
from ...policies.errors import EvaluatorError
from .space import Space
from .units import unit_of


def greedy_cost(space: Space) -> str | None:
    """The cost that greedy deletion saves: the first objective that is counted, not timed, or else FLOPs."""
    kinds = [evaluator_class(name) for name in space.evaluate]
    counted = {name for kind in kinds if not (kind.exclusive or kind.splits) for name in kind.metrics}
    wanted = (*space.objectives, "prefill_flops", "decode_flops")
    return next((name for name in wanted if name in counted), None)


def metric_definitions(space: Space) -> dict[str, Metric]:
    """Unit and meaning of what was measured; an objective whose plug-in is gone is told as such."""
    gone = "its evaluator is not installed here"
    found = {name: Metric(unit_of(name), direction, gone) for name, direction in space.objectives.items()}
    for name in space.evaluate:
        try:
            found |= evaluator_class(name).metrics
        except EvaluatorError:
            continue
    return found


def expensive(space: Space) -> int:
    """The place of the objective that is measured on examples; of several the first, and where there is none too."""
    kinds = [evaluator_class(name) for name in space.evaluate]
    scored = {name for kind in kinds if kind.splits for name in kind.metrics}
    return next((place for place, name in enumerate(space.objectives) if name in scored), 0)


def first_cost(objectives: Mapping[str, Direction]) -> str | None:
    """The first minimised objective that tells what a policy costs, not how far it is from dense."""
    minimised = (name for name, direction in objectives.items() if direction == "minimize")
    return next((name for name in minimised if unit_of(name) != "nats"), None)
