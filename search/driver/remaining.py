"""Predicts how many promotions, confirmations and timings a search still has to do."""

from collections.abc import Mapping, Sequence

from ..space.space import Space
from ..study.expected_results import MAX_CONFIRMED, ScorePredictor
from ..trial.trial_result import TrialResult
from .confirmation import random_twins
from .forecast import SURVIVAL, Phase
from .phases import CONFIRMING, PROMOTING, RANDOMISING, RECOVERING, TRANSFERRING
from .promotion import FIRST_EXAMPLES, apparent_front, examples_answered, expected_points, is_paused
from .timing import ROUNDS, TIMING_AGAIN


def promotions_left(result: TrialResult, total: int) -> float:
    """How many promotions of a paused trial are to come, as long as it survives them.

    Args:
        result: The trial.
        total: How many examples there are.
    """
    answered, expected, survival = examples_answered(result), 0.0, 1.0
    while answered < total:
        answered, expected, survival = 2 * answered or FIRST_EXAMPLES, expected + survival, survival * SURVIVAL
    return expected


def remaining_steps(
    results: Sequence[TrialResult], predictor: ScorePredictor, space: Space, is_confirmed: bool, is_timed: bool
) -> dict[str, float]:
    """Steps to come by phase, if every trial that looks Pareto-optimal now is promoted.

    Args:
        results: All trials; the first is dense.
        predictor: Predicts scores on all examples.
        space: The search space.
        is_confirmed: True where something is measured on a report split.
        is_timed: True where the front is timed again at the end.
    """
    own = [result for result in results if result.duplicate_of is None]
    candidates = expected_points(own, predictor, space)
    front = apparent_front(candidates, space) | {results[0].number}
    scored = (entry for entry in predictor.dense.values() if "per_example" in entry.detail)
    total = max((entry.n for entry in scored), default=FIRST_EXAMPLES)
    paused = [result for result, _ in candidates if result.number in front and is_paused(result, predictor)]
    baselines = sum(result.baseline is not None and result.number not in front for result, _ in candidates)
    recover = space.search.recover
    trained = 0 if recover is None else min(recover.top, len(candidates))
    num_timed = len(front) + min(MAX_CONFIRMED, baselines)
    return {
        PROMOTING: sum(promotions_left(result, total) for result in paused),
        **({RECOVERING: sum(count for _, count in recover.rounds(trained))} if recover is not None else {}),
        **({CONFIRMING: num_timed + trained} if is_confirmed else {}),
        **({RANDOMISING: len(random_twins(results, space.objectives))} if is_confirmed else {}),
        **({TRANSFERRING: len(front)} if space.has_transfer else {}),
        **({TIMING_AGAIN: ROUNDS * num_timed} if is_timed else {}),
    }


def corrected(expected: Mapping[str, Phase], found: Mapping[str, float], progress: float) -> dict[str, int]:
    """The remaining steps by phase: the forecast, replaced by what the trials show as the search progresses.

    Args:
        expected: The forecast of the whole search.
        found: What `remaining_steps` finds now.
        progress: The share of the probes and trials that are measured.
    """
    kinds = {PROMOTING, RECOVERING, CONFIRMING, RANDOMISING, TRANSFERRING, TIMING_AGAIN}
    names = {*expected, *found} & kinds
    steps = {name: expected[name].steps if name in expected else 0.0 for name in names}
    return {name: round((1 - progress) * steps[name] + progress * found.get(name, 0.0)) for name in names}
