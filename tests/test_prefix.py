"""Forwards that begin with hidden states of an earlier policy give what they would have given without."""

from __future__ import annotations

import random

import pytest
import torch
from contract import CHOICES, HALF, policy_of

from families import FAMILIES, LAYERS, batch_of, built, run
from skipsearch import Policy, apply_policy
from skipsearch.policies.prefix import PrefixStates

MUCH = 2**30


def walk(name: str, seed: int, count: int) -> list[Policy]:
    """Random policies, each like the one before up to some layer."""
    draw = random.Random(seed)
    choices = [{}, *(CHOICES[label][0] for label in ("skip_ffn", "skip_attention", "skip_layer", "parallel"))]
    if FAMILIES[name].image_tokens:
        choices += [HALF, {"token_ratio": 0.25, "ffn": "skip"}]
    reselect = draw.choice(["each_layer", "once"])
    layers, found = [draw.choice(choices) for _ in range(LAYERS)], []
    for _ in range(count):
        start = draw.randrange(LAYERS)
        layers = [*layers[:start], *(draw.choice(choices) for _ in range(LAYERS - start))]
        found.append(policy_of(dict(enumerate(layers)), "attention", reselect))
    return found


def logits(model, policy, inputs, states=None, batch="batch"):
    with apply_policy(model, policy) as handle:
        if states is None:
            return run(model, inputs, use_cache=False).logits
        with states.reused(handle, batch):
            return run(model, inputs, use_cache=False).logits


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.cross])
def test_a_forward_from_kept_states_is_the_whole_one_bit_for_bit(name):
    model, inputs, states = built(name, "eager"), batch_of(name).padded(), PrefixStates(MUCH)
    for policy in walk(name, seed=len(name), count=6):
        assert torch.equal(logits(model, policy, inputs, states), logits(model, policy, inputs))
    assert states.run < states.asked == 6 * LAYERS


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


def test_the_oldest_states_go_first_and_no_more_is_kept_than_allowed():
    model, inputs = built("llama", "sdpa"), batch_of("llama").padded()
    one = inputs["input_ids"].numel() * model.config.hidden_size * 4
    states = PrefixStates(max_bytes=LAYERS * one)
    for batch in ("first", "second"):
        logits(model, Policy(), inputs, states, batch)
    assert states.run == 2 * LAYERS
    logits(model, Policy(), inputs, states, "second")
    assert states.run == 2 * LAYERS
    logits(model, Policy(), inputs, states, "first")
    assert states.run == 3 * LAYERS
    nothing = PrefixStates(max_bytes=0)
    for _ in range(2):
        assert torch.equal(logits(model, Policy(), inputs, nothing), logits(model, Policy(), inputs))
    assert nothing.run == nothing.asked


def test_a_model_is_left_as_it_was_when_a_forward_fails():
    model, states = built("llama", "sdpa"), PrefixStates(MUCH)
    with apply_policy(model, Policy()) as handle:
        with pytest.raises(ZeroDivisionError), states.reused(handle, "batch"):
            raise ZeroDivisionError
        assert all("forward" not in vars(layer) for layer in model.model.layers)
