"""Static caches of layers that store fewer tokens: as a growing cache, with room for no more than is stored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract import HALF, NAMED, close, policy_of, told
from transformers import StaticCache

from families import batch_of, built, forget, run
from skipsearch import apply_policy
from skipsearch.policies.errors import ModelError

FALLING = {0: HALF, 2: {**NAMED["skip_ffn"], "token_ratio": 0.2}}
FROZEN = {0: {"attention": "keys_only", "ffn": "skip", "tokens": "image"}, 1: HALF, 2: NAMED["skip_ffn"]}
SCOPED = {1: {**NAMED["skip_attention"], "tokens": "image"}, 2: {**NAMED["skip_attention"], "phase": "prefill"}}
ROOM = 40


def static(model: Any) -> StaticCache:
    return StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=ROOM)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("reselect", ["each_layer", "once"])
@pytest.mark.parametrize("layers", [FALLING, SCOPED, FROZEN], ids=["ratios", "scopes", "frozen"])
@pytest.mark.parametrize(("name", "attention"), [("llava", "sdpa"), ("llava", "eager"), ("qwen2.5-vl", "sdpa")])
def test_it_answers_as_a_growing_cache_does_and_stores_no_more(name, attention, layers, reselect, beams):
    model, inputs = built(name, attention), batch_of(name, "middle").padded()
    # Else transformers takes the length of the longest static cache that the model had before.
    model.__dict__.pop("_previous_max_cache_length", None)
    with apply_policy(model, policy_of(layers, reselect=reselect)):
        growing = told(model, inputs, num_beams=beams)
        fixed = told(model, inputs, num_beams=beams, cache_implementation="static")
    close(torch.stack(fixed.logits), torch.stack(growing.logits))
    assert torch.equal(fixed.sequences, growing.sequences)
    lengths = [[layer.keys.shape[2] for layer in found.past_key_values.layers] for found in (fixed, growing)]
    assert lengths[0] == lengths[1]


def test_rows_of_equal_length_share_a_cache_that_is_used_again_after_a_reset():
    model, inputs = built("llava", "sdpa"), batch_of("llava", "middle").padded()
    pair = {name: torch.cat([tensor, tensor]) for name, tensor in inputs.items()}
    token = inputs["input_ids"][:, -1:]
    with apply_policy(model, policy_of(FALLING, reselect="once")), torch.no_grad():
        expected = run(model, inputs).past_key_values
        expected = model(input_ids=token, past_key_values=expected).logits
        cache = static(model)
        for _ in range(2):
            forget(model)
            model(**pair, past_key_values=cache)
            found = model(input_ids=token.expand(2, -1), past_key_values=cache).logits
            close(found, expected.expand(2, -1, -1))
            assert [layer.keys.shape[2] for layer in cache.layers] == [ROOM - 5, ROOM - 5, ROOM - 8, ROOM - 8]
            cache.reset()


REFUSED = [
    ("llava", "ragged", FALLING, "different numbers"),
    ("llava-mistral", "middle", FALLING, "StaticSlidingWindowLayer"),
    ("llava", "middle", {1: {**NAMED["skip_attention"], "phase": "decode"}}, "StaticLayer"),
]


@pytest.mark.parametrize(("name", "layout", "layers", "reason"), REFUSED)
def test_what_has_no_fixed_size_is_refused_with_the_reason(name, layout, layers, reason):
    model, inputs = built(name, "sdpa"), batch_of(name, layout).padded()
    with (
        apply_policy(model, policy_of(layers, reselect="once")),
        pytest.raises(ModelError, match=f"StaticCache cannot be used(.|\n)*{reason}"),
    ):
        told(model, inputs, cache_implementation="static")


def test_the_dense_model_does_not_take_a_cache_that_a_policy_filled():
    model, inputs = built("llava", "sdpa"), batch_of("llava", "middle").padded()
    cache = static(model)
    with torch.no_grad():
        with apply_policy(model, policy_of(FALLING, reselect="once")):
            model(**inputs, past_key_values=cache)
        with pytest.raises(ModelError, match="without it"):
            model(input_ids=inputs["input_ids"][:, -1:], past_key_values=cache)


@pytest.mark.parametrize("layer", [0, 3])
def test_a_skipped_layer_of_a_model_that_attends_to_the_image_directly_has_a_static_cache(layer):
    model, inputs = built("mllama", "sdpa"), batch_of("mllama").padded()
    with apply_policy(model, policy_of({layer: NAMED["skip_layer"]})):
        growing = told(model, inputs)
        fixed = told(model, inputs, cache_implementation="static")
    close(torch.stack(fixed.logits), torch.stack(growing.logits))
