"""The cache of a model under a policy: what it stores, what it reports, and what it cannot do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import CompileConfig, DynamicCache, QuantizedCache, StaticCache

from families import FAMILIES, LAYERS, WINDOW, Batch, batch_of, built, run, without
from skipsearch import Policy, apply_policy
from skipsearch.policies.caches.cache import kv_cache_bytes
from skipsearch.policies.caches.partial import PartialLayer
from skipsearch.policies.errors import ModelError

SKIP_ATTENTION, SKIP_LAYER = {"attention": "skip"}, {"attention": "skip", "ffn": "skip"}
HALF = {"token_ratio": 0.5}
TOKEN_BYTES = 2 * 2 * 8 * 4  # keys and values, two heads of eight numbers in float32


def policy_of(layers: dict[int, dict[str, Any]], score: str = "attention") -> Policy:
    return Policy.model_validate({"layers": layers, "token_selection": {"score": score}})


def prefill(model: Any, inputs: dict[str, Tensor], cache: DynamicCache | None = None) -> Any:
    return run(model, inputs, use_cache=True, **({} if cache is None else {"past_key_values": cache}))


def step(model: Any, inputs: dict[str, Tensor], cache: DynamicCache, tokens: Tensor) -> Any:
    """Go on with more tokens after the prompt, and after what the cache has seen since."""
    mask = inputs["attention_mask"]
    seen = cache.get_seq_length() + tokens.shape[1] - mask.shape[1]
    mask = torch.cat([mask, torch.ones(mask.shape[0], seen, dtype=mask.dtype)], 1)
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True)


# What is stored


@pytest.mark.parametrize("name", ["llama", "opt", "neox", "gpt2", "deepseek-v3", "llava", "onevision"])
def test_skipped_attention_stores_nothing_and_reports_the_full_length(name):
    model, inputs = built(name, "sdpa"), batch_of(name).padded()
    length = inputs["input_ids"].shape[1]
    dense = kv_cache_bytes(prefill(model, inputs).past_key_values)
    with apply_policy(model, policy_of({0: SKIP_ATTENTION, 2: SKIP_LAYER, 3: {"ffn": "skip"}})):
        cache = prefill(model, inputs).past_key_values
        assert [layer.get_seq_length() for layer in cache.layers] == [length] * LAYERS
        assert [layer.keys is None for layer in cache.layers] == [True, False, True, False]
        assert kv_cache_bytes(cache) * 2 == dense
        step(model, inputs, cache, torch.full((3, 1), 5))
        assert [layer.get_seq_length() for layer in cache.layers] == [length + 1] * LAYERS
        assert [layer.keys is None for layer in cache.layers] == [True, False, True, False]


def test_a_token_ratio_stores_exactly_the_tokens_that_it_processed():
    model, inputs = built("llava", "sdpa"), batch_of("llava", "middle").alone(0)
    with apply_policy(model, policy_of({1: HALF, 3: {"token_ratio": 0.0}})):
        cache = prefill(model, inputs).past_key_values
        # 3 + 5 text tokens, and 9 of the image, of which half are 4.
        assert [layer.keys.shape[-2] for layer in cache.layers] == [17, 8 + 4, 17, 8]
        positions = 8 * (8 + 4 + 8)
        assert kv_cache_bytes(cache) == TOKEN_BYTES * (17 + 12 + 17 + 8) + positions
        step(model, inputs, cache, torch.tensor([[5]]))
        assert [layer.keys.shape[-2] for layer in cache.layers] == [18, 13, 18, 9]
        assert [layer.get_seq_length() for layer in cache.layers] == [18] * LAYERS


@pytest.mark.parametrize("layout", ["middle", "ragged"])
def test_a_layer_with_a_window_stores_no_more_than_the_dense_one(layout):
    model, batch = built("llava-mistral", "sdpa"), batch_of("llava-mistral", layout)
    inputs = batch.padded()
    with apply_policy(model, policy_of({1: HALF, 2: {"token_ratio": 0.0}})):
        cache = prefill(model, inputs).past_key_values
        for _ in range(WINDOW + 2):
            assert all(layer.keys.shape[-2] <= WINDOW - 1 for layer in cache.layers)
            step(model, inputs, cache, torch.full((len(batch.ids), 1), 5))
    assert all(layer.keys.shape[-2] == WINDOW - 1 for layer in cache.layers)


# Several turns


@pytest.mark.parametrize("score", ["attention", "norm", "uniform"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava", "llava-qwen2", "llava-mistral", "onevision"])
@pytest.mark.parametrize("first", [4, 8], ids=["shorter than the window", "longer than the window"])
def test_an_image_in_the_second_turn(name, attention, score, first):
    batch = Batch.of(FAMILIES[name], [(first, "image", 5)])
    question = first + FAMILIES[name].image_tokens + 2
    check_turns(built(name, attention), batch, [first, question, question + 2], score)


@pytest.mark.parametrize("score", ["attention", "norm", "uniform"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava", "llava-qwen2", "llava-mistral", "onevision"])
def test_text_in_later_turns(name, attention, score):
    batch = Batch.of(FAMILIES[name], [(3, "image", 10)])
    prompt = 3 + FAMILIES[name].image_tokens + 2
    check_turns(built(name, attention), batch, [prompt, prompt + 3, prompt + 4], score)


def check_turns(model: Any, batch: Batch, cuts: list[int], score: str) -> None:
    """Feeding a row in turns gives what one forward gives whose prompt ends with the turn that has the image."""
    inputs = batch.alone(0)
    ids, pixels = inputs["input_ids"], {k: v for k, v in inputs.items() if k in batch.pixels}
    parts = torch.tensor_split(ids, cuts, dim=1)
    layers = {0: SKIP_ATTENTION, 1: {**HALF, "wiring": "parallel"}, 2: HALF, 3: {"token_ratio": 0.2}}
    with apply_policy(model, policy_of(layers, score)) as handle:
        cache, logits, done = DynamicCache(config=model.config), [], 0
        for part in parts:
            done += part.shape[1]
            more = pixels if (part == model.config.image_token_id).any() else {}
            mask = torch.ones(1, done, dtype=torch.long)
            logits.append(run(model, {"input_ids": part, "attention_mask": mask, **more}, past_key_values=cache).logits)
            assert [layer.get_seq_length() for layer in cache.layers] == [done] * LAYERS
        with_image = next(n for n, part in enumerate(parts) if (part == model.config.image_token_id).any())
        handle.prompt_ends = torch.tensor([sum(part.shape[1] for part in parts[: with_image + 1])])
        whole = run(model, inputs, use_cache=False).logits
    torch.testing.assert_close(torch.cat(logits, 1), whole, rtol=1e-5, atol=1e-5)


# What cannot be


PARTS = [{1: HALF}, {2: {**SKIP_ATTENTION, "phase": "decode"}}, {0: {**SKIP_LAYER, "tokens": "image"}}]
NO_PARTS = {
    "first": {0: SKIP_ATTENTION, 1: {"wiring": "parallel"}},
    "all but one": {0: SKIP_LAYER, 1: SKIP_ATTENTION, 3: SKIP_LAYER},
    "phases": {1: {"ffn": "skip", "phase": "decode"}, 2: {"wiring": "parallel", "norm": "shared", "phase": "prefill"}},
}


@pytest.mark.parametrize("layers", PARTS, ids=str)
def test_a_static_cache_is_refused_where_a_layer_stores_some_tokens_only(layers):
    model, inputs = built("llava", "sdpa"), batch_of("llava").padded()
    with apply_policy(model, policy_of(layers)), pytest.raises(ModelError, match="StaticCache"):
        model.generate(**inputs, max_new_tokens=2, cache_implementation="static", disable_compile=True)


@pytest.mark.parametrize("layers", NO_PARTS.values(), ids=NO_PARTS)
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "llava", "llava-mistral"])
def test_a_static_cache_works_where_layers_store_all_tokens_or_none(name, layers):
    model, inputs = built(name, "sdpa"), batch_of(name).padded()
    static = {"cache_implementation": "static", "disable_compile": True}
    with apply_policy(model, policy_of(layers)):
        for beams in (1, 2):
            greedy = {"max_new_tokens": WINDOW + 2, "do_sample": False, "num_beams": beams}
            expected = model.generate(**inputs, **greedy)
            assert torch.equal(model.generate(**inputs, **greedy, **static), expected)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_decoding_with_a_static_cache_compiles_as_often_as_the_dense_model(name):
    model, inputs = built(name, "sdpa"), batch_of(name).padded()
    compiling = CompileConfig(fullgraph=True, backend="eager", mode=None)
    compiling._compile_all_devices = True
    graphs = []
    for policy in (Policy(), policy_of(NO_PARTS["first"]) if name == "llama" else policy_of(NO_PARTS["phases"])):
        with apply_policy(model, policy):
            greedy = {"max_new_tokens": WINDOW + 2, "do_sample": False}
            expected = model.generate(**inputs, **greedy)
            torch._dynamo.reset()
            counters.clear()
            static = {"cache_implementation": "static", "compile_config": compiling}
            for _ in range(2):
                assert torch.equal(model.generate(**inputs, **greedy, **static), expected)
            graphs.append(counters["stats"]["unique_graphs"])
            assert not counters["graph_break"]
    assert set(graphs) == {graphs[0]} and graphs[0] <= 2


def test_a_skipped_layer_allocates_nothing_of_a_static_cache():
    model, inputs = built("llama", "sdpa"), batch_of("llama").padded()
    dense = StaticCache(config=model.config, max_cache_len=64)
    run(model, inputs, past_key_values=dense)
    with apply_policy(model, policy_of({0: SKIP_ATTENTION, 2: SKIP_LAYER})):
        cache = StaticCache(config=model.config, max_cache_len=64)
        logits = run(model, inputs, past_key_values=cache).logits
        assert kv_cache_bytes(cache) * 2 == kv_cache_bytes(dense)
        assert int(cache.get_seq_length()) == inputs["input_ids"].shape[1]
        cache.reset()
        assert torch.equal(run(model, inputs, past_key_values=cache).logits, logits)
        with pytest.raises(ModelError, match="filled without a policy"):
            run(model, inputs, past_key_values=dense)
    with pytest.raises(ModelError, match="filled under a policy"):
        run(model, inputs, past_key_values=cache)


def test_a_quantised_cache_works_where_layers_store_all_tokens_or_none():
    model, inputs = built("llama", "sdpa"), batch_of("llama").padded()
    smaller = without(model, {0, 2})

    def answer(model: Any) -> Any:
        cache = QuantizedCache("fp8", config=model.config)
        return model.generate(**inputs, max_new_tokens=4, do_sample=False, past_key_values=cache), cache

    expected, quantised = answer(smaller)
    with apply_policy(model, policy_of(dict.fromkeys((0, 2), SKIP_LAYER))):
        tokens, cache = answer(model)
    assert torch.equal(tokens, expected)
    assert kv_cache_bytes(cache) == kv_cache_bytes(quantised) > 0
    partly = policy_of({1: {**SKIP_ATTENTION, "phase": "prefill"}})
    with apply_policy(model, partly), pytest.raises(ModelError, match="QuantizedCache"):
        answer(model)


@pytest.mark.parametrize("layers", [{1: SKIP_ATTENTION}, {2: SKIP_LAYER}, {1: HALF}], ids=str)
def test_a_cache_filled_under_a_policy_is_refused_without_it(layers):
    model, inputs = built("llava", "sdpa"), batch_of("llava").padded()
    with apply_policy(model, policy_of(layers)):
        cache = prefill(model, inputs).past_key_values
    with pytest.raises(ModelError, match="filled under a policy"):
        step(model, inputs, cache, torch.full((3, 1), 5))


CUT = [{1: SKIP_ATTENTION}, {1: HALF}, PARTS[1], PARTS[2], {1: {**SKIP_ATTENTION, "tokens": "text"}}]


@pytest.mark.parametrize("layers", CUT, ids=str)
@pytest.mark.parametrize("layout", ["middle", "ragged"])
@pytest.mark.parametrize("name", ["llava", "llava-mistral"])
def test_a_cache_that_was_cut_back_goes_on_as_if_nothing_had_been(name, layout, layers):
    model, inputs = built(name, "sdpa"), batch_of(name, layout).padded()
    tokens = torch.tensor([[7, 9, 11]]).expand(len(inputs["input_ids"]), -1)
    with apply_policy(model, policy_of(layers)):
        cache, other = (DynamicCache(config=model.config) for _ in range(2))
        other.activate_past_recording()
        for one in (cache, other):
            prefill(model, inputs, one)
        for removed in (2, 1, 0):
            for place in range(2):
                step(model, inputs, other, tokens[:, place : place + 1])
            other.crop(-removed)
            for place in range(2 - removed):
                step(model, inputs, cache, tokens[:, place : place + 1])
            stored = [[0 if layer.keys is None else layer.keys.shape[-2] for layer in c.layers] for c in (cache, other)]
            # A layer that skips tokens leaves it to the next stored one to drop what is outside of its window.
            assert stored[0] == stored[1] or (name == "llava-mistral" and sum(stored[1]) <= sum(stored[0]))
        expected = step(model, inputs, cache, tokens[:, 2:]).logits
        assert torch.equal(step(model, inputs, other, tokens[:, 2:]).logits, expected)


def test_a_window_that_did_not_record_its_past_is_not_cut_back():
    layer = filled_layer(window=3)
    with pytest.raises(ModelError, match="cannot be cut back\n  found 1 of 5 tokens to remove, after a sliding window"):
        layer.crop(-1)
    with pytest.raises(ModelError, match="found -6 as what to remove from 5 tokens, expected 0 to -5"):
        layer.crop(-6)
    layer.crop(0)
    assert layer.columns(2, torch.device("cpu")).tolist() == [[3, 4], [3, 4]]


# The object by itself


def filled_layer(window: int | None = None) -> PartialLayer:
    """Two rows, that stored tokens 0, 2, 3 and 2, 3 of four, then one more."""
    layer = PartialLayer(DynamicCache().layer_class_to_replicate())
    layer.sliding_window, layer.is_sliding = window, window is not None
    states = torch.arange(6.0).view(2, 1, 3, 1)
    layer.announce(4, torch.tensor([[0, 2, 3], [1, 2, 3]]), torch.tensor([[True, True, True], [False, True, True]]))
    layer.update(states, -states)
    layer.announce(1)
    layer.update(torch.full((2, 1, 1, 1), 9.0), torch.full((2, 1, 1, 1), -9.0))
    return layer


def test_positions_and_validity_follow_the_stored_columns():
    layer = filled_layer()
    assert layer.get_seq_length() == 5 and layer.get_mask_sizes(1) == (6, 0)
    assert layer.columns(2, torch.device("cpu")).tolist() == [[0, 2, 3, 4], [1, 2, 3, 4]]
    assert layer.valid.tolist() == [[True] * 4, [False, True, True, True]]


def test_rows_can_be_reordered_repeated_and_selected():
    reordered, repeated, selected = filled_layer(), filled_layer(), filled_layer()
    reordered.reorder_cache(torch.tensor([1, 1]))
    repeated.batch_repeat_interleave(2)
    selected.batch_select_indices(torch.tensor([1]))
    for layer, rows in ((reordered, [1, 1]), (repeated, [0, 0, 1, 1]), (selected, [1])):
        plain = filled_layer()
        assert torch.equal(layer.keys, plain.keys[rows])
        assert torch.equal(layer.values, plain.values[rows])
        assert torch.equal(layer.valid, plain.valid[rows])
        columns = plain.columns(2, torch.device("cpu"))[rows]
        assert torch.equal(layer.columns(len(rows), torch.device("cpu")), columns)


def test_a_window_forgets_what_no_row_can_see():
    # The next token is 5 and sees 3 and 4 besides itself; the one after sees 4 and 5.
    layer = filled_layer(window=3)
    assert layer.columns(2, torch.device("cpu")).tolist() == [[3, 4], [3, 4]]
    assert layer.keys[:, 0, :, 0].tolist() == [[2.0, 9.0], [5.0, 9.0]]
    assert layer.get_mask_sizes(1) == (3, 3) and layer.get_seq_length() == 5


@pytest.mark.parametrize(
    ("left", "columns", "valid"),
    [
        (5, [[0, 2, 3, 4], [1, 2, 3, 4]], [[True] * 4, [False, True, True, True]]),
        (4, [[0, 2, 3], [1, 2, 3]], [[True] * 3, [False, True, True]]),
        # Only one row stored a token before the third: the column is padding in the other, at a place that exists.
        (2, [[0], [1]], [[True], [False]]),
        (1, [[0], [0]], [[True], [False]]),
        (0, [[], []], [[], []]),
    ],
)
def test_rows_that_stored_different_tokens_are_cut_back(left, columns, valid):
    layer = filled_layer()
    layer.crop(left - 5)
    assert layer.get_seq_length() == left and layer.get_mask_sizes(1) == (left + 1, 0)
    assert layer.columns(2, torch.device("cpu")).tolist() == columns and layer.valid.tolist() == valid
    assert layer.keys.shape[-2] == layer.values.shape[-2] == len(columns[0])
    layer.announce(2)
    layer.update(torch.zeros(2, 1, 2, 1), torch.zeros(2, 1, 2, 1))
    assert layer.columns(2, torch.device("cpu")).tolist() == [[*row, left, left + 1] for row in columns]


def test_reset_starts_anew():
    layer = filled_layer()
    layer.reset()
    assert layer.get_seq_length() == 0
    layer.announce(2)
    keys, _ = layer.update(torch.zeros(1, 1, 2, 1), torch.zeros(1, 1, 2, 1))
    assert keys.shape[-2] == 2
    assert layer.columns(1, torch.device("cpu")).tolist() == [[0, 1]]


@pytest.mark.parametrize("name", ["llava", "llava-mistral", "onevision", "gemma3-images"])
def test_a_cache_can_be_used_again_after_a_reset(name):
    model, inputs = built(name, "sdpa"), batch_of(name).padded()
    with apply_policy(model, policy_of({0: SKIP_LAYER, 1: HALF, 2: SKIP_ATTENTION})):
        expected = prefill(model, inputs)
        cache = expected.past_key_values
        cache.reset()
        assert torch.equal(prefill(model, inputs, cache).logits, expected.logits)
