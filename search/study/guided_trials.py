"""What the sampler of a guided search is told: losses and costs of every trial, and accuracy where it was measured."""

import math
from collections.abc import Mapping

from ...evaluators.base import Measurement
from ..guide.guide import Guide, least_of_use
from ..sampler.trial_history import Estimated
from ..space.guide_metrics import QUALITY
from ..space.space import Space
from ..trial.hypervolume import worst
from ..trial.pareto import objective_value
from ..trial.trial_result import TrialResult


def corner(space: Space, dense: Mapping[str, Measurement], guide: Guide | None) -> list[float | None]:
    """Where the sampler's hypervolume begins: the corner of every report, None for the costs of dense.

    A guided search begins at the bound on accuracy, or where half of what dense has beyond guessing is kept.

    Args:
        space: The search space.
        dense: What the dense model measured.
        guide: What guides the search.
    """
    metrics = space.metrics()
    found = {name: worst(metrics[name], direction) for name, direction in space.objectives.items()}
    found |= {name: max(value, dense[name].floor) for name, value in found.items() if value is not None}
    if guide is not None:
        found[QUALITY] = least_of_use(dense[QUALITY], space.constraints.get(QUALITY))
    return [*found.values()]


def told_by_loss(
    record: TrialResult, guide: Guide, space: Space, dense: Mapping[str, Measurement], broken: Mapping[str, float]
) -> Estimated | None:
    """A trial as the sampler learns it; None where its loss was not measured.

    Args:
        record: The trial, its times smoothed.
        guide: What guides the search.
        space: The search space.
        dense: What the dense model measured.
        broken: By bounded metric, how far it lies beyond its bound.
    """
    loss = guide.loss(record.search)
    if loss is None:
        return None
    costs = {
        name: objective_value(name, record.search[name], dense.get(name)) if name in record.search else math.nan
        for name in space.objectives
    }
    # The loss stands in the place of accuracy, signed as that is. The bound on accuracy is the corner.
    values = [-loss if name == QUALITY else cost for name, cost in costs.items()]
    bounded = {name: excess for name, excess in broken.items() if name != QUALITY}
    scored = record.search.get(QUALITY)
    if scored is None:
        return Estimated(values, 0.0, bounded)
    return Estimated(values, 0.0, bounded, scored.value, scored.stderr or 0.0)
