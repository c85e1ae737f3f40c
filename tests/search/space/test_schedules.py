"""Schedules against the lists that their papers and codes give, and as keys of a policy."""

from __future__ import annotations

import pytest
from policy_files import HEAD, complaint, load
from pydantic import ValidationError

from skipsearch import LayerChoice, Policy
from skipsearch.policies.choice import CHOICES, KEEP
from skipsearch.policies.schedules import Schedule

P_MOD = {"ratio": 0.5, "max": 0.85, "min": 0.15}
# Of the 32 layers of p-MoD as shipped: the shares of layers 8 to 23, and what they keep of 576 image tokens.
SHARES = [0.8445, 0.8061, 0.7645, 0.7202, 0.6737, 0.6253, 0.5757, 0.5253,
          0.4747, 0.4243, 0.3747, 0.3263, 0.2798, 0.2355, 0.1939, 0.1555]  # fmt: skip
KEPT = [486, 464, 440, 414, 388, 360, 331, 302, 273, 244, 215, 187, 161, 135, 111, 89] + [86] * 8


def choices(num_layers, **generator):
    return Schedule.model_validate(generator).choices(num_layers)


def ratios(num_layers, **generator):
    return [choice.token_ratio for choice in choices(num_layers, **generator)]


def changed(num_layers, **interval):
    found = choices(num_layers, interval={"choice": "skip_layer", **interval})
    return [index for index, choice in enumerate(found) if choice == CHOICES["skip_layer"]]


def test_the_shifted_cosine_is_p_mods_published_list():
    found = ratios(32, shifted_cosine=P_MOD)
    assert found[:8] == [None] * 8
    assert found[8:24] == pytest.approx(SHARES, abs=5e-5)
    assert found[24:] == [0.15] * 8
    assert [int(576 * ratio) for ratio in found[8:]] == KEPT


def test_the_linear_decay_is_a_line_cut_at_both_ends():
    assert ratios(11, linear={"ratio": 0.5, "max": 0.75, "min": 0.35}) == [
        None, None, None, 0.7, 0.6, 0.5, 0.4, 0.35, 0.35, 0.35, 0.35,
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["shifted_cosine", "linear"])
@pytest.mark.parametrize("num_layers", [1, 2, 7, 80])
def test_a_decay_never_rises_and_stays_within_its_bounds(kind, num_layers):
    shares = [1.0 if ratio is None else ratio for ratio in ratios(num_layers, **{kind: P_MOD})]
    assert shares == sorted(shares, reverse=True)
    assert all(share == 1 or 0.15 <= share <= 0.85 for share in shares)


def test_fastv_is_one_ratio_from_its_layer_on():
    assert ratios(5, fastv={"layer": 2, "token_ratio": 0.25}) == [None, None, 0.25, 0.25, 0.25]
    assert choices(5, fastv={"layer": 9, "token_ratio": 0.25}) == [KEEP] * 5


def test_fastv_with_reselect_once_is_one_event():
    policy = Policy.model_validate(
        {
            "model": {"num_layers": 5},
            "schedule": {"fastv": {"layer": 2, "token_ratio": 0.25}},
            "token_selection": {"reselect": "once"},
        }
    )
    assert policy.canonical().layers == {2: LayerChoice(token_ratio=0.25)}


def event(policy):
    """What remains of a policy whose tokens never come back: the layers at which tokens leave, and the shares."""
    return {index: choice.token_ratio for index, choice in policy.canonical().layers.items()}


def test_pyramid_drop_is_the_list_of_its_code():
    """Its README: `--layer_list [8,16,24]`, `--image_token_ratio_list [1.0,0.5,0.25,0.125]` for LLaVA-1.5-7B."""
    assert ratios(32, pyramid_drop={}) == [None] * 8 + [0.5] * 8 + [0.25] * 8 + [0.125] * 8
    policy = Policy.model_validate({"model": {"num_layers": 32}, "schedule": {"pyramid_drop": {}}})
    assert policy.token_selection.score == "attention" and policy.token_selection.reselect == "once"
    assert event(policy) == {8: 0.5, 16: 0.25, 24: 0.125}
    assert ratios(7, pyramid_drop={"stages": 3, "token_ratio": 0.1}) == [None] * 2 + [0.1] * 2 + [0.01] * 3
    assert ratios(2, pyramid_drop={}) == [None, 0.5], "more stages than layers: one layer each"


@pytest.mark.parametrize("layer", [15, 16])
def test_vtw_withdraws_all_image_tokens_at_its_layer(layer):
    """Its code takes 15 for K by default (`temp_cache.k`), ShortV's table (arXiv:2504.00502) has K = 16."""
    policy = Policy.model_validate({"model": {"num_layers": 32}, "schedule": {"vtw": {"layer": layer}}})
    assert ratios(32, vtw={"layer": layer}) == [None] * layer + [0.0] * (32 - layer)
    assert policy.token_selection.reselect == "once" and event(policy) == {layer: 0.0}
    assert choices(4, vtw={"layer": 9}) == [KEEP] * 4


def test_divprune_is_one_diverse_choice_before_the_first_layer():
    """DivPrune's table: 9.8 % of the tokens, 56 of LLaVA-1.5's 576, leave before the language model."""
    policy = Policy.model_validate({"model": {"num_layers": 32}, "schedule": {"divprune": {"token_ratio": 0.098}}})
    assert policy.token_selection.score == "diverse" and policy.token_selection.reselect == "once"
    assert event(policy) == {0: 0.098} and int(576 * 0.098) == 56


def test_skip_vision_feeds_a_share_and_evicts_the_rest_in_every_layer():
    """Skip-Vision (arXiv:2503.21817): redundant tokens keep queries, keys and values, skip the FFN, leave the cache."""
    fed_share = 1 - 1022 / 1296  # the code has 1,296 image tokens, of which 1,022 skip the FFN
    policy = Policy.model_validate(
        {"model": {"num_layers": 32}, "schedule": {"skip_vision": {"token_ratio": fed_share}}}
    )
    layer = LayerChoice(token_ratio=fed_share, rest="attention", evict=True)
    assert policy.token_selection.score == "uniform" and policy.canonical().layers == dict.fromkeys(range(32), layer)
    assert int(1296 * fed_share) == 1296 - 1022


@pytest.mark.parametrize(
    ("interval", "start", "selected"),
    [
        (2, 0, [*range(2, 31, 2)]),
        (2, 4, [*range(6, 31, 2)]),
        (2, 10, [*range(12, 31, 2)]),
        (4, 0, [4, 8, 12, 16, 20, 24, 28]),
        (4, 4, [8, 12, 16, 20, 24, 28]),
        (8, 0, [8, 16, 24]),
        ([2, 4, 8, 2], 0, [2, 4, 6, 8, 12, 16, 24, 26, 28, 30]),
        (60, 0, []),
    ],
)
def test_the_interval_selects_the_layers_of_ima_lmms(interval, start, selected):
    assert changed(32, interval=interval, start=start) == selected
    assert changed(32, interval=interval, start=start, end=31) == selected


def test_both_ends_of_an_interval_are_outside_and_layer_0_is_never_selected():
    assert changed(8, interval=1) == [1, 2, 3, 4, 5, 6]
    assert changed(8, interval=1, start=2, end=5) == [3, 4]
    assert changed(8, interval=1, end=99) == [1, 2, 3, 4, 5, 6, 7]


def test_parts_that_do_not_divide_the_depth_leave_the_rest_to_the_last():
    assert changed(8, interval=[8, 8, 1]) == [4, 5, 6]
    assert changed(2, interval=[1, 2, 3], end=2) == [], "more parts than layers: one layer each"


def test_an_interval_has_a_scope_and_a_norm():
    found = choices(
        4, interval={"interval": 2, "choice": "parallel", "norm": "shared", "phase": "decode", "tokens": "text"}
    )
    assert found[2] == LayerChoice(wiring="parallel", norm="shared", phase="decode", tokens="text")


def test_a_policy_holds_what_its_schedule_gives_and_no_schedule():
    interval = {"interval": {"interval": 2, "choice": "skip_ffn"}}
    made = [
        Policy.model_validate({"model": {"num_layers": 6}, "schedule": interval}),
        Policy(model={"num_layers": 6}, schedule=interval),
    ]
    spelled = Policy.model_validate({"model": {"num_layers": 6}, "layers": {2: {"ffn": "skip"}, 4: {"ffn": "skip"}}})
    for policy in made:
        assert policy == spelled and policy.fingerprint == spelled.fingerprint
        assert policy.schedule is None and "schedule" not in policy.model_dump() and "schedule" not in repr(policy)


def test_layers_go_over_the_schedule(tmp_path):
    text = "model: {num_layers: 6}\nschedule: {fastv: {layer: 2, token_ratio: 0.5}}\nlayers: {3: {}, 4: {ffn: skip}}\n"
    labels = [choice.label for choice in load(tmp_path, HEAD + text).choices(6)]
    assert labels == ["keep", "keep", "token_ratio 0.5", "keep", "skip_ffn", "token_ratio 0.5"]


def test_a_saved_file_has_the_layers_and_gives_the_same_policy(tmp_path):
    policy = load(
        tmp_path, f"{HEAD}model: {{num_layers: 32}}\nschedule: {{shifted_cosine: {P_MOD}}}\n".replace("'", "")
    )
    policy.save(tmp_path / "saved.yaml")
    text = (tmp_path / "saved.yaml").read_text()
    assert "schedule" not in text and "  8: {token_ratio: 0.844483}\n" in text
    again = Policy.load(tmp_path / "saved.yaml")
    assert again == policy and again.fingerprint == policy.fingerprint


def test_a_schedule_needs_the_number_of_layers(tmp_path):
    told = complaint(tmp_path, HEAD + "model: {id: m}\nschedule: {fastv: {layer: 2, token_ratio: 0.5}}\n")
    assert "policy.yaml:3:1  schedule: found no number of layers" in told and "`model: {num_layers: 32}`" in told
    with pytest.raises(ValidationError, match="num_layers: 32"):
        Policy.model_validate({"schedule": {"fastv": {"layer": 2, "token_ratio": 0.5}}})
