"""Weights in 8 bits: a policy computes on them what it computes on the numbers that they stand for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as t
from contract import ANSWER, HALF, answered, close, policy_of, scored, told
from torch import nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, PerGroup, quantize_

from families import FAMILIES, batch_of, layer_list, run
from skipsearch import Policy, apply_policy, draft
from skipsearch.evaluators.flops import count, refuse_uncounted_weights
from skipsearch.policies.errors import EvaluatorError, ModelError, PolicyError, PolicyMismatch
from skipsearch.policies.metadata import ModelRef
from skipsearch.policies.quantized.tensors import as_numbers, is_int8, stored_bytes
from skipsearch.policies.quantized.weights import linear_layers, quantization_of, quantize, quantized_share

# Gates and values apart and in one, projections in one by group, norms in other places, a mixture with a shared expert,
# and models that see.
NAMES = ("llama", "qwen2-moe", "llava")
MORE = ("phi3", "neox", "gemma3", "mixtral", "qwen2-vl", "internvl")
SKIPS = {0: {"ffn": "skip"}, 1: {"attention": "skip", "phase": "decode"}, 2: {"wiring": "parallel"}}
WIDTHS = {0: {"ffn_ratio": 0.5}, 1: {"head_ratio": 0.5}, 2: {"head_ratio": 0.5, "ffn_ratio": 0.3, "phase": "prefill"}}
ROLES = {1: {"attention": "keys_only", "phase": "decode"}, 2: {"attention": "queries_only", "ffn": "skip"}}
IMAGES = {0: HALF, 1: {"ffn_ratio": 0.5, "tokens": "image"}, 2: {"attention": "keys_only", "tokens": "image"}}
INT8 = {"model": ModelRef(quantization="int8")}


def int8(name: str) -> Any:
    model = FAMILIES[name].build("sdpa")
    quantize(model)
    return model


def as_floats(model: Any, name: str) -> Any:
    """A model with the numbers that the weights of another one stand for."""
    other = FAMILIES[name].build("sdpa")
    for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
        mine.data = as_numbers(theirs).detach().clone()
    return other


def policies(name: str) -> list[Policy]:
    if FAMILIES[name].grids:
        return [policy_of(WIDTHS, ranking="first"), policy_of(IMAGES), policy_of(IMAGES, reselect="once")]
    return [*(policy_of(layers) for layers in (SKIPS, WIDTHS, ROLES)), policy_of(WIDTHS, ranking="first")]


def stored(model: nn.Module) -> list[torch.Tensor]:
    return [as_numbers(weight).detach().clone() for weight in model.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


@pytest.mark.parametrize("name", [*NAMES, *(pytest.param(name, marks=pytest.mark.soak) for name in MORE)])
def test_a_policy_computes_what_it_computes_on_the_numbers(name):
    model = int8(name)
    # With the usual seed, two experts of a layer tie for one token.
    floats, batch = as_floats(model, name), batch_of(name, seed=1)
    before, dense = stored(model), run(model, batch.padded()).logits
    with apply_policy(model, Policy()):
        assert torch.equal(run(model, batch.padded()).logits, dense)
    for policy in policies(name):
        with apply_policy(model, policy) as ours, apply_policy(floats, policy) as theirs:
            inputs = batch.padded("left")
            close(run(model, inputs).logits, run(floats, inputs).logits)
            greedy = told(model, inputs)
            longer = answered(batch, greedy.sequences[:, inputs["input_ids"].shape[1] :])
            whole = scored(model, ours, longer, "left")
            close(whole, scored(floats, theirs, longer, "left"))
            close(torch.stack(greedy.logits, dim=1), whole[:, -ANSWER - 1 : -1])
            # Every product is counted, and no other.
            assert count(model, batch.alone(0)) == count(floats, batch.alone(0))
        assert same(stored(model), before), policy.to_yaml()
    assert torch.equal(run(model, batch.padded()).logits, dense)


def test_a_policy_for_int8_weights_quantises_an_unquantised_model_while_it_is_applied():
    name = "llava"
    model, loaded, batch = FAMILIES[name].build("sdpa"), int8(name), batch_of(name)
    parameters, dense = dict(model.named_parameters()), run(model, batch.padded()).logits
    for policy in policies(name):
        chosen = policy.model_copy(update=INT8)
        assert chosen.fingerprint != policy.fingerprint and Policy(**INT8).is_dense is False
        with apply_policy(loaded, chosen) as handle:
            expected = run(loaded, batch.padded()).logits
            assert handle.weights is None
        with apply_policy(model, chosen) as handle:
            assert torch.equal(run(model, batch.padded()).logits, expected)
            assert handle.weights == handle.steps()[0].weights == quantization_of(model) == "int8"
            with handle.dense():
                assert torch.equal(run(model, batch.padded()).logits, dense)
                assert handle.weights is handle.steps()[0].weights is None
            assert torch.equal(run(model, batch.padded()).logits, expected)
        assert {key: id(value) for key, value in model.named_parameters()} == {k: id(v) for k, v in parameters.items()}
    assert torch.equal(run(model, batch.padded()).logits, dense)


def test_the_weights_equal_those_of_transformers(tmp_path):
    model = FAMILIES["llama"].build("sdpa")
    model.save_pretrained(tmp_path)
    config = t.TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
    theirs = t.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, device_map={"": "cpu"})
    quantize(model)
    for mine, other in zip(linear_layers(model), linear_layers(theirs), strict=True):
        assert torch.equal(mine.weight.qdata, other.weight.qdata) and torch.equal(mine.weight.scale, other.weight.scale)
    quantize(theirs)
    with apply_policy(theirs, policy_of(WIDTHS).model_copy(update=INT8)), apply_policy(model, policy_of(WIDTHS)):
        inputs = batch_of("llama").padded()
        assert torch.equal(run(theirs, inputs).logits, run(model, inputs).logits)


def test_what_is_quantised_and_the_bytes_of_it():
    model, floats = int8("qwen2-moe"), FAMILIES["qwen2-moe"].build("sdpa")
    for layer in layer_list(model):
        assert is_int8(layer.self_attn.q_proj.weight) and is_int8(layer.mlp.shared_expert.up_proj.weight)
        assert not any(map(is_int8, (*layer.mlp.experts.parameters(), layer.input_layernorm.weight)))
    assert not is_int8(model.lm_head.weight)
    weight = layer_list(model)[0].self_attn.q_proj.weight
    # A byte a number, and for each row a scale in float32 and a zero in one byte.
    assert stored_bytes(weight) == weight.numel() + weight.shape[0] * (4 + (weight.zero_point is not None))
    counts = [sum(p.numel() for p in part.parameters()) for part in (layer_list(model), linear_parts(model))]
    assert quantized_share(model) == counts[1] / counts[0] < 0.5
    with apply_policy(model, Policy()) as ours, apply_policy(floats, Policy()) as theirs:
        assert ours.weight_bytes == sum(map(stored_bytes, [*model.parameters(), *model.buffers()]))
        assert theirs.weight_bytes == 4 * sum(one.numel() for one in [*floats.parameters(), *floats.buffers()])
        assert ours.weight_bytes < theirs.weight_bytes


def linear_parts(model: Any) -> nn.ModuleList:
    return nn.ModuleList(nn.ParameterList([linear.weight]) for linear in linear_layers(model))


@pytest.mark.parametrize("make", [int8, lambda name: FAMILIES[name].build("sdpa")], ids=["int8", "floats"])
def test_weights_that_run_for_no_token_are_not_read(make):
    model = make("llama")
    sizes = {name: stored_bytes(weight) for name, weight in model.named_parameters()}

    def read(layers: dict[int, Any], ranking: str = "weights") -> int:
        with apply_policy(model, policy_of(layers, ranking=ranking)) as handle:
            found = handle.weight_bytes
            with handle.dense():
                assert handle.weight_bytes == whole
        return whole - found

    with apply_policy(model, Policy()) as handle:
        whole = handle.weight_bytes
    ffn = sum(size for name, size in sizes.items() if "layers.1.mlp" in name or "layers.1.post" in name)
    attention = sum(size for name, size in sizes.items() if "layers.1.self_attn" in name or "layers.1.input" in name)
    assert read({1: {"ffn": "skip"}}) == ffn
    assert read({1: {"attention": "skip"}}) == attention
    assert read({1: {"attention": "skip", "ffn": "skip"}}) == attention + ffn
    assert read({1: {"ffn": "skip", "phase": "decode"}}) == read({1: {"ffn_ratio": 0.5, "phase": "prefill"}}) == 0
    assert read({1: {"wiring": "parallel"}}) == 0
    # The scales of rows that read channels stay, and those of rows that make them go.
    mlp, heads = layer_list(model)[1].mlp, layer_list(model)[1].self_attn
    columns = 24 * 32 * mlp.down_proj.weight.element_size() if not is_int8(mlp.down_proj.weight) else 24 * 32
    rows = sum(stored_bytes(one.weight) for one in (mlp.gate_proj, mlp.up_proj)) // 2
    assert read({1: {"ffn_ratio": 0.5}}) == read({1: {"ffn_ratio": 0.5}}, "first") == columns + rows
    rows = sum(stored_bytes(one.weight) for one in (heads.q_proj, heads.k_proj, heads.v_proj)) // 2
    assert read({1: {"head_ratio": 0.5}}) == rows + 16 * 32 * (1 if is_int8(heads.o_proj.weight) else 4)


def test_what_cannot_be_quantised_or_divided_is_refused_by_name():
    with pytest.raises(ModelError, match="the decoder of GPT2LMHeadModel has no linear layers to quantise"):
        quantize(FAMILIES["gpt2"].build("sdpa"))
    with pytest.raises(ModelError, match="the decoder of GPT2LMHeadModel has no linear layers to quantise"):
        apply_policy(FAMILIES["gpt2"].build("sdpa"), Policy(**INT8))
    # Its linear layers have a forward of their own, which multiplies by the transposed weight.
    with pytest.raises(ModelError, match="the decoder of FalconForCausalLM has no linear layers to quantise"):
        quantize(FAMILIES["falcon"].build("sdpa"))
    other = FAMILIES["llama"].build("sdpa")
    quantize_(layer_list(other), Int8DynamicActivationInt8WeightConfig())
    assert quantization_of(other) == "Int8Tensor"
    with pytest.raises(PolicyMismatch, match="policy is for a model with int8 weights, the model has Int8Tensor"):
        apply_policy(other, Policy(**INT8))
    with pytest.raises(ModelError, match="LlamaForCausalLM is quantised already"):
        quantize(other)
    with pytest.raises(PolicyMismatch, match="gate_proj is quantised or of another build: its weights are Int8Tensor"):
        apply_policy(other, policy_of({1: {"ffn_ratio": 0.5}}))
    grouped = FAMILIES["llama"].build("sdpa")
    quantize_(layer_list(grouped), Int8WeightOnlyConfig(granularity=PerGroup(16), set_inductor_config=False))
    with pytest.raises(PolicyMismatch, match="down_proj.* with a scale for each group of numbers in a row"):
        apply_policy(grouped, policy_of({1: {"ffn_ratio": 0.5}}))
    for model in (other, grouped):
        with apply_policy(model, policy_of(SKIPS)):
            assert run(model, batch_of("llama").padded()).logits.isfinite().all()


def test_a_damaged_scale_is_found():
    model = int8("llama")
    layer_list(model)[2].mlp.up_proj.weight.scale[3] = float("nan")
    from skipsearch.policies.families.layers import refuse_infinite

    with pytest.raises(ModelError, match="1 weights of LlamaForCausalLM are not finite"):
        refuse_infinite(model)
    infinite = FAMILIES["llama"].build("sdpa")
    infinite.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("inf")
    with pytest.raises(ModelError, match="1 weights of LlamaForCausalLM cannot be quantised"):
        quantize(infinite)


def test_trained_weights_are_not_quantised():
    policy = policy_of(SKIPS).model_copy(update={**INT8, "weights": SimpleNamespace()})
    from skipsearch.policies.quantized.weights import quantized_swap

    with pytest.raises(PolicyError, match="trained weights are not quantised"):
        quantized_swap(FAMILIES["llama"].build("sdpa"), policy)


def test_products_that_the_counter_does_not_see_are_refused_by_name():
    unseen = torch.ao.quantization.quantize_dynamic(FAMILIES["llama"].build("sdpa"), {nn.Linear}, torch.qint8)
    with pytest.raises(EvaluatorError, match="the FLOPs of LlamaForCausalLM cannot be counted") as error:
        refuse_uncounted_weights(unseen)
    assert "found 0 for one token in a Linear, expected" in str(error.value)
    refuse_uncounted_weights(int8("llama"))
    refuse_uncounted_weights(FAMILIES["llama"].build("sdpa"))


def test_a_draft_with_int8_weights_shares_nothing_that_its_model_would_lose():
    model, batch = FAMILIES["llama"].build("sdpa"), batch_of("llama")
    dense, inputs = run(model, batch.padded()).logits, batch.alone(0)
    alone = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with apply_policy(model, policy_of(SKIPS).model_copy(update=INT8)):
        guesser = draft(model, policy_of({1: {"ffn": "skip"}}).model_copy(update=INT8))
        assert quantization_of(guesser) == "int8"
    assert torch.equal(run(model, batch.padded()).logits, dense)
    found = model.generate(**inputs, max_new_tokens=4, do_sample=False, assistant_model=guesser)
    assert torch.equal(found, alone) and quantization_of(model) == "none"
