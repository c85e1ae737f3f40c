"""Selection from a study: fronts under other constraints, the best policy within a budget, and suggestions."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import searching
import yaml
from asking import LAYERS, measured
from made_studies import METRICS, changed, refronted, study

from skipsearch import Policy
from skipsearch.evaluators.base import Measurement
from skipsearch.policies.choice import CHOICES, KEEP
from skipsearch.policies.errors import UsageError
from skipsearch.policies.metadata import Provenance
from skipsearch.search.analysis import selection
from skipsearch.search.analysis.reselect import (
    best_trial,
    combined_bounds,
    no_feasible_policy,
    parse_bounds,
    undecided_lines,
    under_bounds,
)
from skipsearch.search.analysis.study_record import StudyRecord
from skipsearch.search.analysis.suggest import suggest
from skipsearch.search.cli import main
from skipsearch.search.report.selected import print_selection
from skipsearch.search.study.study import SearchStudy
from skipsearch.search.trial.trial_result import TrialResult

OBJECTIVES = {"accuracy": "maximize", "prefill_flops": "minimize"}


def bounds(record, *texts):
    return parse_bounds(texts, "--pick", record)


def value(trial, name):
    return trial.search[name].value


# The archive


@pytest.mark.parametrize("seed", range(4))
def test_a_pick_is_the_most_accurate_within_the_budget(seed):
    record = study(80, seed=seed)
    dense = record.dense
    kept = [
        trial
        for trial in record.trials
        if trial.state == "complete"
        and len(trial.search) == len(METRICS)
        and value(trial, "accuracy") >= 0.75 * value(dense, "accuracy")
        and value(trial, "prefill_flops") <= 0.7 * value(dense, "prefill_flops")
        and trial.search["ttft_ms"].value / trial.search["ttft_ms"].dense <= 0.8
    ]
    asked = combined_bounds(record, [], bounds(record, "prefill_flops<=0.7*dense", " ttft_ms <= 0.8 * dense "))
    found = best_trial(under_bounds(record, asked))
    assert kept and found.number == max(kept, key=lambda trial: (value(trial, "accuracy"), -trial.number)).number


def test_a_new_constraint_stands_in_the_place_of_the_old_and_beside_the_others():
    record = replace(study(80), constraints={"accuracy": ">= 0.75 * dense", "prefill_flops": "<= 0.9 * dense"})
    texts = [bound.label for bound in combined_bounds(record, bounds(record, "accuracy>=0.6*dense"), [])]
    assert texts == ["prefill_flops <= 0.9 * dense", "accuracy >=0.6*dense"]


def test_a_looser_and_a_tighter_constraint_change_the_front():
    cheap = {"accuracy": Measurement(0.5), "prefill_flops": Measurement(1e11)}
    record = study(80, objectives=("accuracy", "prefill_flops"))
    record = changed(record, 5, state="complete", search=cheap, violations={"accuracy": 0.1})
    dense = value(record.dense, "accuracy")
    fronts = {
        share: under_bounds(record, bounds(record, f"accuracy>={share}*dense")).front for share in (0.5, 0.75, 0.95)
    }
    assert fronts[0.75] == record.front
    assert set(fronts[0.95]) < set(record.front) < set(fronts[0.5])
    added = set(fronts[0.5]) - set(record.front)
    assert 5 in added and all(0.5 <= value(record.trial(number), "accuracy") / dense < 0.75 for number in added)
    assert all(value(record.trial(number), "accuracy") >= 0.95 * dense for number in fronts[0.95])


def test_what_a_search_dropped_or_failed_at_is_never_selected():
    record = study(80)
    number = best_trial(under_bounds(record, [])).number
    for fields in ({"early_stopped": "surely worse"}, {"state": "failed", "search": {}}):
        assert best_trial(under_bounds(changed(record, number, **fields), [])).number != number


def test_trials_that_stopped_too_early_are_counted():
    record = study(80)
    early = [trial for trial in record.trials if trial.state == "complete" and "ttft_ms" not in trial.search]
    loose = bounds(record, "accuracy>=0.1*dense")
    assert early and undecided_lines(record, loose) == [
        f"{len(early)} trials stopped at the study's own constraints before these metrics were measured"
    ]
    assert undecided_lines(record, bounds(record, "accuracy>=0.75*dense")) == []


def test_trials_that_answered_few_examples_are_counted_and_never_the_nearest():
    record = study(80, objectives=("accuracy", "prefill_flops"))
    aside = [trial.number for trial in record.trials if trial.feasible and trial.number not in (0, *record.front)][:5]
    for number in aside:
        search = dict(record.trial(number).search)
        estimates = {"accuracy": replace(search.pop("accuracy"), n=50)}
        record = changed(record, number, search=search, estimates=estimates, violations={})
    assert not any(record.trial(number).feasible for number in aside)
    asked = bounds(record, "prefill_flops<=dense")
    assert undecided_lines(record, asked) == ["5 trials answered only some of the examples"]
    bare = replace(record, trials=(record.dense, *(record.trial(number) for number in aside)))
    error = no_feasible_policy(bare, bounds(record, "prefill_flops<=0.01*dense"))
    assert error.details[0].startswith("nearest: trial 0 with")


def test_where_nothing_keeps_the_bounds_the_nearest_is_named():
    record = study(80, objectives=("accuracy", "prefill_flops"))
    asked = bounds(record, "prefill_flops<=0.01*dense", "accuracy>=0.1")
    assert under_bounds(record, asked).front == ()
    error = no_feasible_policy(record, asked)
    cheapest = min((t for t in record.trials if t.search), key=lambda trial: value(trial, "prefill_flops"))
    assert error.what == "no measured policy keeps prefill_flops <=0.01*dense and accuracy >=0.1"
    assert error.details[0].startswith(f"nearest: trial {cheapest.number} with prefill_flops ")
    assert error.details[0].endswith("(bound: >= 10.0 %)") and "(bound: <= 84.0 GFLOPs)" in error.details[0]


def test_what_is_no_bound_is_told_all_at_once():
    texts = ["accuracy", "accuracy>0.9", "acuracy>=0.9", "ttft_ms<=fast", "tpot_ms<=3", ">=3"]
    with pytest.raises(UsageError) as caught:
        parse_bounds(texts, "--pick", study())
    assert caught.value.what == "--pick takes a measured metric with a bound"
    form = "expected a metric and a bound, such as 'ttft_ms<=0.6*dense'"
    assert caught.value.details == (
        f"found 'accuracy', {form}",
        f"found 'accuracy>0.9', {form}",
        "the study did not measure 'acuracy'; the nearest known one is 'accuracy'",
        f"found 'ttft_ms<=fast', {form}",
        "the study did not measure 'tpot_ms'; the nearest known one is 'ttft_ms'",
        "the study did not measure ''; known: accuracy, kv_cache_bytes, prefill_flops, ttft_ms, vision_flops",
    )


# Suggestions


LOSS = [0.002, 0.05, 0.004, 0.07, 0.006, 0.03, 0.001, 0.09]


def additive(policy):
    """A layer's skip costs a known part of the accuracy, and saves an eighth of the work."""
    skipped = [index for index, choice in enumerate(policy.choices(8)) if choice.skips_layer]
    figures = {"accuracy": 0.9 - sum(LOSS[index] for index in skipped), "prefill_flops": 8e6 - 1e6 * len(skipped)}
    return {name: Measurement(figure) for name, figure in figures.items()}


def sparse_study(path, without):
    """Every policy with up to two layers skipped, and three, but for some."""
    rows = [[place in (a, b, c) for place in range(8)] for a in range(8) for b in range(a, 8) for c in (b, 7)]
    policies = [Policy(), *(Policy.of([CHOICES["skip_layer"] if skip else KEEP for skip in row]) for row in rows)]
    policies = [policy for policy in dict.fromkeys(policies) if policy not in without]
    trials = [TrialResult(number, "complete", policy, additive(policy)) for number, policy in enumerate(policies)]
    space = searching.loaded(path, layers="[{choices: [keep, skip_layer]}]").space
    record = StudyRecord("s", "m", 8, OBJECTIVES, {}, METRICS, tuple(trials), (), (), {}, "", {})
    return refronted(record, confirm=False), space


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return searching.tiny_space(tmp_path_factory.mktemp("space"))


def test_a_better_policy_that_was_not_measured_is_suggested_and_marked(path):
    record, space = sparse_study(path, [])
    asked = bounds(record, "prefill_flops<=0.55*dense")
    found = suggest(under_bounds(record, asked), space, asked)
    assert [index for index, choice in found.layers.items() if choice.skips_layer] == [0, 2, 4, 6]
    assert found.measured == {} and found.provenance.trial is None
    assert found.provenance.unmeasured.startswith("expected accuracy 88.")
    assert found.provenance.unmeasured.endswith("prefill_flops 4.00 MFLOPs")
    assert Policy.model_validate(yaml.safe_load(found.to_yaml())).provenance == found.provenance


def test_what_few_examples_say_counts_for_an_offer_and_bars_nothing_from_it(path):
    record, space = sparse_study(path, [])
    asked = bounds(record, "prefill_flops<=0.55*dense")
    best = {0, 2, 4, 6}
    whole = Policy.of([CHOICES["skip_layer"] if index in best else KEEP for index in range(8)])
    trials = [*record.trials, TrialResult(len(record.trials), "complete", whole, additive(whole))]
    for place in range(9, len(trials)):
        search = dict(trials[place].search)
        estimates = {"accuracy": replace(search.pop("accuracy"), n=50, stderr=1e-4)}
        trials[place] = replace(trials[place], search=search, estimates=estimates)
    rough = under_bounds(replace(record, trials=tuple(trials)), asked)
    assert {*suggest(rough, space, asked).layers} == best
    given_up = changed(rough, len(trials) - 1, early_stopped="surely worse")
    assert {*suggest(given_up, space, asked).layers} != best


def test_nothing_is_offered_where_the_best_was_measured_or_nothing_is_known(path):
    record, space = sparse_study(path, [])
    asked = bounds(record, "prefill_flops<=0.75*dense")
    assert suggest(under_bounds(record, asked), space, asked) is None
    few = replace(record, trials=record.trials[:9])
    harder = bounds(record, "prefill_flops<=0.55*dense")
    assert suggest(under_bounds(few, harder), space, harder) is None


def test_an_offer_keeps_to_the_space(path):
    record, space = sparse_study(path, [])
    asked = bounds(record, "prefill_flops<=0.55*dense")
    forbidding = space.model_validate(
        space.model_dump() | {"forbid": [{"0": "skip_layer", "2": "skip_layer", "4": "skip_layer"}]}
    )
    found = suggest(under_bounds(record, asked), forbidding, asked)
    assert found is not None and not {0, 2, 4} <= {*found.layers}
    scheduled = space.model_validate(space.model_dump() | {"schedules": [{"fastv": {"layer": 1, "token_ratio": 0.5}}]})
    assert suggest(under_bounds(record, asked), scheduled, asked) is None


# The command


@pytest.fixture(scope="module")
def folder(path, tmp_path_factory):
    """A study of a few measured trials, without a model."""
    found = tmp_path_factory.mktemp("studies") / "tiny"
    study = SearchStudy(found / "study.db", "tiny", searching.loaded(path).space, LAYERS)
    for _ in range(9):
        proposal = study.ask()
        study.tell(proposal, measured(proposal.policy))
    return found


def test_pick_prints_a_policy_that_loads(folder, tmp_path, capsys):
    assert main(["report", str(folder), "--pick", "prefill_flops<=0.8*dense"]) == 0
    out, err = capsys.readouterr()
    (tmp_path / "picked.yaml").write_text(out)
    picked = Policy.load(tmp_path / "picked.yaml")
    assert picked.measured["prefill_flops"].value <= 0.8 * picked.measured["prefill_flops"].dense
    assert picked.provenance.trial is not None and f"trial {picked.provenance.trial}" in err
    assert "under prefill_flops <=0.8*dense" in err
    assert not (folder / "report.html").exists()


def test_a_constraint_prints_the_front_one_document_a_policy(folder, capsys):
    assert main(["report", str(folder), "--constraint", "accuracy>=0.5*dense"]) == 0
    documents = list(yaml.safe_load_all(capsys.readouterr().out))
    policies = [Policy.model_validate(document) for document in documents]
    costs = [policy.measured["prefill_flops"].value for policy in policies]
    assert len(policies) > 1 and costs == sorted(costs, reverse=True)
    assert all(policy.measured["accuracy"].value >= 0.45 for policy in policies)


@pytest.mark.parametrize(("constraints", "picks"), [(["accuracy>=0.5*dense"], []), ([], ["accuracy>=0.5*dense"])])
def test_a_policy_that_was_not_measured_is_suggested_under_bounds_of_both_kinds(
    constraints, picks, folder, monkeypatch, capsys
):
    better = Policy(layers={1: CHOICES["skip_ffn"]}).model_copy(
        update={"provenance": Provenance(unmeasured="expected")}
    )
    monkeypatch.setattr(selection, "suggest", lambda *given: better)
    found = selection.select(folder, constraints, picks)
    assert found.suggestion is better and (found.pick is not None) == bool(picks)
    print_selection(found, as_json=False, unmeasured=True)
    out, err = capsys.readouterr()
    assert (
        Policy.model_validate(yaml.safe_load(out)).layers == better.layers
        and "an unmeasured policy may be better: expected" in err
    )


def test_a_selection_as_json(folder, capsys):
    command = ["report", str(folder), "--constraint", "accuracy>=0.5*dense", "--pick", "prefill_flops<=0.9*dense"]
    assert main([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["bounds"] == ["accuracy >=0.5*dense", "prefill_flops <=0.9*dense"]
    assert data["unmeasured"] is None
    assert data["pick"]["accuracy"]["value"] == max(entry["accuracy"]["value"] for entry in data["front"])
    picked = Policy.model_validate(data["pick"]["policy"])
    assert picked.provenance == Provenance(
        study="tiny", trial=data["pick"]["trial"], skipsearch=picked.provenance.skipsearch
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--pick", "prefill_flops<=0"], "no measured policy keeps prefill_flops <=0\n  nearest: trial "),
        (
            ["--constraint", "acc>=1"],
            "--constraint takes a measured metric with a bound\n  the study did not measure 'acc'",
        ),
        (
            ["--pick", "accuracy>=0.1", "--unmeasured"],
            "no unmeasured policy can be suggested\n  found 9 measured policies, expected",
        ),
        (
            ["--constraint", "accuracy>=0.1", "--unmeasured"],
            "no unmeasured policy can be suggested\n  found 9 measured policies, expected",
        ),
        (["--unmeasured"], "--unmeasured needs --pick or --constraint\nhint: "),
    ],  # fmt: skip
)
def test_a_selection_that_cannot_be_is_told(flags, says, folder, capsys):
    assert main(["report", str(folder), *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and f"error: {says}" in err
