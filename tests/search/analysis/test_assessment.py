"""What a search was worth: paired tests, the gain over simple rules, and the forecast, where the truth is known."""

import json
from dataclasses import replace

import numpy as np
import pytest
from made_studies import changed, refronted, study, without_library

from skipsearch.evaluators.base import Measurement, Metric
from skipsearch.search.analysis.assessment import assess, hypervolume_curve, selection_bias
from skipsearch.search.analysis.forecast import forecast
from skipsearch.search.analysis.study_record import policy_files
from skipsearch.search.report.figures import plane_figure
from skipsearch.search.report.html.page import page
from skipsearch.search.report.planes import planes
from skipsearch.search.report.sentences import assessment_lines, selection_bias_line
from skipsearch.search.report.terminal import print_summary, summary_data, tie_line
from skipsearch.search.study.expected_results import ScorePredictor
from skipsearch.search.trial.hypervolume import hypervolume_history
from skipsearch.search.trial.paired_tests import (
    bootstrap_weights,
    example_scores,
    mcnemar,
    p_value,
    paired_difference,
)
from skipsearch.search.trial.pareto import front_trials
from skipsearch.search.trial.trial_result import IntervalEstimate

EXAMPLES = 400


def scored(scores, tasks=None):
    """A figure with the scores of its examples."""
    sizes = tasks or [len(scores)]
    parts = np.split(np.asarray(scores, float), np.cumsum(sizes)[:-1])
    detail = {"per_example": [float(score) for score in scores]}
    detail["tasks"] = {f"task{number}": {"n": size} for number, size in enumerate(sizes)}
    return Measurement(float(np.mean([part.mean() for part in parts])), len(scores), detail=detail)


def guesses(share, seed, count=EXAMPLES):
    """Right or wrong at each example: the easy ones are right for all, and luck decides little."""
    draw = np.random.default_rng(seed)
    ease = np.random.default_rng(0).random(count)
    return (ease + draw.normal(0, 0.03, count) < share).astype(float)


def with_examples(record, rules=(), seed=0):
    """The record with a score for each example, of which trials in `rules` were begun with."""
    trials = []
    for trial in record.trials:
        search = dict(trial.search)
        if "accuracy" in search:
            search["accuracy"] = scored(guesses(search["accuracy"].value, seed + trial.number))
        trials.append(replace(trial, search=search, baseline="a rule" if trial.number in rules else None))
    return assess(refronted(replace(record, trials=tuple(trials))))


# Paired tests


@pytest.mark.parametrize(
    ("better", "worse", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (1, 9, 22 / 1024), (10, 2, 79 * 2 / 4096)],
)
def test_mcnemar_is_exact(better, worse, p):
    assert mcnemar(better, worse) == mcnemar(worse, better) == pytest.approx(p)


def test_equal_policies_are_told_apart_as_often_as_stated():
    draw = np.random.default_rng(0)
    rejected = 0
    for _ in range(400):
        hard = draw.random(60)
        one, other = ((draw.random(60) < hard).astype(float) for _ in range(2))
        rejected += p_value(scored(one), scored(other)) < 0.05
    assert rejected / 400 < 0.07


def test_scores_that_are_no_hits_are_compared_by_flipping_signs():
    draw = np.random.default_rng(1)
    one = draw.random(80)
    assert p_value(scored(one), scored(one + draw.normal(0, 0.1, 80))) > 0.05
    assert p_value(scored(one), scored(one - 0.1 + draw.normal(0, 0.1, 80))) < 0.01
    # Two tasks of unequal size: the few examples of one count more, so a count of hits would be wrong.
    small, large = np.zeros(10), np.zeros(90)
    better = scored([*(small + 1), *large], [10, 90])
    assert better.value == 0.5 and p_value(better, scored([*small, *large], [10, 90])) < 0.01


def test_without_the_same_examples_nothing_is_said():
    kept = scored([1, 0, 1])
    assert p_value(kept, Measurement(0.5, 3)) is None
    assert p_value(kept, scored([1, 0, 1, 1])) is None
    assert p_value(kept, None) is None
    assert example_scores(replace(kept, value=0.9)) is None, "a figure that is not the mean of its examples"


def test_examples_are_drawn_within_their_task():
    weights = bootstrap_weights([3, 5], 50, np.random.default_rng(0))
    assert weights[:, :3].sum(axis=1) == pytest.approx(0.5) and weights[:, 3:].sum(axis=1) == pytest.approx(0.5)
    assert len({tuple(row) for row in weights.round(6)}) > 30


# The gain over the rules


def test_the_gain_is_the_difference_of_two_hypervolumes():
    record = with_examples(study(60, objectives=("accuracy", "prefill_flops")), rules=range(1, 9))
    assessment, names = record.assessment, ["accuracy", "prefill_flops"]
    begun = [trial for trial in record.trials if trial.number in range(9) and trial.feasible]
    points = [tuple(trial.search[name].value for name in names) for trial in begun]
    rules = hypervolume_history(points, ["maximize", "minimize"], [record.reference[name] for name in names])[-1]
    assert assessment.gain.value == pytest.approx(record.hypervolume[-1] - rules)
    assert assessment.gain.low < assessment.gain.value < assessment.gain.high
    assert set(assessment.best_baselines) <= set(range(1, 9)) and assessment.best_baselines


def test_a_search_that_found_nothing_beyond_its_rules_gains_nothing():
    record = study(60, objectives=("accuracy", "prefill_flops"))
    found = with_examples(record, rules=range(1, 60))
    assert found.assessment.gain == IntervalEstimate(0.0, 0.0, 0.0)
    assert "is not better than the best baselines (a rule as trial" in assessment_lines(found)[0]
    clear = with_examples(record, rules=[2])
    assert clear.assessment.gain.low > 0
    assert "The search is significantly better than the best baseline (a rule as trial 2)" in assessment_lines(clear)[0]


def test_what_luck_chose_is_no_gain_where_both_fronts_are_confirmed():
    """Every policy is as good as every other; the search split flatters the front, the report split does not."""
    base = study(60, objectives=("accuracy", "prefill_flops"))

    def equally_good(trial):
        if trial.state != "complete":
            return trial
        luck = {split: scored(guesses(0.8, seed + trial.number)) for split, seed in (("search", 0), ("report", 1000))}
        flops = trial.search["prefill_flops"]
        searched = {"accuracy": luck["search"], "prefill_flops": flops}
        rule = "a rule" if trial.number % 2 else None
        return replace(trial, search=searched, report={"accuracy": luck["report"]}, baseline=rule, violations={})

    trials = tuple(map(equally_good, base.trials))
    front = front_trials(trials, base.objectives)
    found = assess(replace(base, trials=trials, front=front))
    confirmed = found.assessment.confirmed_gain
    names = list(base.objectives)

    def area(numbers):
        points = [tuple((trials[number].search | trials[number].report)[name].value for name in names)
                  for number in numbers]  # fmt: skip
        return hypervolume_history(points, ["maximize", "minimize"], [found.reference[name] for name in names])[-1]

    rules = [trial.number for trial in trials if trial.baseline and trial.state == "complete"]
    assert confirmed.value == pytest.approx(area([0, *front]) - area([0, *rules]))
    assert confirmed.low <= confirmed.value <= confirmed.high
    [line] = [line for line in assessment_lines(found) if "the best baselines" in line]
    assert "on which neither front was selected" in line
    one = front[-1]
    without = tuple(replace(trial, report={}) if trial.number == one else trial for trial in trials)
    assert assess(replace(found, trials=without)).assessment.confirmed_gain is None


def test_few_examples_leave_a_wide_interval():
    record = with_examples(study(60, objectives=("accuracy", "prefill_flops")), rules=[2])

    def width(count):
        few = replace(record, trials=tuple(replace(t, search=t.search | first(t, count)) for t in record.trials))
        gain = assess(refronted(few)).assessment.gain
        return gain.high - gain.low

    def first(trial, count):
        scores = trial.search["accuracy"].detail["per_example"] if trial.search else []
        return {"accuracy": scored(scores[:count])} if scores else {}

    assert width(20) > 2 * width(EXAMPLES)


def test_without_examples_there_is_no_interval_and_without_rules_no_gain():
    record = study(60)
    assert assess(record).assessment.gain is None
    ruled = assess(changed(changed(record, 1, baseline="one"), 2, baseline="two"))
    assert ruled.assessment.gain.low is None
    assert "no per-example scores were kept, so there is no interval" in " ".join(assessment_lines(ruled))


# The gain over each rule


def begun(record, **rules):
    """The record with the trials that each rule began with."""
    names = {number: [name for name, numbers in rules.items() if number in numbers] for number in range(60)}
    trials = [
        replace(trial, baseline="; ".join(f"{name}: setting {trial.number}" for name in names[trial.number]) or None)
        for trial in record.trials
    ]
    return assess(replace(record, trials=tuple(trials)))


def two_objectives():
    return with_examples(study(60, objectives=("accuracy", "prefill_flops")))


def test_each_rule_has_the_hypervolume_of_its_own_trials():
    record = begun(two_objectives(), fastv=range(1, 9), last=range(5, 20), bandit=[59])
    names = ["accuracy", "prefill_flops"]
    found = {result.name: result for result in record.assessment.baseline_results}
    assert [*found] == sorted(found, key=lambda name: -found[name].hypervolume)
    for name, numbers in (("fastv", range(1, 9)), ("last", range(5, 20)), ("bandit", [59])):
        own = [trial for trial in record.trials if trial.number in numbers and trial.feasible]
        points = [tuple(trial.search[metric].value for metric in names) for trial in own]
        corner = [record.reference[metric] for metric in names]
        assert found[name].hypervolume == pytest.approx(
            hypervolume_history([*points, None], ["maximize", "minimize"], corner)[-1]
        )
        assert found[name].settings == len({record.trial(number).policy.fingerprint for number in numbers})
        assert {*found[name].front} <= {trial.number for trial in own}


def test_beside_a_rule_stands_the_best_of_the_front_that_costs_no_more():
    record = two_objectives()
    record = begun(record, last={*range(1, 40)} - {*record.front[1::2]})
    (found,) = record.assessment.baseline_results
    assert found.beside and {found.front[0], found.front[-1]} <= {one.trial for one in found.beside}
    beaten = 0
    for one in found.beside:
        rule, best = record.trial(one.trial).search, record.trial(one.best).search
        front = [record.trial(number).search for number in record.front]
        cheap = [entry for entry in front if entry["prefill_flops"].value <= rule["prefill_flops"].value]
        assert best["accuracy"].value == max(entry["accuracy"].value for entry in cheap)
        if one.best == one.trial:
            assert one.search is None and one.best in record.front
            continue
        beaten += 1
        difference = example_scores(best["accuracy"]) - example_scores(rule["accuracy"])
        assert one.search.value == pytest.approx(difference.mean())
        spread = 1.96 * difference.std() / len(difference) ** 0.5
        assert one.search.low == pytest.approx(one.search.value - spread, abs=0.35 * spread + 1e-9)
        assert one.search.high == pytest.approx(one.search.value + spread, abs=0.35 * spread + 1e-9)
    assert beaten


def test_a_rule_that_answered_some_examples_stands_where_it_is_expected_to():
    record = two_objectives()
    places = [*range(0, EXAMPLES, 2)]
    rule = min((trial for trial in record.trials if trial.feasible), key=lambda trial: trial.search["accuracy"].value
               - trial.search["prefill_flops"].value / record.reference["prefill_flops"])  # fmt: skip
    scores = example_scores(rule.search["accuracy"])
    part = scored(scores[places])
    part = replace(part, detail={**part.detail, "places": places, "total": EXAMPLES})
    cost = {"prefill_flops": rule.search["prefill_flops"]}
    record = changed(record, rule.number, search=cost, estimates={"accuracy": part}, early_stopped="it is worse")
    record = begun(record, last=[rule.number])
    (found,) = record.assessment.baseline_results
    expected = ScorePredictor.fit(record.trials).predict_score("accuracy", part).value
    share = 1 - cost["prefill_flops"].value / record.reference["prefill_flops"]
    assert found.front == (rule.number,) and found.hypervolume == pytest.approx(expected * share)
    (one,) = found.beside
    best = example_scores(record.trial(one.best).search["accuracy"])
    assert one.search.value == pytest.approx((best - scores)[places].mean())
    assert f"<small>from {len(places)} of {EXAMPLES}</small>" in page(record)


def test_only_what_is_confirmed_counts_on_the_report_split():
    record = begun(two_objectives(), last=range(1, 40), fastv=[1])
    found = {result.name: result for result in record.assessment.baseline_results}
    confirmed = [number for number in found["last"].front if record.trial(number).report]
    assert found["last"].confirmed == len(confirmed) > 0
    alone = begun(record, last=confirmed)
    assert alone.assessment.baseline_results[0].report == pytest.approx(found["last"].report)
    for one in found["last"].beside:
        both = [record.trial(number).report for number in (one.trial, one.best)]
        assert (one.report is None) == (one.best == one.trial or not all(both))


def test_rules_without_a_useful_policy_say_so():
    record = two_objectives()
    record = begun(changed(record, 7, violations={"accuracy": 0.1}), last=[7])
    (found,) = record.assessment.baseline_results
    assert (found.front, found.hypervolume, found.report, found.beside) == ((), 0.0, None, ())
    assert "no policy that keeps the constraints is better than dense" in page(record)


def test_the_report_names_each_rule_with_its_source_and_draws_its_points():
    record = begun(two_objectives(), fastv=range(1, 9), last=range(5, 20), mine=[21])
    text = without_library(page(record))
    assert "What the search gained over published baselines" in text
    assert 'FastV, <a href="https://arxiv.org/abs/2403.06764">arXiv:2403.06764</a>' in text
    for name in ("fastv", "last", "mine"):
        assert f"<th>{name}<small>" in text
        (drawn,) = [trace for trace in plane_figure(record, planes(record)[0]).data if trace.name == name]
        numbers = [
            trial.number for trial in record.trials if name in trial.baseline_settings and "accuracy" in trial.search
        ]
        assert [f"<b>trial {number}</b>" in hover for number, hover in zip(numbers, drawn.hovertext, strict=True)]
        assert all(f"<br>{name}: setting" in hover or f"; {name}" in hover for hover in drawn.hovertext)
    assert "What the search gained" not in page(study())
    assert "Hypervolume of each baseline alone: " in " ".join(assessment_lines(record))


# The forecast


def search_curve(count, power, seed):
    """Hypervolume of a search whose rate of gains falls as a power of the trials: rare gains of very unequal size."""
    draw = np.random.default_rng(seed)
    rate = 0.05 * (np.arange(1, count + 1) + 3.0) ** -power
    return np.cumsum(rate * draw.binomial(1, 0.4, count) / 0.4 * draw.exponential(1.0, count))


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("count", [80, 250])
def test_the_forecast_covers_what_came(power, count):
    curves = [search_curve(count + 100, power, seed) for seed in range(40)]
    forecasts = [forecast(curve[:count]) for curve in curves]
    came = [curve[-1] - curve[count - 1] for curve in curves]
    covered = sum(one.low <= true <= one.high for one, true in zip(forecasts, came, strict=True))
    assert covered >= 0.8 * len(curves)
    assert np.mean([one.value for one in forecasts]) == pytest.approx(np.mean(came), rel=0.4)


def test_a_search_that_has_saturated_is_told_so():
    draw = np.random.default_rng(0)
    trials = np.arange(1, 301)
    curve = np.cumsum(np.exp(-trials / 30) * draw.binomial(1, 0.5, 300))
    found = forecast(curve[:200])
    assert found.value < 0.01 * curve[199]
    assert forecast(curve[:40]).value > 0.05 * curve[39]


def test_where_nothing_was_gained_the_rule_of_three_bounds_what_may_come():
    flat = [0.1, 0.3, *[0.3] * 78]
    assert forecast(flat) == IntervalEstimate(0.0, 0.0, pytest.approx(0.2 * 100 * 3 / 60))
    assert forecast(flat, ceiling=0.5).high == pytest.approx(0.2)
    assert forecast([0.0] * 40) == IntervalEstimate(0.0, 0.0, 0.0)


def test_too_few_trials_are_no_ground():
    assert forecast([0.01 * number for number in range(19)]) is None


def test_the_forecast_is_the_same_each_time_and_below_what_can_be():
    curve = search_curve(60, 0.5, 3)
    assert forecast(curve) == forecast(curve)
    assert forecast(curve, ceiling=curve[-1] + 0.01).high <= 0.01 + 1e-12


def test_what_was_set_aside_counts_for_the_forecast_when_it_was_found():
    """What is measured in full only at the end would else look like a leap of the search."""
    record = with_examples(study(60, objectives=("accuracy", "prefill_flops")))
    plain = hypervolume_curve(record)
    early = next(
        trial for trial in record.trials[1:] if trial.feasible and plain[trial.number] > plain[trial.number - 1]
    )
    entry = early.search["accuracy"]
    part = replace(entry, detail={**entry.detail, "places": [*range(entry.n)], "total": entry.n})
    search = {name: figure for name, figure in early.search.items() if name != "accuracy"}
    aside = refronted(changed(record, early.number, search=search, estimates={"accuracy": part}), confirm=False)
    assert hypervolume_curve(aside) == pytest.approx(plain) and aside.hypervolume[early.number] < plain[early.number]
    given_up = changed(aside, early.number, early_stopped="surely worse")
    assert hypervolume_curve(given_up)[early.number] == pytest.approx(hypervolume_curve(given_up)[early.number - 1])


# What is printed


def test_ties_stand_in_the_table_with_what_they_mean():
    record = with_examples(study(60, objectives=("accuracy", "prefill_flops")), rules=[2])
    ties = record.assessment.ties
    assert ties and set(ties) <= set(record.front)
    for number, other in ties.items():
        assert record.front.index(other) == record.front.index(number) - 1
        p = p_value(record.trial(number).search["accuracy"], record.trial(other).search["accuracy"])
        assert p > 0.05
    untied = [pair for pair in zip(record.front, record.front[1:], strict=False) if ties.get(pair[1]) != pair[0]]
    assert all(p_value(*(record.trial(one).search["accuracy"] for one in pair)) <= 0.05 for pair in untied)
    text = without_library(page(record))
    number, other = next(pair for pair in ties.items() if pair[1])
    assert f"trial {number}, tied with trial {other}</small>" in text
    assert "<b>Tied</b> means that the policy’s accuracy does not differ" in text
    assert "<b>Tied</b>" not in page(study())


def test_a_search_by_divergence_has_ties_and_a_winners_curse_in_its_unit():
    record = with_examples(study(60, objectives=("accuracy", "prefill_flops")))

    def far(found):
        turned = {name: entry for name, entry in found.items() if name != "accuracy"}
        if "accuracy" in found:
            entry = found["accuracy"]
            scores = [1 - score for score in entry.detail.get("per_example", [])]
            turned["divergence"] = replace(entry, value=1 - entry.value, detail={"per_example": scores})
        return turned

    trials = tuple(replace(trial, search=far(trial.search), report=far(trial.report)) for trial in record.trials)
    objectives = {"divergence": "minimize", "prefill_flops": "minimize"}
    metrics = {**record.metrics, "divergence": Metric("nats", "minimize", "how far")}
    changes = {"objectives": objectives, "metrics": metrics, "reference": {**record.reference, "divergence": 1.0}}
    turned = assess(replace(record, trials=trials, **changes))
    assert turned.assessment.ties == record.assessment.ties != {}
    assert selection_bias(turned) == pytest.approx(selection_bias(record)) and selection_bias(record) != 0
    assert tie_line(turned).startswith("Tied in divergence by a paired test")
    assert f"look {abs(selection_bias(record)):.3g} nats of divergence" in selection_bias_line(turned)
    assert "<b>Tied</b> means that the policy’s divergence does not differ" in page(turned)


def test_no_rule_within_the_constraints_is_not_called_worse_than_dense():
    record = study(60, objectives=("accuracy", "prefill_flops"))
    broken = replace(record.dense, violations={"accuracy": 0.1})
    rule = replace(record.trial(1), baseline="a rule", violations={"accuracy": 0.1})
    found = assess(replace(record, trials=(broken, rule, *record.trials[2:])))
    assert "the baselines, none of which keeps the constraints: " in assessment_lines(found)[0]


def test_the_verdict_is_printed_in_the_report_the_terminal_and_as_json(tmp_path, capsys):
    record = replace(
        with_examples(study(60), rules=[1, 2]), summary={}, ended="all 60 trials are measured (search.trials)"
    )
    print_summary(record, tmp_path)
    out = " ".join(capsys.readouterr().out.split())
    text = page(record).replace("\N{NO-BREAK SPACE}", " ")
    for line in assessment_lines(record):
        assert line in out
        assert line.replace("'", "&#39;") in text
    assert "The search ended: all 60 trials are measured" in out
    assert "another 100 trials are expected to add" in out
    assert "confirmed policies look" in out
    data = json.loads(json.dumps(summary_data(record, tmp_path)))
    assessment = data["verdict"]
    assert data["ended"] == record.ended
    assert assessment["rules"] and {entry["rule"] for entry in assessment["rules"]} == {"a rule"}
    assert assessment["gain"]["low"] <= assessment["gain"]["value"] <= assessment["gain"]["high"]
    assert assessment["outlook"]["trials"] == 100
    assert {entry["trial"] for entry in assessment["tied"]} <= {*policy_files(record)}
    assert assessment["mean_gap"] is not None


def test_a_difference_on_a_part_of_the_examples_is_the_mean_over_tasks_too():
    """One task has many examples, on which nothing differs, and one has few, on which everything does."""
    ours, theirs = scored([1.0] * 60 + [1.0] * 20, [60, 20]), scored([1.0] * 60 + [0.0] * 20, [60, 20])
    whole = paired_difference(ours, theirs)
    places = [70, 0, 1, 2, 79, 3, 4, 5, 6, 61]
    part = replace(theirs, n=10, detail={"per_example": [theirs.detail["per_example"][p] for p in places],
                                         "places": places, "total": 80})  # fmt: skip
    assert whole.value == paired_difference(ours, part).value == 0.5
    assert paired_difference(ours, part).low == paired_difference(ours, part).high == 0.5
