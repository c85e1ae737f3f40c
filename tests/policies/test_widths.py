"""Shares of channels and heads: nothing is lost or in memory twice, and what cannot be done is refused by name."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from typing import Any

import pytest
import torch
from contract import check, close, policy_of
from slow_widths import dropped_channels
from torch import nn

from families import FAMILIES, batch_of, layer_list, run
from skipsearch import Policy, applied_policy, apply_policy, draft
from skipsearch.policies.choice import WidthSelection
from skipsearch.policies.errors import ModelError, PolicyError, PolicyMismatch

HALVES = policy_of({1: {"ffn_ratio": 0.5}, 2: {"ffn_ratio": 0.25, "phase": "prefill"}})
# Gates and values apart, in one, two layers with biases, with transposed weights, without a module of their own, and a
# mixture with a shared expert.
BUILDS = ("llama", "phi3", "starcoder2", "gpt2", "opt", "qwen2-moe")
HEADS = policy_of({0: {"head_ratio": 0.5}, 2: {"head_ratio": 0.5, "ffn_ratio": 0.5}})
# Queries, keys and values apart, in one by kind, with transposed weights, by head, by group, beside one head of keys,
# latent, and with gates.
HEAD_BUILDS = ("starcoder2", "phi3", "gpt2", "neox", "falcon-new", "falcon", "minicpm3", "qwen3-next")
CASES = [*((name, HALVES) for name in BUILDS), *((name, HEADS) for name in HEAD_BUILDS)]


def fresh(name: str = "llama") -> Any:
    return FAMILIES[name].build("sdpa")


def logits(model: Any, name: str = "llama") -> torch.Tensor:
    return run(model, batch_of(name).padded()).logits


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(weight, other[name]) for name, weight in one.items())


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_the_weights_stay_in_their_memory_and_come_back_to_the_last_bit(name, policy):
    model = fresh(name)
    before, places = weights(model), {name: weight.data_ptr() for name, weight in model.named_parameters()}
    with apply_policy(model, policy) as handle:
        assert not equal(before, weights(model))
        assert places == {name: weight.data_ptr() for name, weight in model.named_parameters()}
        with handle.dense():
            assert equal(before, weights(model))
    assert equal(before, weights(model))
    with apply_policy(model, policy.model_copy(update={"width_selection": WidthSelection(ranking="first")})):
        assert equal(before, weights(model))


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_what_is_saved_and_loaded_under_a_policy_has_its_own_order(name, policy):
    model, other = fresh(name), fresh(name)
    saved = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for weight in other.parameters():
        weight.data += 1.0
    with apply_policy(model, policy), apply_policy(other, policy):
        assert equal(model.state_dict(), saved)
        other.load_state_dict(saved)
    assert equal(other.state_dict(), saved)
    assert equal(weights(other), weights(model))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), "torch"])
@pytest.mark.parametrize(
    "policy", [HALVES, policy_of({1: {"head_ratio": 0.5}, 2: {"head_ratio": 0.5, "phase": "prefill"}})]
)
def test_a_copy_runs_under_the_policy_and_can_be_restored(again, policy):
    model = fresh()
    before = weights(model)
    with apply_policy(model, policy) as handle:
        wanted = logits(model)
        if again == "torch":
            torch.save(model, file := io.BytesIO())
            file.seek(0)
            other = torch.load(file, weights_only=False)
        else:
            other = again(model)
        assert torch.equal(logits(other), wanted)
        with handle.dense():
            assert torch.equal(logits(other), wanted)
    applied_policy(other).remove()
    assert equal(before, weights(other))


def test_a_model_may_move_and_be_trained_under_the_policy():
    model = fresh()
    with apply_policy(model, policy_of({1: {"ffn_ratio": 0.25}}, ranking="first")):
        model(**batch_of("llama").padded()).logits.square().mean().backward()
        kept = set(range(48)) - {*dropped_channels(layer_list(model)[1], 0.25, "first")[0]}
        for name, linear in layer_list(model)[1].mlp.named_children():
            if name == "act_fn":
                continue
            by_channel = linear.weight.grad.norm(dim=0 if name == "down_proj" else 1)
            assert {*by_channel.nonzero()[:, 0].tolist()} == kept
    before = {name: weight.bfloat16() for name, weight in weights(model).items()}
    with apply_policy(model, HALVES):
        wanted = logits(model)
        model.bfloat16()
        close(logits(model).float(), wanted, 0.1)
    assert equal(before, weights(model))


def refusal(model: Any, policy: Policy = HALVES) -> str:
    before = weights(model)
    with pytest.raises(PolicyMismatch) as error, apply_policy(model, policy):
        pass
    assert equal(before, weights(model))
    return str(error.value)


def test_weights_that_cannot_be_put_in_order_are_refused_by_name():
    quantised = torch.ao.quantization.quantize_dynamic(fresh(), {nn.Linear}, torch.qint8)
    assert "no plain linear layers: down_proj (Linear), gate_proj (Linear), up_proj (Linear)" in refusal(quantised)
    tied = fresh()
    layer_list(tied)[3].mlp.up_proj.weight = layer_list(tied)[1].mlp.up_proj.weight
    assert "another part of the model has its up_proj.weight too" in refusal(tied)
    with torch.inference_mode():
        frozen = fresh()
    assert "made in inference mode" in refusal(frozen)
    # Without another order, all of them can.
    for model in (tied, frozen):
        with apply_policy(model, policy_of({1: {"ffn_ratio": 0.5}}, ranking="first")):
            assert logits(model).isfinite().all()
    shared = fresh().share_memory()
    assert "memory that processes share" in refusal(shared)
    offloaded = fresh()
    layer_list(offloaded)[1].mlp.to("meta")
    with pytest.raises(ModelError):
        apply_policy(offloaded, HALVES)
    strange = fresh()
    layer_list(strange)[1].mlp.act_fn = nn.Softmax(dim=-1)
    assert "is not the sum of its channels" in refusal(strange)
    added = fresh()
    layer_list(added)[1].mlp.norm = nn.LayerNorm(32)
    assert "no plain linear layers: norm (LayerNorm)" in refusal(added)


def test_an_adapter_that_is_no_plain_lora_is_refused_and_one_is_found_after_a_policy_is_applied():
    import peft

    adapter = peft.LoraConfig(r=2, target_modules=["down_proj"], use_dora=True)
    assert "down_proj" in refusal(peft.get_peft_model(fresh(), adapter))
    model = fresh()
    before, handle = weights(model), apply_policy(model, HALVES)
    layer_list(model)[1].mlp.down_proj, own = nn.Linear(48, 32), layer_list(model)[1].mlp.down_proj
    for act in (lambda: logits(model), handle.remove):
        with pytest.raises(ModelError, match="linear layers were replaced"):
            act()
    layer_list(model)[1].mlp.down_proj = own
    handle.remove()
    assert equal(before, weights(model))


def test_two_models_over_the_same_weights_cannot_both_order_them():
    model = fresh()
    first = policy_of({1: {"ffn_ratio": 0.5}}, ranking="first")
    before, dense = weights(model), logits(model)
    with pytest.raises(PolicyError, match="a draft cannot change the order of channels"):
        draft(model, HALVES)
    guesser = draft(model, first)
    assert torch.equal(logits(model), dense)
    with pytest.raises(PolicyError, match="another policy runs a share of the channels of the same weights"):
        apply_policy(model, HALVES)
    with apply_policy(model, first):
        assert not torch.equal(logits(model), dense)
    assert equal(before, weights(model))
    applied_policy(guesser).remove()
    with apply_policy(model, HALVES), pytest.raises(PolicyError, match="another policy runs a share"):
        draft(model, first)
    assert equal(before, weights(model))


def test_a_draft_that_was_dropped_with_its_policy_stands_in_no_way():
    model = fresh()
    dropped = weakref.ref(draft(model, policy_of({1: {"ffn_ratio": 0.5}}, ranking="first")))
    gc.collect()
    assert dropped() is None
    kept = draft(model, policy_of({1: {"ffn_ratio": 0.5}}, ranking="first"))
    with pytest.raises(PolicyError, match="the same weights"):
        apply_policy(model, policy_of({1: {"ffn_ratio": 0.5}}))
    del kept
    with apply_policy(model, policy_of({1: {"ffn_ratio": 0.5}})):
        pass


def test_an_expert_may_end_up_without_channels():
    model, batch = fresh("qwen3-moe"), batch_of("qwen3-moe")
    dropped = dropped_channels(layer_list(model)[2], 0.1, "weights")
    assert any(len(channels) == 16 for channels in dropped) and not all(len(channels) == 16 for channels in dropped)
    check(model, batch, policy_of({2: {"ffn_ratio": 0.1}}))


def test_the_experts_of_another_build_are_refused_by_name():
    assert "a part of another build: experts (GptOssExperts)" in refusal(FAMILIES["gpt-oss"].build("eager"))
    strange = fresh("mixtral")
    layer_list(strange)[1].mlp.experts.act_fn = nn.Softmax(dim=-1)
    assert "is not the sum of its channels" in refusal(strange)
