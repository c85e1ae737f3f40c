"""Tokens that do not take part in an attention in full: what their twins compute, and what stays dense."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from contract import FREEZE_IMAGE, HALF, SKIP_VISION, check, close, policy_of
from reference import reference
from torch import nn

from families import FAMILIES, LAYERS, Batch, batch_of, built, run
from skipsearch import Policy, apply_policy
from skipsearch.policies.families.layers import decoder_layers

ROLES: dict[int, dict[str, Any]] = {
    0: FREEZE_IMAGE,
    1: {"attention": "queries_only", "tokens": "image"},
    2: {**HALF, "rest": "keys_only"},
    3: {**SKIP_VISION, "phase": "both"},
}
NAMES = ("llava", "qwen2.5-vl", "gemma3-images", "phi4-multimodal")


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_without_images_is_dense_bit_for_bit(name):
    model, inputs = built(name, "sdpa"), Batch.of(FAMILIES[name], [(9,), (5,)]).padded()
    dense = run(model, inputs).logits
    with apply_policy(model, policy_of(ROLES)):
        assert torch.equal(run(model, inputs).logits, dense)


@pytest.mark.parametrize("choice", [*ROLES.values(), {**HALF, "phase": "decode"}], ids=str)
def test_a_ratio_of_one_is_dense_bit_for_bit(choice):
    model, inputs = built("llava", "sdpa"), batch_of("llava").padded()
    whole = {**choice, "token_ratio": 1.0} if "token_ratio" in choice else {**choice, "attention": "run", "ffn": "run"}
    with apply_policy(model, policy_of(dict.fromkeys(range(LAYERS), whole))):
        found = run(model, inputs).logits
    assert torch.equal(found, run(model, inputs).logits)


def test_a_prompt_under_an_eviction_is_dense_and_the_answer_is_not():
    model, inputs = built("llava", "sdpa"), Batch.of(FAMILIES["llava"], [(3, "image", 4)]).padded()
    dense = run(model, inputs).logits
    with apply_policy(model, policy_of(dict.fromkeys(range(LAYERS), {"token_ratio": 0.0, "phase": "decode"}))):
        out = run(model, inputs)
        cache = out.past_key_values
        assert {layer.keys.shape[-2] for layer in cache.layers} == {7}
        assert cache.get_seq_length() == 16
        step = model(input_ids=torch.tensor([[5]]), past_key_values=cache, attention_mask=torch.ones(1, 17).long())
    close(out.logits, dense)
    whole = run(model, inputs)
    more = model(
        input_ids=torch.tensor([[5]]), past_key_values=whole.past_key_values, attention_mask=torch.ones(1, 17).long()
    )
    assert not torch.allclose(step.logits, more.logits, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_rounding_in_bfloat16_is_that_of_the_dense_model(name):
    """The error against float32 formulas of the same weights is at most three times that of the dense model."""
    model = FAMILIES[name].build("sdpa").to(torch.bfloat16)
    exact, batch = copy.deepcopy(model).float(), Batch.of(FAMILIES[name], [(3, "image", 5)])
    # Scores that read hidden states may rank equal tokens otherwise in another dtype.
    errors = []
    for policy in (Policy(), policy_of(ROLES, "uniform")):
        expected = reference(exact, FAMILIES[name], policy, batch.alone(0), len(batch.ids[0]))
        inputs = {key: rounded(value) for key, value in batch.padded().items()}
        with apply_policy(model, policy):
            found = run(model, inputs).logits[0].float()
        errors.append(float((found - expected).norm() / expected.norm()))
    assert 0 < errors[1] < 3 * errors[0]


def rounded(value: torch.Tensor) -> torch.Tensor:
    return value.to(torch.bfloat16) if value.is_floating_point() else value


def test_a_part_that_is_replaced_later_is_used():
    model, batch = FAMILIES["llava"].build("sdpa"), batch_of("llava")
    policy = policy_of({0: FREEZE_IMAGE, 1: {"attention": "queries_only", "tokens": "image"}})
    with apply_policy(model, policy) as handle:
        run(model, batch.padded())
        for layer in model.get_decoder().layers[:2]:
            old = layer.self_attn.k_proj
            layer.self_attn.k_proj = nn.Linear(old.in_features, old.out_features, bias=False)
        found = run(model, batch.padded("right")).logits
        with handle.dense():
            for row, ids in enumerate(batch.ids):
                expected = reference(model, FAMILIES["llava"], policy, batch.alone(row), len(ids))
                close(batch.real(found, row, "right"), expected)


def test_the_parts_that_make_queries_are_found_or_run_for_all():
    """Fused projections with mixed rows make queries too, which then are computed and counted."""
    with torch.no_grad():
        parts = {name: decoder_layers(built(name, "eager"))[0].twins.query_parts for name in FAMILIES}
    assert {name for name, found in parts.items() if not found} == {
        "neox", "neox-sequential", "falcon", "falcon-sequential", "falcon-new", "gpt2",
    }  # fmt: skip
    assert parts["phi4-multimodal"] == ("qkv_proj",) and parts["deepseek-v3"] == ("q_a_proj", "q_b_proj")


@pytest.mark.parametrize("name", ["llava", "llava-mistral"])
def test_the_last_prompt_token_that_asks_ranks_images_at_the_end_of_a_prompt(name):
    batch = Batch.of(FAMILIES[name], [(4, "image"), ("image", 2, "image"), (9,)])
    layers = {
        0: FREEZE_IMAGE,
        1: {**HALF, "rest": "keys_only"},
        2: {**HALF, "attention": "keys_only", "tokens": "image"},
    }
    check(built(name, "sdpa"), batch, policy_of(layers | {3: HALF}))


def test_several_images_of_a_row_leave_the_cache_together():
    batch = Batch.of(FAMILIES["llava"], [(2, "image", 3, "image", 2), ("image", 1, "image", "image", 4), (7,)])
    check(built("llava", "sdpa"), batch, policy_of({0: {**HALF, "phase": "decode"}, 2: SKIP_VISION}))
