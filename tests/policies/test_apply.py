"""Putting a policy on a model, taking it off, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import accelerate
import pytest
import torch
import transformers as t
from torch import nn

from families import FAMILIES, LAYERS, batch_of, built, forget, run
from skipsearch import Policy, apply_policy
from skipsearch.policies.apply import applied_policy
from skipsearch.policies.errors import ModelError, PolicyError, PolicyMismatch
from skipsearch.policies.families.layers import decoder_layers

EVERYTHING = {0: {"ffn": "skip"}, 1: {"attention": "skip"}, 2: {"attention": "skip", "ffn": "skip"}}
TEXT_POLICY = Policy.model_validate({"layers": {**EVERYTHING, 3: {"wiring": "parallel"}}})
IMAGE_POLICY = Policy.model_validate({"layers": {**EVERYTHING, 3: {"token_ratio": 0.5}}})


def policy_for(name: str) -> Policy:
    policy = IMAGE_POLICY if FAMILIES[name].image_tokens else TEXT_POLICY
    # A layer that attends to the image can be skipped as a whole only.
    whole = dict.fromkeys(FAMILIES[name].cross, policy.layers[2])
    return policy.model_copy(update={"layers": {**policy.layers, **whole}})


def anatomy(model: nn.Module, lifted: bool = False) -> dict[str, Any]:
    """All that a patch could leave behind: attributes of every module, hooks among them, and the names of weights."""
    parts = {
        name: {
            key: (list(value) if isinstance(value, dict) else id(value))
            for key, value in vars(part).items()
            # The claim stays while a policy is lifted.
            if key != "_skipsearch_policy" or not lifted
        }
        for name, part in model.named_modules()
    }
    return {"parts": parts, "weights": list(model.state_dict())}


# Taking it off


@pytest.mark.parametrize("name", FAMILIES)
def test_removing_leaves_no_attribute_and_no_hook(name):
    model = built(name, "eager")
    inputs = batch_of(name).padded()
    run(model, inputs)
    forget(model)
    before = anatomy(model)
    with apply_policy(model, policy_for(name)):
        assert anatomy(model) != before
        assert anatomy(model)["weights"] == before["weights"]
        run(model, inputs)
    forget(model)
    assert anatomy(model) == before


def test_an_exception_in_the_block_removes_the_policy_too():
    model = built("llava", "sdpa")
    before = anatomy(model)
    with pytest.raises(ZeroDivisionError), apply_policy(model, IMAGE_POLICY):
        raise ZeroDivisionError
    assert anatomy(model) == before


def test_a_forward_that_fails_halfway_leaves_nothing_for_the_next():
    model, batch = built("llava", "sdpa"), batch_of("llava")
    with apply_policy(model, IMAGE_POLICY):
        expected = run(model, batch.padded()).logits
        stop = model.get_decoder().layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(model, batch.padded())
        stop.remove()
        with pytest.raises(ModelError, match="input ids"):
            model.get_decoder()(inputs_embeds=torch.zeros(*batch.padded()["input_ids"].shape, 32))
        assert torch.equal(run(model, batch.padded()).logits, expected)


def test_remove_is_harmless_when_repeated_and_leaves_a_later_policy_alone():
    model = built("llama", "sdpa")
    before = anatomy(model)
    first = apply_policy(model, TEXT_POLICY)
    first.remove()
    first.remove()
    second = apply_policy(model, TEXT_POLICY)
    first.remove()
    assert anatomy(model) != before
    second.remove()
    assert anatomy(model) == before


def test_dense_lifts_the_policy_for_a_while():
    model, inputs = built("llava", "sdpa"), batch_of("llava").padded()
    before, dense = anatomy(model), run(model, inputs).logits
    with apply_policy(model, IMAGE_POLICY) as handle:
        skipping = run(model, inputs).logits
        with handle.dense(), handle.dense():
            assert anatomy(model, lifted=True) == before
            assert torch.equal(run(model, inputs).logits, dense)
        assert torch.equal(run(model, inputs).logits, skipping)
        with handle.dense():
            handle.remove()
        assert anatomy(model) == before
    with handle.dense():
        assert torch.equal(run(model, inputs).logits, dense)
    assert anatomy(model) == before


def test_a_part_replaced_after_a_policy_is_used_by_the_next_policy():
    model, inputs = FAMILIES["llama"].build("sdpa"), batch_of("llama").padded()
    with apply_policy(model, TEXT_POLICY):
        before = run(model, inputs).logits
    model.model.layers[3].mlp = copy.deepcopy(model.model.layers[3].mlp)
    nn.init.zeros_(model.model.layers[3].mlp.down_proj.weight)
    with apply_policy(model, TEXT_POLICY):
        assert not torch.equal(run(model, inputs).logits, before)


def test_a_model_that_lost_a_layer_is_looked_at_anew():
    model, inputs = FAMILIES["llama"].build("sdpa"), batch_of("llama").padded()
    with apply_policy(model, TEXT_POLICY):
        run(model, inputs)
    model.model.layers = model.model.layers[:3]
    with pytest.raises(PolicyMismatch, match="layers 0 to 2"):
        apply_policy(model, TEXT_POLICY)


def test_applying_touches_neither_the_random_state_nor_the_training_mode():
    model = FAMILIES["llama"].build("sdpa").train()
    state = torch.get_rng_state()
    with apply_policy(model, TEXT_POLICY):
        assert all(part.training for part in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_copy_of_a_model_under_a_policy_runs_on_its_own_weights():
    model, inputs = FAMILIES["llama"].build("sdpa"), batch_of("llama").padded()
    with apply_policy(model, TEXT_POLICY):
        expected = run(model, inputs).logits
        twin = copy.deepcopy(model)
        assert torch.equal(run(twin, inputs).logits, expected)
        for weight in model.parameters():
            nn.init.zeros_(weight.data)
        assert torch.equal(run(twin, inputs).logits, expected)


@pytest.mark.parametrize(("name", "attention"), [("llama", "sdpa"), ("llava", "sdpa")])
def test_the_hidden_states_of_all_layers_can_be_asked_for(name, attention):
    model, inputs = built(name, attention), batch_of(name).padded()
    with apply_policy(model, policy_for(name)):
        states = run(model, inputs, output_hidden_states=True).hidden_states
    assert len(states) == LAYERS + 1
    assert torch.equal(states[2], states[3]), "layer 2 is skipped"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_models_are_proven_and_run(dtype):
    model = FAMILIES["llava"].build("sdpa").to(dtype)
    inputs = batch_of("llava").padded()
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    with apply_policy(model, IMAGE_POLICY):
        assert run(model, inputs).logits.isfinite().all()
        assert model.generate(**inputs, max_new_tokens=3).shape[1] == inputs["input_ids"].shape[1] + 3


# Compilers and device maps


def test_a_compiled_model_follows_the_policy_and_its_removal():
    model, inputs = FAMILIES["llama"].build("sdpa"), batch_of("llama").padded()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        dense = model(**inputs, use_cache=False).logits
        torch.testing.assert_close(compiled(**inputs, use_cache=False).logits, dense)
        with apply_policy(model, TEXT_POLICY):
            expected = model(**inputs, use_cache=False).logits
            torch.testing.assert_close(compiled(**inputs, use_cache=False).logits, expected)
        torch.testing.assert_close(compiled(**inputs, use_cache=False).logits, dense)
    assert not torch.equal(dense, expected)


def test_a_model_compiled_in_place_generates_under_a_policy():
    model, inputs = FAMILIES["llava"].build("sdpa"), batch_of("llava").padded()
    torch._dynamo.reset()
    with apply_policy(model, IMAGE_POLICY):
        expected = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        model.compile(backend="eager")
        assert torch.equal(model.generate(**inputs, max_new_tokens=2, do_sample=False), expected)


def dispatched(model: nn.Module) -> nn.Module:
    return accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)


def offloaded(model: nn.Module) -> nn.Module:
    return accelerate.cpu_offload(model, torch.device("cpu"))


def offloaded_by_layer(model: nn.Module) -> nn.Module:
    for layer in model.get_decoder().layers:
        accelerate.cpu_offload(layer, torch.device("cpu"))
    return model


@pytest.mark.parametrize("place", [dispatched, offloaded, offloaded_by_layer])
@pytest.mark.parametrize("name", ["llama", "opt", "neox", "llava"])
def test_device_map_hooks_survive(name, place):
    inputs = batch_of(name).padded()
    with apply_policy(built(name, "sdpa"), policy_for(name)):
        expected = run(built(name, "sdpa"), inputs).logits
    model = place(FAMILIES[name].build("sdpa"))
    dense, before = run(model, inputs).logits, anatomy(model)
    with apply_policy(model, policy_for(name)):
        assert torch.equal(run(model, inputs).logits, expected)
        assert model.generate(**inputs, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2
    assert anatomy(model) == before
    assert torch.equal(run(model, inputs).logits, dense)


def test_hooks_on_a_layer_still_run_under_a_policy():
    calls = []

    class Note(accelerate.hooks.ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            calls.append(module)
            return args, kwargs

    model, inputs = FAMILIES["llama"].build("sdpa"), batch_of("llama").padded()
    for layer in model.model.layers:
        accelerate.hooks.add_hook_to_module(layer, Note())
    with apply_policy(model, TEXT_POLICY):
        calls.clear()
        run(model, inputs)
    assert calls == list(model.model.layers)


# What is refused


def test_a_model_that_is_refused_is_left_as_it_was():
    sizes = {"hidden_size": 32, "num_hidden_layers": LAYERS, "vocab_size": 100}
    model = t.AutoModelForCausalLM.from_config(t.MambaConfig(**sizes)).eval()
    before = anatomy(model)
    for policy in (Policy(), TEXT_POLICY):
        with pytest.raises(ModelError, match="MambaForCausalLM"):
            apply_policy(model, policy)
    assert anatomy(model) == before


REFUSED = [
    ("qwen3-next", "linear", {"attention": "skip", "phase": "prefill"}, "no state for the others"),
    ("qwen3-next", "linear", {"attention": "skip", "ffn": "skip", "phase": "decode"}, "no state for the others"),
    ("mllama", "cross", {"ffn": "skip", "phase": "decode"}, "both phases"),
    ("mllama", "cross", {"attention": "skip"}, "a decode step leaves the layer out"),
]


@pytest.mark.parametrize(("name", "kind", "choice", "reason"), REFUSED)
def test_what_a_layer_of_another_kind_cannot_do_is_refused_by_its_name(name, kind, choice, reason):
    model = built(name, "sdpa")
    layer = getattr(FAMILIES[name], kind)[0]
    with pytest.raises(
        PolicyMismatch, match=rf"layer {layer}, a {type(decoder_layers(model)[layer].module).__name__}"
    ) as error:
        apply_policy(model, Policy.model_validate({"layers": {layer: choice}}))
    assert reason in str(error.value)
    assert applied_policy(model) is None


def test_a_policy_for_another_number_of_layers_is_refused():
    model = built("llama", "sdpa")
    for wrong in ({"model": {"num_layers": 5}}, {"layers": {4: {"ffn": "skip"}}}):
        with pytest.raises(PolicyMismatch, match="LlamaForCausalLM"):
            apply_policy(model, Policy.model_validate(wrong))
    assert applied_policy(model) is None


def test_a_token_ratio_on_a_text_model_is_refused():
    with pytest.raises(PolicyMismatch, match="has no image tokens"):
        apply_policy(built("llama", "sdpa"), IMAGE_POLICY)


def test_a_second_policy_is_refused_and_the_first_stays():
    model, inputs = built("llama", "sdpa"), batch_of("llama").padded()
    with apply_policy(model, TEXT_POLICY):
        first = run(model, inputs).logits
        with pytest.raises(PolicyError, match="already"):
            apply_policy(model, Policy())
        assert torch.equal(run(model, inputs).logits, first)


def test_a_token_ratio_needs_the_input_ids():
    model, inputs = built("llava", "sdpa"), batch_of("llava").padded()
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach()
    with apply_policy(model, IMAGE_POLICY):
        with pytest.raises(ModelError, match="needs the input ids"):
            model(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"])
        states = model.model(**inputs).last_hidden_state
        assert torch.equal(model.lm_head(states), model(**inputs).logits), "entered past its head"
    with apply_policy(model, Policy.model_validate({"layers": {1: {"ffn": "skip"}}})):
        model(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"])
