"""What the search strategy learns from one finished trial."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from .parameter_codec import Code

Finished = tuple[datetime, int]  # when a trial finished, and its number


@dataclass(frozen=True)
class Observation:
    """What the strategy learns from one finished trial.

    Attributes:
        finished: When it finished, and its number.
        key: The identity of its parameters.
        code: Its policy; None where the strategy learns nothing from it.
        values: The expensive objective and the others, all minimised; NaN where not measured.
        constraints: By name, how far each is violated.
        error: Standard error of the first value.
        is_estimate: True where the values are estimates that later trials change.
        failed: True for a failed trial.
        score: See `Observations.scores`.
        score_error: Standard error of the score.
        scored_at: See `Observations.scored_at`.
    """

    finished: Finished
    key: Hashable
    code: Code | None
    values: tuple[float, ...]
    constraints: Mapping[str, float]
    error: float
    is_estimate: bool
    failed: bool
    score: float
    score_error: float
    scored_at: int = 0

    @property
    def constraint_names(self) -> set[str]:
        """Names of the constraints that the strategy learns from it."""
        return set() if self.code is None else {*self.constraints}


def merge_by_policy(observations: Sequence[Observation]) -> list[Observation]:
    """One observation for each policy, at its first place, with the scores and costs that its later trials add.

    Args:
        observations: Of all trials, in the order in which they finished.
    """
    merged: dict[Hashable, Observation] = {}
    for one in observations:
        if one.code is None:
            continue
        first = merged.get(one.key)
        if first is None:
            merged[one.key] = replace(one, scored_at=len(merged) + 1)
            continue
        values = tuple(old if math.isfinite(old) else new for old, new in zip(first.values, one.values, strict=True))
        scored = math.isfinite(one.score)
        merged[one.key] = replace(
            first,
            values=values,
            constraints={**first.constraints, **one.constraints},
            score=one.score if scored else first.score,
            score_error=one.score_error if scored else first.score_error,
            scored_at=len(merged) if scored else first.scored_at,
        )
    return list(merged.values())
