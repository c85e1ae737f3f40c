"""A set of tokens that stays is cut once, and a set that changes costs few operations."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from contract import HALF, NAMED, policy_of
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from families import LAYERS, WITH_IMAGES, batch_of, built, forget, layer_list, run
from skipsearch import apply_policy
from skipsearch.policies.errors import ModelError
from skipsearch.policies.scores.table import SCORES

ONCE = {1: HALF}
PYRAMID = {0: {"token_ratio": 0.8}, 1: NAMED["skip_ffn"], 2: HALF}
# Where the decoder adds to its hidden states between layers, they are put back for that.
BETWEEN = {"qwen3-vl": 1}


class Operations(TorchDispatchMode):
    """Counts what torch computes; a view computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not operation.is_view:
            self.found[operation.name().removeprefix("aten::")] += 1
        return operation(*args, **(kwargs or {}))


def operations(model: Any, layers: Any, inputs: Any, score: str = "attention", reselect: str = "once") -> Counter[str]:
    """The operations of one forward under a policy."""
    with apply_policy(model, policy_of(layers, score, reselect)), Operations() as counted:
        run(model, inputs)
    return counted.found


def read(model: Any, seen: list[int]) -> list[Any]:
    """Hooks that look at what each layer returns."""

    def note(module: Any, args: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).shape[1])

    return [layer.register_forward_hook(note) for layer in layer_list(model)]


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_tokens_that_are_gone_are_cut_off_once_and_put_back_once(name):
    model, inputs = built(name, "sdpa"), batch_of(name, "middle").padded()
    plain = operations(model, {}, inputs)
    found = operations(model, ONCE, inputs) - plain
    assert found["index_copy"] == 1 + BETWEEN.get(name, 0)
    found = operations(model, PYRAMID, inputs) - plain
    assert found["index_copy"] == 2 + BETWEEN.get(name, 0)


@pytest.mark.parametrize("layers", [ONCE, PYRAMID], ids=["once", "pyramid"])
@pytest.mark.parametrize("name", WITH_IMAGES)
def test_it_gives_what_layers_give_that_each_put_back(name, layers):
    """A hook on a layer sees all tokens, so with one on every layer each of them cuts and puts back."""
    model, inputs, seen = built(name, "sdpa"), batch_of(name).padded(), []
    real, tokens = inputs["attention_mask"].bool(), inputs["input_ids"].shape[1]
    with apply_policy(model, policy_of(layers, reselect="once")):
        handed_on = run(model, inputs).logits
        hooks = read(model, seen)
        put_back = run(model, inputs).logits
        for hook in hooks:
            hook.remove()
    assert seen == [tokens] * LAYERS
    assert torch.equal(handed_on[real], put_back[real])


def test_hidden_states_that_are_asked_for_have_all_tokens_and_later_forwards_cut_once_again():
    model, inputs = copy.deepcopy(built("llava", "sdpa")), batch_of("llava", "middle").padded()
    seldom = operations(model, ONCE, inputs)["index_copy"]
    with apply_policy(model, policy_of(ONCE, reselect="once")):
        states = run(model, inputs, output_hidden_states=True).hidden_states
    assert {state.shape for state in states} == {states[0].shape}
    left_out = (states[1] == states[2]).all(-1)
    assert left_out.sum() > 0 and torch.equal(states[2][left_out], states[3][left_out])
    assert operations(model, ONCE, inputs)["index_copy"] == seldom == 1


def test_a_decoder_that_stops_before_its_last_layer_is_refused():
    model, inputs = copy.deepcopy(built("llava", "sdpa")), batch_of("llava").padded()
    with apply_policy(model, policy_of(ONCE, reselect="once")):
        model.get_decoder().config.num_hidden_layers = 3
        with pytest.raises(ModelError, match="fewer layers"):
            run(model, inputs)


# Scores that compute more than the runtime's six operations leave room for; `diverse` takes steps for each kept token.
COSTLY = {"key_norm": 14, "relevance": 18, "diverse": 60}


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("reselect", ["each_layer", "once"])
def test_a_further_layer_of_fewer_tokens_is_at_most_ten_operations(score, reselect):
    """A GPU waits for the host at small batches: there it does not pay to leave a token out by many operations."""
    model, inputs = built("llava", "sdpa"), batch_of("llava", "middle").padded()
    two, three = (
        operations(model, dict.fromkeys(layers, HALF), inputs, score, reselect) for layers in ((1, 2), (1, 2, 3))
    )
    assert (three - two).total() <= (COSTLY.get(score, 10) if reselect == "each_layer" else 0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_step_of_an_answer_is_what_the_dense_model_does(attention):
    model, inputs = built("llava", attention), batch_of("llava", "middle").padded()
    step = {"input_ids": inputs["input_ids"][:, -1:]}
    cost = {}
    for name, layers in {"dense": {}, "once": PYRAMID}.items():
        forget(model)
        cache = DynamicCache(config=model.config)
        with torch.no_grad(), apply_policy(model, policy_of(layers, reselect="once")):
            model(**inputs, past_key_values=cache)
            with Operations() as counted:
                model(**step, past_key_values=cache)
        cost[name] = counted.found
    # Eager attention takes a mask even then: one for each of the two sets of tokens.
    assert (cost["once"] - cost["dense"]).total() <= (0 if attention == "sdpa" else 2 * 3)
