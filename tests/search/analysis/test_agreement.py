"""Kendall's tau is what its definition says, and its interval covers the truth."""

import math
import random
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from made_studies import study

from skipsearch.evaluators.base import Measurement
from skipsearch.search.analysis.agreement import MIN_TRIALS, agreement
from skipsearch.search.analysis.assessment import assess
from skipsearch.search.guide.rank_correlation import kendall
from skipsearch.search.report.sentences import agreement_line, assessment_lines


def by_definition(one, other):
    pairs = list(combinations(range(len(one)), 2))
    signs = [(np.sign(one[i] - one[j]), np.sign(other[i] - other[j])) for i, j in pairs]
    ordered = [sum(sign[side] != 0 for sign in signs) for side in (0, 1)]
    return sum(a * b for a, b in signs) / math.sqrt(ordered[0] * ordered[1])


@pytest.mark.parametrize("values", [3, 10, 10**6])
def test_equals_the_definition_with_and_without_ties(values):
    draw = np.random.default_rng(values)
    one = draw.integers(values, size=40)
    other = one + draw.integers(values, size=40)
    assert kendall(one, other).value == pytest.approx(by_definition(one, other), abs=1e-6)


def test_perfect_and_reversed_order():
    figures = np.arange(20.0)
    assert kendall(figures, figures**3).value == pytest.approx(1)
    assert kendall(figures, -figures).value == pytest.approx(-1)
    assert kendall(figures, np.zeros(20)) is None


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    correlation, covered = 0.7, 0
    truth = 2 / math.pi * math.asin(correlation)  # of a bivariate normal distribution
    for seed in range(100):
        draw = np.random.default_rng(seed)
        one = draw.normal(size=80)
        found = kendall(one, correlation * one + math.sqrt(1 - correlation**2) * draw.normal(size=80))
        covered += found.low <= truth <= found.high
    assert 88 <= covered <= 99


def with_divergence(trials):
    """A made-up study whose divergence ranks accuracy well; some trials did not measure it in full."""
    draw, record = random.Random(0), study(trials)

    def more(trial):
        if "accuracy" not in trial.search or trial.number % 7 == 5:
            return trial
        detail = {"places": [0], "total": 9} if trial.number % 7 == 6 else {}
        value = 0.0 if trial.number == 0 else 1 - trial.search["accuracy"].value + draw.gauss(0, 0.02)
        entry = Measurement(value, n=200, detail=detail)
        where = "estimates" if detail else "search"
        return replace(trial, **{where: {**getattr(trial, where), "divergence": entry}})

    return replace(record, trials=tuple(more(trial) for trial in record.trials))


def test_trials_that_measured_both_in_full_are_ranked():
    record = assess(with_divergence(60))
    used = [
        trial
        for trial in record.trials
        if trial.state == "complete" and trial.duplicate_of is None and trial.number % 7 < 5 and trial.search
    ]
    divergences, accuracies = (
        np.array([trial.search[name].value for trial in used]) for name in ("divergence", "accuracy")
    )
    expected = by_definition(-divergences, accuracies)
    assert expected > 0.6
    assert record.assessment.agreement.value == pytest.approx(expected, abs=1e-6)
    assert f"Kendall tau {expected:.2f} (95 % interval " in agreement_line(record)
    assert agreement_line(record).endswith(f"{len(used)} trials.")
    assert agreement_line(record) in assessment_lines(record)


def test_few_trials_or_no_divergence_are_not_ranked():
    assert agreement(with_divergence(MIN_TRIALS - 1)) is None
    assert agreement(study(60)) is None
    assert agreement_line(assess(study(60))) == ""
