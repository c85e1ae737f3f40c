"""The front beside random choices of image tokens: which policies have a random twin, and what the report says."""

from dataclasses import replace

import pytest
from made_studies import refronted, study

from skipsearch import LayerChoice, Policy
from skipsearch.evaluators.base import Measurement
from skipsearch.policies.choice import CHOICES
from skipsearch.policies.scores.token_selection import TokenSelection
from skipsearch.search.analysis.assessment import assess
from skipsearch.search.analysis.study_record import policy_files
from skipsearch.search.baselines.random_twin import random_twin
from skipsearch.search.driver.confirmation import MAX_RANDOM, random_twins
from skipsearch.search.report.sentences import assessment_lines
from skipsearch.search.report.terminal import assessment_data

EXAMPLES = 400


def ratios(*given, **selection):
    layers = {layer: LayerChoice(token_ratio=ratio) for layer, ratio in enumerate(given, 1)}
    return Policy(layers={0: CHOICES["skip_ffn"], **layers}, token_selection=TokenSelection(**selection))


def test_a_twin_has_the_same_ratios_and_random_tokens():
    twin = random_twin(ratios(0.5, 0.25, score="relevance", diversity=0.5, reselect="once", dropped="merge"))
    assert twin == ratios(0.5, 0.25, score="random", reselect="once", dropped="merge").canonical()


@pytest.mark.parametrize(
    "policy", [Policy(), Policy(layers={1: CHOICES["skip_layer"]}), ratios(0.0), ratios(0.5, score="random")]
)
def test_what_ranks_nothing_has_no_twin(policy):
    assert random_twin(policy) is None


def test_a_few_policies_of_the_front_are_measured_beside_their_twins():
    record = study(trials=400)
    twins = random_twins(record.trials, record.objectives)
    assert len(twins) == MAX_RANDOM < len(record.front)
    for one in twins:
        assert one.number in record.front and one.policy == random_twin(record.trial(one.number).policy)


def answers(right):
    """An accuracy with the score of each example."""
    scores = [1.0] * right + [0.0] * (EXAMPLES - right)
    return {"accuracy": Measurement(right / EXAMPLES, EXAMPLES, detail={"per_example": scores})}


def measured(*pairs):
    """A study whose first confirmed policies have these right answers, of their own and of their random twins."""
    record = refronted(study())
    numbers = [number for number in policy_files(record) if number][: len(pairs)]
    own = {number: answers(right) for number, (right, _) in zip(numbers, pairs, strict=True)}
    trials = tuple(replace(trial, report=own.get(trial.number, trial.report)) for trial in record.trials)
    random = {number: answers(right) for number, (_, right) in zip(numbers, pairs, strict=True)}
    return numbers, assess(replace(record, trials=trials, random=random))


def test_the_report_says_how_often_random_does_as_well():
    numbers, record = measured((300, 200), (300, 299), (250, 280))
    found = record.assessment.random
    assert found.as_well == numbers[1:]
    assert found.gains[numbers[0]].value == pytest.approx(0.25) and found.gains[numbers[0]].low > 0
    (line,) = [line for line in assessment_lines(record) if "random" in line]
    assert f"random did as well for 2 of 3 policies (trials {numbers[1]}, {numbers[2]})" in line
    assert assessment_data(record)["random"]["as_well"] == numbers[1:]


def test_without_ratios_the_report_says_nothing_of_random():
    record = assess(refronted(study()))
    assert record.assessment.random is None and assessment_data(record)["random"] is None
    assert not [line for line in assessment_lines(record) if "andom" in line]
