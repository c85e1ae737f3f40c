"""Shares of heads: what the contract suite does not ask of every family."""

from __future__ import annotations

from functools import wraps
from typing import Any

import pytest
import torch
import transformers as t
from contract import check, close, policy_of, told
from slow_heads import kept_groups
from torch import nn
from transformers.models.llama.modeling_llama import LlamaAttention

from families import FAMILIES, GROUPED, Batch, Family, batch_of, built, forget, layer_list, run
from skipsearch import apply_policy
from skipsearch.exports.batching import batching_errors
from skipsearch.policies.caches.cache import kv_cache_bytes
from skipsearch.policies.errors import ModelError, PolicyMismatch
from skipsearch.policies.families.layers import decoder_layers
from skipsearch.policies.families.narrow_heads import NarrowHeads

HALF = policy_of({1: {"head_ratio": 0.5}})
BY_PHASE = policy_of({0: {"head_ratio": 0.5, "phase": "prefill"}, 2: {"head_ratio": 0.5, "phase": "decode"}})
MANY_TEXT = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4, "vocab_size": 100}


class Bounded(LlamaAttention):
    """An attention whose output is no sum over its heads."""

    @wraps(LlamaAttention.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out, weights = super().forward(*args, **kwargs)
        return out.tanh(), weights


def refusal(model: Any, **choice: Any) -> str:
    before = [weight.clone() for weight in model.parameters()]
    with pytest.raises(PolicyMismatch) as error, apply_policy(model, policy_of({1: {"head_ratio": 0.5, **choice}})):
        pass
    assert all(map(torch.equal, before, model.parameters()))
    return str(error.value)


@pytest.mark.parametrize("name", ["starcoder2", "phi3", "gpt2", "neox", "falcon", "falcon-new", "minicpm3", "gemma2"])
def test_the_kept_heads_and_the_others_add_up_to_the_attention(name):
    model = built(name, "eager")
    layer = decoder_layers(model)[1]
    arguments, parts = layer.call.arguments, layer.sublayers
    normed = parts.attention_norm(layer.call.x)
    with torch.no_grad():
        whole = parts.attend(normed, arguments)
        for ranking in ("first", "weights"):
            heads = NarrowHeads(parts, 0.5, ranking)
            heads.rank()
            heads.install()
            try:
                found = [parts.attend(normed, arguments, part) for part in (heads.kept, heads.others)]
            finally:
                heads.uninstall()
                heads.release()
            close(found[0] + found[1], whole, 1e-6)
            assert not torch.allclose(found[0], whole, atol=1e-3)


def multi_query() -> Family:
    config = {**GROUPED, "num_key_value_heads": 1, "attention_bias": True}
    return Family("multi-query", lambda: t.LlamaConfig(**config))


def test_query_heads_are_left_out_where_all_share_one_key():
    family = multi_query()
    model, batch = family.build("sdpa"), Batch.of(family, [(9,), (6,)])
    check(model, batch, policy_of({0: {"head_ratio": 0.75}, 2: {"head_ratio": 0.25, "ffn": "skip"}}))
    assert "all its heads have the same keys" in refusal(model, phase="decode")


@pytest.mark.parametrize("score", ["attention", "key_norm"])
def test_scores_read_the_heads_that_serve_every_token(score):
    layers = {0: {"head_ratio": 0.5}, 1: {"token_ratio": 0.5}, 2: {"head_ratio": 0.5, "tokens": "image"}}
    model, batch = built("llava", "sdpa"), batch_of("llava")
    check(model, batch, policy_of(layers | {3: {"token_ratio": 0.3, "head_ratio": 0.5}}, score))


def test_the_cache_stores_each_head_for_the_tokens_that_it_serves():
    model, batch = built("llava", "sdpa"), batch_of("llava", "middle")
    forget(model)
    dense = run(model, batch.alone(0), use_cache=True).past_key_values
    with apply_policy(model, policy_of({0: {"head_ratio": 0.5}, 1: {"head_ratio": 0.5, "tokens": "image"}})):
        cache = run(model, batch.alone(0), use_cache=True).past_key_values
    tokens, text = len(batch.ids[0]), len(batch.ids[0]) - 9
    each = kv_cache_bytes(dense) // (4 * 2 * tokens)  # bytes of one head and token
    assert [layer.keys.shape[1:3] for layer in cache.layers] == [
        (1, tokens),
        (1, tokens),
        (2, tokens),
        (2, tokens),
        (1, text),
    ]
    # The places of the tokens that the others serve take 8 bytes each.
    assert kv_cache_bytes(cache) == each * (6 * tokens + text) + 8 * text


def test_static_caches_hold_the_heads_that_exist():
    model, inputs = FAMILIES["llava"].build("sdpa"), batch_of("llava", "middle").alone(0)
    policies = [policy_of({0: {"head_ratio": 0.5}, 2: {"head_ratio": 0.5, "tokens": "image"}}), BY_PHASE]
    for policy in policies:
        with apply_policy(model, policy):
            dynamic = told(model, inputs)
            static = told(model, inputs, cache_implementation="static", disable_compile=True)
        assert torch.equal(static.sequences, dynamic.sequences)
        close(torch.stack(static.logits), torch.stack(dynamic.logits))
        assert static.past_key_values.layers[0].keys.shape[1] == 1 or policy is BY_PHASE


def test_a_cache_that_was_made_without_the_policy_is_refused():
    model = FAMILIES["llama"].build("sdpa")
    ids = torch.tensor([[5, 6, 7]])
    for policy, found in ((HALF, "layer 1 has keys of 2 heads"), (BY_PHASE, "keys of 2 heads")):
        cache = model(input_ids=ids, use_cache=True).past_key_values
        with apply_policy(model, policy), pytest.raises(ModelError, match=found):
            model(input_ids=ids[:, :1], past_key_values=cache)
    with apply_policy(model, HALF):
        cache = model(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(RuntimeError):
        model(input_ids=ids[:, :1], past_key_values=cache)


def test_continuous_batching_is_refused():
    model = FAMILIES["llama"].build("sdpa")
    with apply_policy(model, HALF):
        assert "continuous batching cannot be used under this policy" in batching_errors(model)[0]


def test_attentions_of_single_heads_are_refused():
    model = FAMILIES["llama"].build("eager")
    with apply_policy(model, HALF), pytest.raises(ModelError, match="layers 1 run a share of their heads"):
        model(input_ids=torch.tensor([[5, 6, 7]]), output_attentions=True)


def test_what_is_no_sum_over_heads_is_refused_by_name():
    quantised = torch.ao.quantization.quantize_dynamic(FAMILIES["llama"].build("sdpa"), {nn.Linear}, torch.qint8)
    assert "its attention has projections of another build" in refusal(quantised)
    tied = FAMILIES["llama"].build("sdpa")
    layer_list(tied)[3].self_attn.v_proj.weight = layer_list(tied)[1].self_attn.v_proj.weight
    assert "another part of the model has its v_proj.weight too" in refusal(tied)
    few = refusal(built("llama", "sdpa"), head_ratio=0.1)
    assert "0.1 of its 2 groups of heads is less than one; write `attention: skip`" in few
    alone = t.LlamaForCausalLM(t.LlamaConfig(**{**GROUPED, "num_attention_heads": 1, "num_key_value_heads": 1})).eval()
    assert "0.5 of its 1 groups of heads is less than one" in refusal(alone)
    biased = t.FalconForCausalLM(t.FalconConfig(**MANY_TEXT, alibi=True, multi_query=False)).eval()
    assert "each of its heads has biases of its own (ALiBi)" in refusal(biased)
    strange = FAMILIES["llama"].build("sdpa")
    layer_list(strange)[1].self_attn.__class__ = Bounded
    assert "its attention is not the sum of its heads" in refusal(strange)
    norms = t.StableLmForCausalLM(t.StableLmConfig(**GROUPED, qk_layernorm=True)).eval()
    assert "its q_layernorm is not one norm that each head has alone" in refusal(norms)
    evicting = refusal(built("llava", "sdpa"), token_ratio=0.5, rest="attention", evict=True)
    assert "take part with all heads" in evicting


def test_a_projection_that_was_replaced_is_found():
    model = FAMILIES["llama"].build("sdpa")
    handle = apply_policy(model, HALF)
    attention = layer_list(model)[1].self_attn
    attention.v_proj, own = nn.Linear(32, 16), attention.v_proj
    with pytest.raises(ModelError, match="a share of their heads"):
        model(input_ids=torch.tensor([[5]]))
    attention.v_proj = own
    handle.remove()


def test_gradients_reach_the_kept_heads_alone():
    model = FAMILIES["llama"].build("sdpa")
    with apply_policy(model, policy_of({1: {"head_ratio": 0.5}}, ranking="first")):
        model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits.square().mean().backward()
    gradient = layer_list(model)[1].self_attn.v_proj.weight.grad
    by_group = gradient.unflatten(0, (2, -1)).norm(dim=(1, 2))
    assert by_group.nonzero()[:, 0].tolist() == kept_groups(layer_list(model)[1], 0.5, "first")
