"""Bounds on metrics, absolute or relative to the dense model."""

import math
import re
from typing import Any, Self

from pydantic import WithJsonSchema, model_serializer

from ...policies.choice import StrictModel
from ...policies.wording import short

NUMBER = r"([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+)"
BOUND = rf"(>=|<=)\s*(?:{NUMBER}\s*\*\s*(dense|kept)|{NUMBER}|dense\s*(?:([+-])\s*{NUMBER})?)"
FORMS = "'>= 0.9 * dense', '>= 0.9 * kept', '>= dense - 0.02' or '<= 12.5'"


class Constraint(StrictModel):
    """A bound on a metric, such as `>= 0.9 * dense`, `>= 0.9 * kept`, `>= dense - 0.02` or `<= 12.5`.

    `dense` is the dense model's value. `kept` counts from the chance floor: `0.9 * kept` is
    floor + 0.9 * (dense - floor), where the floor is the accuracy of guessing.

    Attributes:
        metric: The metric that is bounded; empty where the constraint was read without one.
        text: The bound as written.
        at_least: True for `>=`.
        factor: Multiplies the dense model's value; 0 for an absolute bound.
        offset: Is added to the product.
        above_floor: True for `kept`: the factor applies to what dense has above the chance floor.
    """

    metric: str = ""
    text: str
    at_least: bool
    factor: float
    offset: float
    above_floor: bool = False

    @classmethod
    def parse(cls, text: Any, metric: str = "") -> Self:
        """Read a bound.

        Args:
            text: The bound, without the metric.
            metric: The metric that it bounds.

        Raises:
            ValueError: the text is no bound, or a number in it is infinite.
        """
        match = re.fullmatch(BOUND, text.strip()) if isinstance(text, str) else None
        sign, factor, base, absolute, direction, shift = match.groups() if match else ("", "inf", "", "", "", "")
        multiplier = float(factor) if factor else float(not absolute)
        offset = float(absolute) if absolute else float(shift or 0) * (-1 if direction == "-" else 1)
        if not (math.isfinite(multiplier) and math.isfinite(offset)):
            raise ValueError(f"found {short(text)}, expected a bound such as {FORMS}")
        return cls(
            metric=metric,
            text=text.strip(),
            at_least=sign == ">=",
            factor=multiplier,
            offset=offset,
            above_floor=base == "kept",
        )

    @model_serializer
    def _as_written(self) -> str:
        return self.text

    @property
    def label(self) -> str:
        """The metric and its bound, such as `accuracy >= 0.9 * dense`."""
        return f"{self.metric} {self.text}"

    def limit(self, dense: float, floor: float = 0.0) -> float:
        """The last value that satisfies the bound.

        Args:
            dense: The dense model's value.
            floor: The value of guessing.
        """
        return self.factor * dense + self.offset + ((1 - self.factor) * floor if self.above_floor else 0.0)

    def excess(self, value: float, dense: float, floor: float = 0.0) -> float:
        """By how much a value violates the bound; 0 or less where it satisfies it."""
        beyond = value - self.limit(dense, floor)
        return -beyond if self.at_least else beyond


def as_constraint(value: Any) -> Any:
    """Parse a bound that is written as a string."""
    return value if isinstance(value, Constraint) else Constraint.parse(value)


def with_metrics(constraints: dict[str, Constraint]) -> dict[str, Constraint]:
    """Constraints by metric, each of which names its metric too."""
    return {metric: bound.model_copy(update={"metric": metric}) for metric, bound in constraints.items()}


CONSTRAINT_JSON_SCHEMA = WithJsonSchema({"type": "string", "pattern": rf"^\s*{BOUND}\s*$"})
