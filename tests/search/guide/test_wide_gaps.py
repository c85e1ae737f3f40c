"""A lucky policy dominates all that cost more: the gap above it gets the policies that are expected to be better."""

from dataclasses import replace

import numpy as np
import pytest

from skipsearch.evaluators.base import Measurement
from skipsearch.policies.choice import CHOICES
from skipsearch.policies.policy import Policy
from skipsearch.search.guide.guide import Guide
from skipsearch.search.guide.wide_gaps import APART, WIDE, expected_accuracies, policies_in_gaps
from skipsearch.search.trial.pareto import front_trials
from skipsearch.search.trial.trial_result import TrialResult

OBJECTIVES = {"accuracy": "maximize", "prefill_flops": "minimize"}
EXAMPLES, DENSE_FLOPS = 200, 1e9


def trial(number, share, right, loss=None, first=0, **changes):
    """A trial that answers `right` examples in a row correctly, from the given one on."""
    scores = np.roll((np.arange(EXAMPLES) < right).astype(float), first)
    accuracy = right / EXAMPLES
    error = (accuracy * (1 - accuracy) / EXAMPLES) ** 0.5
    detail = {"per_example": scores.tolist(), "floor": 0.25}
    search = {
        "accuracy": Measurement(accuracy, EXAMPLES, stderr=error, detail=detail),
        "prefill_flops": Measurement(DENSE_FLOPS * share),
    }
    if loss is not None:
        search["answer_loss"] = Measurement(loss, 48, detail={"floor": 9.0})
    layers = [CHOICES["skip_ffn"]] * number
    made = TrialResult(number, "complete", Policy.of(layers), search, {}, {}, None, {"total": 1.0}, "worker-0")
    return replace(made, **changes)


def in_gaps(trials, guide=None):
    front = front_trials(trials, OBJECTIVES)
    found = policies_in_gaps(trials, front, OBJECTIVES, guide)
    assert not {*front} & {*found}
    return found


def test_gaps_above_a_lucky_policy_are_filled_by_the_best_that_no_test_tells_from_it():
    lucky, good, close, bad = trial(1, 0.6, 120), trial(2, 0.8, 116), trial(3, 0.79, 110), trial(4, 0.7, 60)
    trials = [trial(0, 1.0, 118), lucky, good, close, bad]
    assert front_trials(trials, OBJECTIVES) == (1,)
    assert in_gaps(trials) == (2,)
    # What fills a gap leaves two, of which one may be wide still.
    also = trial(5, 0.9, 114)
    assert in_gaps([*trials, also]) == (5, 2)
    # A policy that answers significantly fewer examples, or breaks a constraint, fills none.
    assert in_gaps([trials[0], lucky, bad]) == ()
    assert in_gaps([trials[0], lucky, replace(good, violations={"accuracy": 0.1})]) == ()
    assert in_gaps([trials[0], lucky, replace(good, duplicate_of=1)]) == ()


@pytest.mark.parametrize(("share", "filled"), [(0.6 + APART - 0.01, False), (0.6 + APART + 0.01, True), (0.96, False)])
def test_a_policy_beside_the_end_of_a_gap_fills_nothing(share, filled):
    trials = [trial(0, 1.0, 118), trial(1, 0.6, 120), trial(2, share, 116)]
    assert (in_gaps(trials) == (2,)) == filled


def test_a_front_without_wide_gaps_gets_nothing():
    step = WIDE - 0.01
    trials = [trial(number, 1 - number * step, 120 - 5 * number) for number in range(5)]
    assert front_trials(trials, OBJECTIVES) == (0, 1, 2, 3, 4)
    assert in_gaps([*trials, trial(9, 0.95, 119)]) == ()
    assert in_gaps([*trials[:2], trial(9, 0.99 - step, 119)]) == ()


def test_the_loss_and_the_answers_tell_together_what_is_expected():
    known = [trial(number, 0.5, 120 - 2 * number, loss=0.2 * number) for number in range(2, 30)]
    lucky, steady = trial(40, 0.8, 118, loss=5.0), trial(41, 0.8, 114, loss=0.5)
    trials = [trial(0, 1.0, 120, loss=0.1), *known, lucky, steady]
    guide = Guide("answer_loss")
    by_answers = expected_accuracies(trials, [lucky, steady], None)
    assert by_answers.tolist() == [118 / EXAMPLES, 114 / EXAMPLES]
    expected = expected_accuracies(trials, [lucky, steady], guide)
    assert expected[0] < expected[1] < 120 / EXAMPLES and expected[0] < by_answers[0]
    # Where no loss was measured, the answers alone count.
    assert expected_accuracies(trials, [trial(42, 0.8, 110)], guide).tolist() == [110 / EXAMPLES]
    dominator = trial(50, 0.5, 119, loss=0.1)
    assert in_gaps([trials[0], dominator, *known, lucky, steady], guide)[0] == 41
    assert in_gaps([trials[0], dominator, *known, lucky, steady])[0] == 40


def test_without_accuracy_or_without_a_cost_there_are_none():
    trials = [trial(0, 1.0, 118), trial(1, 0.6, 120), trial(2, 0.8, 116)]
    assert policies_in_gaps(trials, (1,), {"accuracy": "maximize"}, None) == ()
    assert policies_in_gaps(trials, (1,), {"prefill_flops": "minimize"}, None) == ()
    assert policies_in_gaps(trials, (), OBJECTIVES, None) == ()
    # Without images there are no FLOPs of a vision tower that could be a share of dense.
    free = [replace(one, search={**one.search, "vision_flops": Measurement(0.0)}) for one in trials]
    costs = {"accuracy": "maximize", "vision_flops": "minimize"}
    assert policies_in_gaps(free, (1,), costs, None) == ()
