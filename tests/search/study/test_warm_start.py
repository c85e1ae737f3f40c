"""What a search begins with: published rules at a few settings, what they read off the dense model, and duplicates."""

import json
import random
from itertools import product

import pytest
import searching
import torch
from asking import LAYERS, open_study, spend

from skipsearch import apply_policy
from skipsearch.evaluators.base import Measurement
from skipsearch.evaluators.statistics import LayerStatistics, layer_statistics
from skipsearch.policies.choice import CHOICES, KEEP, LayerChoice
from skipsearch.policies.errors import SpaceError, StudyError
from skipsearch.policies.policy import Policy
from skipsearch.search.analysis.load_study import read_record
from skipsearch.search.baselines.dense_stats import DENSE_STATS, DenseStats
from skipsearch.search.driver.promotion import next_promotion
from skipsearch.search.driver.proposals import Proposals
from skipsearch.search.space.parameters import Parameters
from skipsearch.search.space.search_settings import DEFAULT_BASELINES, START_NAMES
from skipsearch.search.study.expected_results import ScorePredictor
from skipsearch.search.study.study import SearchStudy
from skipsearch.search.study.warm_start import initial_points, order_settings, skipped_share
from skipsearch.search.trial.trial_result import TrialResult
from skipsearch.search.workers.dense_probe import probe_dense
from skipsearch.search.workers.evaluate import PolicyEvaluator

FFN, ATTENTION, LAYER = (CHOICES[name] for name in ("skip_ffn", "skip_attention", "skip_layer"))
SEEING = ["block_influence", "sublayer_cosine", "arank", "shortv", "bandit"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return searching.tiny_space(tmp_path_factory.mktemp("space"))


def space_of(path, **given):
    return searching.loaded(path, **given).space


def seen(layers, seed=0):
    """Statistics of a model whose layers differ at random."""
    draw = random.Random(seed)
    skips = [[ATTENTION if index >= layers - count else KEEP for index in range(layers)] for count in (1, 2)]
    return DenseStats([LayerStatistics(*(draw.random() for _ in range(5))) for _ in range(layers)], skips, 9)


def rules_of(found):
    return [start.baseline_settings for start in found]


# Which settings


def test_rules_take_turns_and_each_tells_what_it_does(path):
    made = Parameters(space_of(path), 12)
    found = initial_points(made, ["uniform", "block_influence", "last"], 6, seen(12))
    assert [[*rules] for rules in rules_of(found)] == [["uniform"], ["block_influence"], ["last"]] * 2
    for start in found:
        (text,) = start.baseline_settings.values()
        labels = [choice.label for choice in made.policy(start.labels).layers.values()]
        assert text == f"{labels[0]} in {len(labels)} layer{'s' * (len(labels) > 1)}"
        assert start.baseline == f"{next(iter(start.baseline_settings))}: {text}"


def test_policies_that_several_rules_come_to_are_begun_once_and_carry_all_names(path):
    made = Parameters(space_of(path, layers="[{range: 3, choices: [keep, skip_ffn]}]"), LAYERS)
    (found,) = initial_points(made, ["last", "uniform"], 9, DenseStats())
    assert found.baseline == "last: skip_ffn in 1 layer; uniform: skip_ffn in 1 layer"


def test_every_rule_is_begun_with_and_none_takes_more_than_its_turn(path):
    names = [name for name in START_NAMES if name != "schedules"]
    made = Parameters(space_of(path, layers="[{choices: [keep, skip_ffn, skip_attention, skip_layer, freeze_image, "
                                            "{token_ratio: [0.75, 0.5, 0.25]}]}]"), 24)  # fmt: skip
    found = initial_points(made, names, 3 * len(names), seen(24))
    counts = [sum(name in rules for rules in rules_of(found)) for name in names]
    assert min(counts) >= 2 and max(counts) <= 4
    assert len({made.policy(start.labels).fingerprint for start in found}) == 3 * len(names)


def test_the_first_settings_are_mild_and_of_every_kind():
    paths = [[kind if index < count else KEEP for index in range(32)]
             for kind, count in product((FFN, LAYER), range(1, 33))]  # fmt: skip
    first = [*order_settings(paths)][:6]
    assert [skipped_share(policy) for policy in first] == [1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 16, 1 / 16]
    assert [[*{*policy} - {KEEP}] for policy in first] == [[FFN], [LAYER]] * 3
    assert sorted(map(str, order_settings(paths))) == sorted(map(str, paths))


def test_fastv_takes_tokens_away_for_good_where_the_space_lets_it(path):
    ratios = "[{choices: [keep, {token_ratio: 0.5}]}]"
    chosen = {"layers": ratios, "token_selection": "{reselect: [each_layer, once]}"}
    for given, expected in ((chosen, "once"), ({"layers": ratios}, "each_layer")):
        made = Parameters(space_of(path, **given), LAYERS)
        found = initial_points(made, ["fastv", "last"], 9, DenseStats())
        fastv = [made.policy(start.labels) for start in found if "fastv" in start.baseline_settings]
        assert fastv and {policy.token_selection.reselect for policy in fastv} == {expected}


def test_the_default_names_every_rule_that_need_not_see_the_model(path):
    assert space_of(path).search.baselines == [*DEFAULT_BASELINES]
    assert {*DEFAULT_BASELINES} == {*START_NAMES} - {*SEEING}
    assert space_of(path, search__start="none").search.baselines == []
    assert space_of(path, search__start="[fastv, last, fastv]").search.baselines == ["fastv", "last"]


def test_an_unknown_baseline_is_an_error_with_its_place_and_the_nearest_name(path):
    text = path.read_text().replace("seed: 3}", "seed: 3, start: [last, blok_influence, 7]}")
    wrong = path.parent / "wrong.yaml"
    wrong.write_text(text)
    with pytest.raises(SpaceError) as caught:
        searching.loaded(wrong)
    line = next(number for number, row in enumerate(text.splitlines(), 1) if "start:" in row)
    unknown, number = caught.value.details
    assert f"wrong.yaml:{line}:" in unknown
    assert "search.start[1]: unknown baseline 'blok_influence'; the nearest known one is 'block_influence'" in unknown
    assert "search.start[2]: found 7, expected text" in number
    with pytest.raises(SpaceError, match="found 'rule', expected 'rules' or 'none', or a list"):
        space_of(path, search__start="rule")


# What is read off the model


@pytest.fixture(scope="module")
def bench(path):
    return PolicyEvaluator(space_of(path, search__start=f"[{', '.join(SEEING)}]"))


def test_the_probe_finds_the_statistics_of_the_search_prompts_and_what_the_bandit_found(bench):
    found = probe_dense(bench, bench.space.search.baselines)
    assert found.statistics == layer_statistics(bench.subject.model, bench.subject.prompts)
    attentions = [[index for index, choice in enumerate(policy) if choice == ATTENTION] for policy in found.bandit]
    assert attentions == [[attentions[0][0]]]  # 3/8 of the three layers that may skip it
    # Prompts once for the statistics and once for dense, and for each of 20 updates as many subsets as there are.
    assert found.forwards == len(bench.subject.prompts) * (1 + 1 + 20 * 3)
    assert probe_dense(bench, bench.space.search.baselines) == found


def test_the_probe_measures_what_freezing_image_tokens_changes(path):
    frozen = CHOICES["freeze_image"]
    layers = "[{range: 1-2, choices: [keep, freeze_image]}]"
    bench = PolicyEvaluator(space_of(path, layers=layers, search__start="[shortv]"))
    found = probe_dense(bench, ["shortv"])
    model, prompts = bench.subject.model, bench.subject.prompts

    def first_tokens(policy):
        with apply_policy(model, policy), torch.no_grad():
            return [model(**prompt, use_cache=False).logits[0, -1].double().log_softmax(-1) for prompt in prompts]

    dense = first_tokens(Policy())
    for layer, statistic in enumerate(found.statistics):
        if layer not in (1, 2):
            assert statistic.frozen_divergence is None
            continue
        pairs = zip(dense, first_tokens(Policy(layers={layer: frozen})), strict=True)
        expected = sum(float((p.exp() * (p - q)).sum()) for p, q in pairs) / len(prompts)
        assert statistic.frozen_divergence == pytest.approx(expected, rel=1e-3, abs=1e-7) and expected > 0


def test_the_bandit_is_judged_by_the_divergence_that_a_space_measures(path, monkeypatch):
    evaluate = "{divergence: {tasks: [image_gen.yaml], search: {limit: 8}, report: {limit: 8}}}"
    given = {"evaluate": evaluate, "objectives": "{divergence: minimize}", "search__start": "[bandit]"}
    bench = PolicyEvaluator(space_of(path, **given))
    (evaluator,) = bench.evaluators
    asked, rungs = [], evaluator.rungs

    def watched(handle, split, shares, *known):
        asked.append((split, handle.policy.choices(LAYERS)))
        return rungs(handle, split, shares, *known)

    monkeypatch.setattr(evaluator, "rungs", watched)
    found = probe_dense(bench, bench.space.search.baselines)
    assert len(asked) == 60 and {split for split, _ in asked} == {"search"}
    assert found.statistics is None and len(found.bandit) == 1


def test_dense_stats_come_back_as_it_was_kept():
    found = seen(3)
    domains = [[KEEP, ATTENTION, LayerChoice(token_ratio=0.5)]] * 3
    assert DenseStats.from_dict(json.loads(json.dumps(found.to_dict())), domains) == found


# In a study


def test_a_study_looks_at_the_model_once_and_keeps_what_it_saw(path, tmp_path):
    given = {"search__start": "[block_influence, bandit]", "search__trials": 12}
    looks = []

    def look():
        looks.append(1)
        return seen(LAYERS)

    def opened(folder, resume=False):
        return SearchStudy(folder / "study.db", "tiny", space_of(path, **given), LAYERS, resume, probe_dense=look)

    whole = spend(opened(tmp_path / "whole"))
    opened(tmp_path / "cut").ask()  # the driver dies before dense is measured
    first = spend(opened(tmp_path / "cut", resume=True), stop_after=4)
    study = opened(tmp_path / "cut", resume=True)
    assert first + spend(study) == whole
    assert len(looks) == 2, "one look for each of two studies"
    assert study.study.user_attrs[DENSE_STATS]["forwards"] == 9
    assert read_record(tmp_path / "cut").summary["forward_passes_for_rules"] == 9
    named = {name for record in study.results() for name in record.baseline_settings}
    assert named == {"block_influence", "bandit"}


def test_a_study_without_dense_statistics_names_the_baseline_that_needs_them(path, tmp_path):
    with pytest.raises(StudyError, match="need statistics of the dense model") as caught:
        open_study(path, tmp_path, search__start="[last, arank, bandit]")
    assert caught.value.details == ("arank", "bandit")


def test_no_more_than_a_generation_is_begun_with(path, tmp_path):
    study = open_study(path, tmp_path, search__trials=80)
    proposals = Proposals(study)
    assert proposals.next().policy == Policy()
    queued = [trial.user_attrs["rule"] for trial in study.study.trials[1:]]
    assert len(queued) == 19 and {rule.partition(":")[0] for rule in queued} == {*DEFAULT_BASELINES} - {"schedules"}


def test_the_front_of_the_rules_is_measured_in_full_whatever_the_search_found(path):
    def record(number, accuracy, cost, baseline=None, part=True):
        told = Measurement(accuracy, 50, detail={"places": [0], "total": 400} if part else {})
        figures = {"prefill_flops": Measurement(cost)} | ({} if part else {"accuracy": told})
        estimates = {"accuracy": told} if part else {}
        return TrialResult(
            number, "complete", Policy.of([FFN] * number), figures, baseline=baseline, estimates=estimates
        )

    dense = record(0, 0.9, 10.0, part=False)
    worse, rule, found, other = (
        record(1, 0.5, 8.0, "fastv: this"), record(2, 0.6, 7.0, "last: that"), record(3, 0.8, 6.0, part=False),
        record(4, 0.7, 6.5),
    )  # fmt: skip
    records = [dense, worse, rule, found, other]
    assert next_promotion(records, ScorePredictor.fit(records), space_of(path), 0).number == 2
