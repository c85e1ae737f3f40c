"""Attention functions that take no mask, as flash attention does, and graphs of whole prefills."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from contract import FREEZE_IMAGE, HALF, NAMED, SKIP_VISION, close, policy_of, told
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import DynamicCache, StaticCache
from transformers.modeling_flash_attention_utils import _is_packed_sequence
from transformers.modeling_utils import AttentionInterface

from families import batch_of, built, run
from skipsearch import apply_policy
from skipsearch.policies.errors import ModelError
from skipsearch.policies.scores.table import SCORES

FALLING = {1: HALF, 2: {**NAMED["skip_ffn"], "token_ratio": 0.3}}
SEEN = {0: FREEZE_IMAGE, 1: {**HALF, "rest": "keys_only"}}
ROLES = SEEN | {2: {"attention": "queries_only", "tokens": "image"}, 3: SKIP_VISION}


def causal_alone(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Causal attention that aligns queries with the last keys, and takes gaps between positions for ends of rows."""
    assert mask is None
    positions = kwargs.get("position_ids")
    assert not _is_packed_sequence(positions, query.shape[0])
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    allowed = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(key.shape[2] - query.shape[2])
    scale = kwargs.get("scaling")
    out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scale)
    return out.transpose(1, 2).contiguous(), None


@pytest.fixture
def flash(monkeypatch):
    """Makes a copy of a family's model whose decoder has no other attention function."""
    monkeypatch.setitem(AttentionInterface._global_mapping, "causal_alone", causal_alone)

    def made(name: str) -> Any:
        model = copy.deepcopy(built(name, "sdpa"))
        model.get_decoder().config._attn_implementation = "causal_alone"
        return model

    return made


@pytest.mark.parametrize("reselect", ["each_layer", "once"])
@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl", "internvl"])
def test_rows_of_equal_length_need_no_mask(flash, name, reselect):
    model, inputs = flash(name), batch_of(name, "middle").padded()
    for score in SCORES:
        policy = policy_of(FALLING, score, reselect)
        with apply_policy(built(name, "sdpa"), policy):
            expected = told(built(name, "sdpa"), inputs)
        with apply_policy(model, policy):
            found = told(model, inputs)
        close(torch.stack(found.logits), torch.stack(expected.logits))


@pytest.mark.parametrize(
    ("name", "layout", "needed"), [("llava", "ragged", "a mask"), ("llava-mistral", "middle", "6")]
)
def test_what_needs_a_mask_is_refused_by_the_name_of_the_function(flash, name, layout, needed):
    model, inputs = flash(name), batch_of(name, layout).padded()
    with (
        apply_policy(model, policy_of({1: HALF}, reselect="once")),
        pytest.raises(ModelError, match=f"causal_alone(.|\n)*{needed}"),
    ):
        run(model, inputs)


def made_cache(kind: str | None, model: Any) -> dict[str, Any]:
    """The arguments of a forward with an empty cache of a kind, or without one."""
    config = model.config.get_text_config(decoder=True)
    if kind is None:
        return {"use_cache": False}
    return {"past_key_values": StaticCache(config, 40) if kind == "static" else DynamicCache(config=config)}


@pytest.mark.parametrize(
    ("name", "layers", "score", "reselect", "cache", "backend"),
    [
        ("llava", FALLING, "attention", "each_layer", None, "aot_eager"),
        ("llava", FALLING, "norm", "once", "static", "eager"),
        ("llava", ROLES, "uniform", "each_layer", "dynamic", "eager"),
        ("llava", SEEN, "norm", "each_layer", "static", "eager"),
    ],
)
def test_a_prefill_whose_image_tokens_are_told_is_one_graph(name, layers, score, reselect, cache, backend):
    model, inputs = built(name, "sdpa"), batch_of(name, "middle").padded()
    del inputs["attention_mask"]  # transformers makes one graph of prompts without padding alone.
    token = {"input_ids": inputs["input_ids"][:, -1:]}
    # What the first forward installs is not traced.
    run(model, inputs, use_cache=False)
    torch._dynamo.reset()
    counters.clear()
    with apply_policy(model, policy_of(layers, score, reselect)) as handle, torch.no_grad():
        expected = model(**inputs, **made_cache(cache, model))
        handle.image_tokens = int((inputs["input_ids"] == model.config.image_token_id).sum())
        assert torch.equal(model(**inputs, **made_cache(cache, model)).logits, expected.logits)
        given = made_cache(cache, model)
        # `torch.compile(model)` traces hooks apart from the model: there, the look at the ids is a graph of its own.
        compiled = torch.compile(lambda: model(**inputs, **given).logits, backend=backend, fullgraph=True)
        close(compiled(), expected.logits)
        assert counters["stats"]["unique_graphs"] == 1
        if cache is not None:
            handle.image_tokens = None
            caches = given["past_key_values"], expected.past_key_values
            close(*(model(**token, past_key_values=cache).logits for cache in caches))


@pytest.mark.parametrize(("count", "layout"), [(8, "middle"), (9, "ragged")])
def test_another_number_of_image_tokens_than_was_told_is_refused(count, layout):
    model, inputs = built("llava", "sdpa"), batch_of("llava", layout).padded()
    with apply_policy(model, policy_of({1: HALF})) as handle:
        handle.image_tokens = count
        with pytest.raises(ModelError, match="handle.image_tokens"):
            run(model, inputs)
        handle.image_tokens = None
        run(model, inputs)
