"""A policy before and after a short training, and which of the two a trial counts as."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...evaluators.base import Direction
from .hypervolume import minimised, weakly_dominates
from .pareto import feasible_points
from .trial_result import TrialResult


@dataclass(frozen=True)
class Recovery:
    """The training of one policy once a search had ended.

    Attributes:
        before: The policy's trial, with the model's own weights.
        after: The same trial with the trained weights in its policy, and what was measured with them; None where the
            training failed.
        failure: Why it failed, or why the last of several rounds did; None where it did not.
        seconds: The time of the training, of all rounds.
        steps: The optimiser steps of the training that counts.
    """

    before: TrialResult
    after: TrialResult | None
    failure: str | None
    seconds: float
    steps: int = 0


def with_recoveries(
    results: Sequence[TrialResult], recoveries: Sequence[Recovery], objectives: Mapping[str, Direction]
) -> list[TrialResult]:
    """Trials, of which a trained one counts with its trained weights unless these are no better in any objective.

    Args:
        results: The trials; the first is dense.
        recoveries: The trainings of some of them.
        objectives: Direction by metric.
    """
    trained = {one.before.number: one.after for one in recoveries
               if one.after is not None and improves(one.before, one.after, results[0], objectives)}  # fmt: skip
    return [trained.get(result.number, result) for result in results]


def improves(
    before: TrialResult, after: TrialResult, dense: TrialResult, objectives: Mapping[str, Direction]
) -> bool:  # fmt: skip
    """True where a trained policy may be on the front, and is better in some objective than before its training."""
    _, own, trained = feasible_points([dense, before, after], objectives)
    if own is None or trained is None:
        return trained is not None
    directions = [*objectives.values()]
    return not weakly_dominates(minimised(own, directions), minimised(trained, directions))
