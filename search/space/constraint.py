"""A bound on a metric, absolute or relative to the dense model."""

import math
import re
from typing import Any, Self

from pydantic import WithJsonSchema, model_serializer

from ...policies.choice import Part
from ...policies.wording import short

NUMBER = r"([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+)"
BOUND = rf"(>=|<=)\s*(?:{NUMBER}\s*\*\s*(dense|kept)|{NUMBER}|dense\s*(?:([+-])\s*{NUMBER})?)"


class Constraint(Part):
    """A bound on a measured metric, as `>= 0.9 * dense`, `<= 12.5`, `>= dense - 0.02` or `>= 0.9 * kept`.

    What is kept of dense is counted from what guessing gives: a share of 0.9 is floor + 0.9 * (dense - floor).

    Attributes:
        text: As written.
        at_least: True for `>=`.
        factor: What the dense figure is multiplied by; 0 where the bound does not mention it.
        offset: What is added.
        above_floor: True where the factor is a share of what dense has beyond guessing.
    """

    text: str
    at_least: bool
    factor: float
    offset: float
    above_floor: bool = False

    @classmethod
    def parse(cls, text: Any) -> Self:
        """Read a bound.

        Raises:
            ValueError: it is not of one of the three forms.
        """
        match = re.fullmatch(BOUND, text.strip()) if isinstance(text, str) else None
        sign, factor, of, plain, direction, shift = match.groups() if match else ("", "inf", "", "", "", "")
        offset = float(plain) if plain else float(shift or 0) * (-1 if direction == "-" else 1)
        times = float(factor) if factor else float(not plain)
        if not (math.isfinite(times) and math.isfinite(offset)):
            known = "'>= 0.9 * dense', '>= 0.9 * kept', '>= dense - 0.02' or '<= 12.5'"
            raise ValueError(f"found {short(text)}, expected a bound such as {known}")
        return cls(text=text.strip(), at_least=sign == ">=", factor=times, offset=offset, above_floor=of == "kept")

    @model_serializer
    def _as_written(self) -> str:
        return self.text

    def limit(self, dense: float, floor: float = 0.0) -> float:
        """The figure that may just be reached.

        Args:
            dense: The dense model's.
            floor: That of guessing.
        """
        return self.factor * dense + self.offset + ((1 - self.factor) * floor if self.above_floor else 0.0)

    def excess(self, value: float, dense: float, floor: float = 0.0) -> float:
        """How far a value lies beyond the bound; 0 or less where it holds."""
        beyond = value - self.limit(dense, floor)
        return -beyond if self.at_least else beyond


def as_constraint(value: Any) -> Any:
    """Let a bound be written as a string."""
    return value if isinstance(value, Constraint) else Constraint.parse(value)


AS_TEXT = WithJsonSchema({"type": "string", "pattern": rf"^\s*{BOUND}\s*$"})
