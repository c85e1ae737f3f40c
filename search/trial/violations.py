"""How far the measurements of a policy violate the constraints of a space."""

from collections.abc import Mapping

from ...evaluators.base import Measurement
from ..space.constraint import Constraint
from .modelled_time import optimistic_value
from .pareto import objective_value


def constraint_violations(
    constraints: Mapping[str, Constraint], measurements: Mapping[str, Measurement], dense: Mapping[str, Measurement]
) -> dict[str, float]:
    """By constrained metric that was measured, how far it lies beyond its bound; above 0 it violates the constraint.

    Args:
        constraints: The constraints by metric.
        measurements: The measurements of a policy.
        dense: The measurements of the dense model, which bounds may refer to.
    """
    return {
        name: bound.excess(objective_value(name, measurements[name], dense[name]), dense[name].value, dense[name].floor)
        for name, bound in constraints.items()
        if name in measurements and name in dense
    }


def surely_violates(
    constraints: Mapping[str, Constraint], measurements: Mapping[str, Measurement], dense: Mapping[str, Measurement]
) -> bool:
    """True where a constraint is violated even at the better end of the interval of each smoothed time."""
    optimistic = {
        name: optimistic_value(entry, constraints[name]) for name, entry in measurements.items() if name in constraints
    }
    return any(excess > 0 for excess in constraint_violations(constraints, optimistic, dense).values())
