"""Published rules give the layers that their papers name, and nothing that a space does not allow."""

import random

import pytest

from skipsearch.evaluators.statistics import LayerStatistics
from skipsearch.policies.choice import CHOICES, KEEP, LayerChoice
from skipsearch.policies.schedules import FastV, ShiftedCosine
from skipsearch.search.baselines.bandit import bandit
from skipsearch.search.baselines.registry import BASELINES

LAYER, ATTENTION, FFN = CHOICES["skip_layer"], CHOICES["skip_attention"], CHOICES["skip_ffn"]
EVERYTHING = [*CHOICES.values(), *(LayerChoice(token_ratio=ratio) for ratio in (0.75, 0.5, 0.25))]
FLAT = [LayerStatistics(0.5, 0.5, 0.5, 50.0, 0.5)] * 32


def space(*choices, layers=32):
    return [[KEEP, *choices]] * layers


def layers_of(policy):
    return [index for index, choice in enumerate(policy) if choice != KEEP]


def policies(name, domains, statistics=None):
    return BASELINES[name].policies(domains, statistics)


def measured(**values):
    """Statistics of as many layers as there are values; of what is not given, the same everywhere."""
    (count,) = {len(column) for column in values.values()}
    rest = {"block_influence": 0.5, "attention_cosine": 0.5, "ffn_cosine": 0.5, "attention_rank": 50.0}
    return [LayerStatistics(**{**rest, **{name: values[name][i] for name in values}}) for i in range(count)]


def test_interval_selects_the_layers_of_ima_lmms():
    assert [layers_of(policy) for policy in policies("interval", space(LAYER))] == [
        [8, 16, 24],
        [8, 12, 16, 20, 24, 28],
        [4, 8, 12, 16, 20, 24, 28],
        [*range(12, 31, 2)],
        [*range(6, 31, 2)],
        [*range(2, 31, 2)],
    ]
    kinds = {choice for policy in policies("interval", space(*EVERYTHING)) for choice in policy}
    assert kinds == {*CHOICES.values()}


def test_the_start_of_an_interval_scales_with_the_depth():
    assert [layers_of(policy) for policy in policies("interval", space(FFN, layers=16))] == [
        [8],
        [4, 8, 12],
        [6, 8, 10, 12, 14],
        [4, 6, 8, 10, 12, 14],
        [2, 4, 6, 8, 10, 12, 14],
    ]


def test_uniform_takes_every_nth_layer():
    found = [layers_of(policy) for policy in policies("uniform", space(LAYER, layers=8))]
    assert found == [[7], [5], [4], [3, 7], [2, 5], [1, 3, 5, 7]]


def test_last_takes_more_and_more_of_the_last_layers():
    found = [layers_of(policy) for policy in policies("last", space(LAYER, layers=8))]
    assert found == [[7], [6, 7], [4, 5, 6, 7], [*range(2, 8)], [*range(8)]]


def test_shifted_cosine_is_p_mod_where_the_space_has_its_ratios():
    wanted = ShiftedCosine(ratio=0.5, max=0.85, min=0.15).choices(32)
    assert wanted in policies("shifted_cosine", space(*wanted[8:]))
    # Shares of p-MoD's own table, each to the nearest of three.
    (found,) = [p for p in policies("shifted_cosine", space(*EVERYTHING)) if p[7] == KEEP != p[8]]
    ratios = [choice.token_ratio for choice in found]
    assert ratios == [None] * 8 + [0.75] * 6 + [0.5] * 4 + [0.25] * 14


def test_shifted_cosine_leaves_out_more_and_more():
    found = policies("shifted_cosine", space(*EVERYTHING))
    kept = [sum(1.0 if choice.token_ratio is None else choice.token_ratio for choice in policy) for policy in found]
    assert kept == sorted(kept, reverse=True)
    assert len(found) == 9


def test_fastv_has_its_layers_and_the_ratios_of_the_space():
    found = policies("fastv", space(*EVERYTHING))
    assert found == [FastV(layer=k, token_ratio=r).choices(32) for r in (0.75, 0.5, 0.25) for k in (3, 2)]


def test_block_influence_skips_what_changes_least_first():
    influence = [0.9, 0.1, 0.4, 0.2, 0.3]
    found = policies("block_influence", space(LAYER, FFN, layers=5), measured(block_influence=influence))
    assert [layers_of(policy) for policy in found] == [[1], [1, 3], [1, 3, 4], [1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert {choice for policy in found for choice in policy} == {KEEP, LAYER}


def test_sublayer_cosine_skips_attentions_ffns_and_both_in_one_order():
    statistics = measured(attention_cosine=[0.1, 0.9, 0.5], ffn_cosine=[0.7, 0.8, 0.2])
    found = policies("sublayer_cosine", space(ATTENTION, FFN, LAYER, layers=3), statistics)
    alone = [[KEEP, ATTENTION, KEEP], [KEEP, ATTENTION, ATTENTION], [ATTENTION] * 3]
    ffns = [[KEEP, FFN, KEEP], [FFN, FFN, KEEP], [FFN] * 3]
    joint = [
        [KEEP, LAYER, KEEP],
        [FFN, LAYER, KEEP],
        [FFN, LAYER, ATTENTION],
        [FFN, LAYER, LAYER],
        [LAYER, LAYER, LAYER],
    ]
    assert found == alone + ffns + joint


def test_a_sublayer_that_cannot_go_beside_the_other_is_passed_over():
    statistics = measured(attention_cosine=[0.9, 0.2], ffn_cosine=[0.8, 0.7])
    joint = policies("sublayer_cosine", space(ATTENTION, FFN, layers=2), statistics)[4:]
    assert joint == [[ATTENTION, FFN]]


def test_arank_places_ratios_where_gamma_mod_has_them():
    ranks = [300.0, 200.0, 120.0, *range(40, 68), 150.0]
    found = policies("arank", space(LayerChoice(token_ratio=0.5), LAYER), measured(attention_rank=ranks))
    assert len(found) == 32
    # Twenty-eight of 32 layers lie below a rank of 110.
    assert layers_of(found[27]) == [*range(3, 31)]
    assert {choice.token_ratio for choice in found[27]} == {None, 0.5}


def test_a_layer_without_a_rank_keeps_its_tokens():
    found = policies("arank", space(LayerChoice(token_ratio=0.5), layers=3), measured(attention_rank=[9.0, None, 3.0]))
    assert [layers_of(policy) for policy in found] == [[2], [0, 2]]


def test_shortv_freezes_image_tokens_where_the_answer_changes_least():
    # The 19 layers of 32 that ShortV's code freezes in LLaVA-1.5-7B, the first the least missed.
    published = [31, 29, 30, 28, 0, 26, 27, 25, 24, 22, 23, 21, 2, 3, 20, 18, 17, 12, 19]
    order = [*published, *(layer for layer in range(32) if layer not in published)]
    statistics = measured(frozen_divergence=[order.index(layer) / 10 for layer in range(32)])
    found = policies("shortv", space(*EVERYTHING), statistics)
    assert layers_of(found[18]) == sorted(published) and len(found) == 32
    assert {choice for policy in found for choice in policy} == {KEEP, CHOICES["freeze_image"]}


def random_space(seed):
    draw = random.Random(seed)
    scoped = [choice.model_copy(update={"phase": "decode"}) for choice in (ATTENTION, FFN, LAYER)]
    offered = draw.sample([*EVERYTHING, *scoped], 6)
    return [draw.sample(offered, draw.randint(1, 5)) for _ in range(draw.randint(1, 40))]


@pytest.mark.parametrize("name", [*BASELINES, "bandit"])
def test_every_rule_stays_within_the_space(name):
    for seed in range(30):
        domains, draw = random_space(seed), random.Random(seed)
        statistics = [LayerStatistics(*(draw.random() for _ in range(5))) for _ in domains]
        found = bandit(domains, lambda _: 0.1, updates=2) if name == "bandit" else policies(name, domains, statistics)
        for policy in found:
            assert len(policy) == len(domains)
            assert all(choice in domain for choice, domain in zip(policy, domains, strict=True))
        assert len({tuple(policy) for policy in found}) == len(found)


@pytest.mark.parametrize("name", BASELINES)
def test_without_what_a_rule_wants_there_is_nothing(name):
    unwanted = LAYER if name in ("arank", "shifted_cosine", "fastv") else LayerChoice(token_ratio=0.5)
    assert policies(name, space(), FLAT) == []
    if name not in ("uniform", "last"):
        assert policies(name, space(unwanted), FLAT) == []
    assert policies(name, [], []) == []


@pytest.mark.parametrize("name", BASELINES)
def test_says_whether_it_reads_statistics(name):
    baseline = BASELINES[name]
    assert "arXiv:" in baseline.source
    if baseline.needs_statistics:
        with pytest.raises(TypeError):
            baseline.policies(space(*EVERYTHING), None)
        assert baseline.policies(space(*EVERYTHING), FLAT)
    else:
        assert baseline.policies(space(*EVERYTHING), None)


def test_the_bandit_finds_the_attentions_that_are_missed_least():
    spare = {3, 7, 8, 12, 20, 21, 22, 25, 26, 28, 29, 30}
    calls = []

    def loss(policy):
        calls.append(policy)
        return sum(0.01 if index in spare else 0.2 for index in layers_of(policy))

    found = bandit(space(ATTENTION), loss, updates=40)
    assert [len(layers_of(policy)) for policy in found] == [*range(1, 13)]
    assert len(set(layers_of(found[-1])) & spare) >= 10
    assert len(calls) == 200
    assert all(len(layers_of(policy)) == 12 for policy in calls)
    assert bandit(space(ATTENTION), loss, updates=40) == found


def test_the_bandit_tries_every_subset_where_there_are_few():
    seen = {}

    def loss(policy):
        (arm,) = layers_of(policy)
        return seen.setdefault(arm, (1.0, 0.0, 2.0)[arm])

    assert layers_of(bandit(space(ATTENTION, layers=3), loss, updates=1)[0]) == [1]
    assert seen == {0: 1.0, 1: 0.0, 2: 2.0}


def test_the_bandit_ends_where_every_chance_is_at_its_limit():
    found = bandit(space(ATTENTION, layers=8), lambda policy: 5.0 * (policy[0] != KEEP), updates=30, step=1e3)
    assert 0 not in layers_of(found[-1])
