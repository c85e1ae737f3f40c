"""Forwards that begin with hidden states of an earlier policy give what they would have given without."""

from __future__ import annotations

import random

import pytest
import torch
from contract import CHOICES, HALF, policy_of
from support import taken

from families import FAMILIES, LAYERS, batch_of, built, run
from skipsearch import Policy, apply_policy
from skipsearch.policies.runtime.prefix import PrefixStates

MUCH = 2**30


def walk(name: str, seed: int, count: int) -> list[Policy]:
    """Random policies, each like the one before up to some layer."""
    draw = random.Random(seed)
    cross = FAMILIES[name].cross
    labels = ["skip_ffn", "skip_layer", "parallel", *([] if cross else ["skip_attention"])]
    choices = [{}, *(CHOICES[label][0] for label in [*labels, "pair"])]
    if FAMILIES[name].image_tokens and not cross:
        choices += [HALF, {"token_ratio": 0.25, "ffn": "skip"}]
    reselect = draw.choice(["each_layer", "once"])
    layers, found = [draw.choice(choices) for _ in range(LAYERS)], []
    for _ in range(count):
        start = draw.randrange(LAYERS)
        layers = [*layers[:start], *(draw.choice(choices) for _ in range(LAYERS - start))]
        found.append(policy_of(taken(name, dict(enumerate(layers))), "attention", reselect))
    return found


def logits(model, policy, inputs, states=None, batch="batch"):
    with apply_policy(model, policy) as handle:
        if states is None:
            return run(model, inputs, use_cache=False).logits
        with states.reused(handle, batch):
            return run(model, inputs, use_cache=False).logits


@pytest.mark.parametrize("name", FAMILIES)
def test_a_forward_from_kept_states_is_the_whole_one_bit_for_bit(name):
    model, inputs, states = built(name, "eager"), batch_of(name).padded(), PrefixStates(MUCH)
    for policy in walk(name, seed=len(name), count=6):
        assert torch.equal(logits(model, policy, inputs, states), logits(model, policy, inputs))
    assert states.run < states.asked <= 6 * LAYERS


def test_layers_are_run_once_for_each_beginning():
    model, inputs, states = built("llama", "sdpa"), batch_of("llama").padded(), PrefixStates(MUCH)
    logits(model, Policy(), inputs)
    calls = []
    hooks = [
        layer.mlp.register_forward_hook(lambda *_, n=n: calls.append(n)) for n, layer in enumerate(model.model.layers)
    ]
    skip = {"attention": "skip"}
    for layers, expected in (
        ({}, [0, 1, 2, 3]),
        ({3: skip}, [3]),
        ({2: skip}, [2, 3]),
        ({2: skip, 3: skip}, [3]),
        ({}, []),
    ):
        calls.clear()
        logits(model, policy_of(layers), inputs, states)
        assert calls == expected
    for hook in hooks:
        hook.remove()
    assert (states.run, states.asked) == (8, 20)


def test_another_batch_and_another_end_of_the_prompt_begin_anew():
    model, states = built("llava", "sdpa"), PrefixStates(MUCH)
    policy = policy_of({1: HALF, 2: {"ffn": "skip", "phase": "decode"}})
    for seed in (0, 1):
        inputs = batch_of("llava", seed=seed).padded()
        assert torch.equal(logits(model, policy, inputs, states, seed), logits(model, policy, inputs))
    assert states.run == states.asked


def test_no_more_is_kept_than_allowed_and_dense_is_kept_best():
    model, inputs = built("llama", "sdpa"), batch_of("llama").padded()
    one = inputs["input_ids"].numel() * model.config.hidden_size * 4
    policies = [Policy(), *(policy_of({layer: {"ffn": "skip"}}) for layer in (3, 2, 3, 2, 1))]
    states = PrefixStates(max_bytes=one)
    for policy in policies:
        assert torch.equal(logits(model, policy, inputs, states), logits(model, policy, inputs))
    # The last layer of dense, then what all of the next ones begin with.
    assert states.run < states.asked == 6 * LAYERS
    assert states._store._bytes == one


def test_without_room_every_layer_is_computed():
    model, inputs, nothing = built("llama", "sdpa"), batch_of("llama").padded(), PrefixStates(max_bytes=0)
    for _ in range(2):
        assert torch.equal(logits(model, Policy(), inputs, nothing), logits(model, Policy(), inputs))
    assert nothing.run == nothing.asked == 2 * LAYERS


def test_a_layer_that_is_skipped_is_not_counted():
    model, inputs, states = built("llama", "sdpa"), batch_of("llama").padded(), PrefixStates(MUCH)
    skip = {"attention": "skip", "ffn": "skip"}
    logits(model, policy_of({1: skip, 2: {"ffn": "skip"}}), inputs, states)
    assert states.run == states.asked == LAYERS - 1
    logits(model, policy_of({1: skip}), inputs, states)
    assert (states.run, states.asked) == (LAYERS - 1 + 2, 2 * (LAYERS - 1))


def test_what_is_forgotten_is_computed_again():
    model, inputs, states = built("llama", "sdpa"), batch_of("llama").padded(), PrefixStates(MUCH)
    logits(model, Policy(), inputs, states)
    states.forget()
    logits(model, Policy(), inputs, states)
    assert states.run == 2 * LAYERS


def test_dense_forwards_of_a_lifted_policy_leave_states_for_others():
    model, inputs, states = built("llava", "sdpa"), batch_of("llava").padded(), PrefixStates(MUCH)
    policy = policy_of({0: {"ffn": "skip"}, 2: HALF})
    with apply_policy(model, policy) as handle, handle.dense(), states.reused(handle, "batch"):
        lifted = run(model, inputs, use_cache=False).logits
    assert torch.equal(lifted, logits(model, Policy(), inputs, states))
    assert (states.run, states.asked) == (LAYERS, 2 * LAYERS)


def test_a_model_is_left_as_it_was_when_a_forward_fails():
    model, states = built("llama", "sdpa"), PrefixStates(MUCH)
    with apply_policy(model, Policy()) as handle:
        with pytest.raises(ZeroDivisionError), states.reused(handle, "batch"):
            raise ZeroDivisionError
        assert all("forward" not in vars(layer) for layer in model.model.layers)
