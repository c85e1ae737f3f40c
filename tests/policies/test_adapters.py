"""Adapters in place of attentions: against their formula in every family, frozen and folded, in files and caches."""

from __future__ import annotations

import copy

import pytest
import torch
from contract import ANSWER, answered, check, close, told
from reference import reference
from safetensors.torch import load_file, save_file
from test_policy_contract import FIRST_CASES, sample
from torch.utils.flop_counter import FlopCounterMode

from families import FAMILIES, LAYERS, WITH_IMAGES, batch_of, built, layer_list, run
from skipsearch import Policy, apply_policy
from skipsearch.policies.caches.cache import kv_cache_bytes
from skipsearch.policies.caches.join import joined
from skipsearch.policies.choice import LayerChoice
from skipsearch.policies.errors import ModelError, PolicyError, PolicyMismatch
from skipsearch.policies.families.layers import decoder_layers
from skipsearch.policies.trained.adapters import Adapters
from skipsearch.policies.trained.files import TrainedWeights
from skipsearch.policies.trained.folded import fold

ADAPTER, SKIP = {"attention": "adapter"}, {"attention": "skip"}
EVERYWHERE = dict.fromkeys(range(LAYERS), ADAPTER)
BESIDE = {0: {**ADAPTER, "ffn_ratio": 0.5}, 1: {"ffn": "skip", "phase": "decode"}, 3: ADAPTER}
BESIDE_IMAGES = {
    0: {"token_ratio": 0.5},
    1: ADAPTER,
    2: {"token_ratio": 0.4, "ffn": "skip", "tokens": "image"},
    3: ADAPTER,
}


def policy_of(name, layers):
    """The policy, without adapters in layers that mix tokens in another way."""
    family = FAMILIES[name]
    other = family.linear + family.cross
    kept = {number: one for number, one in layers.items() if one.get("attention") != "adapter" or number not in other}
    if name == "gpt-oss":
        kept = {
            number: {key: value for key, value in one.items() if key != "ffn_ratio"} for number, one in kept.items()
        }
    return Policy.model_validate({"model": {"num_layers": LAYERS}, "layers": kept})


def drawn(model, policy, seed=0, frozen=False):
    """Adapters whose weights are drawn, large enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    adapters = Adapters.of(model, policy, 6)
    for _, adapter in adapters.each:
        for parameter in adapter.parameters():
            parameter.data.normal_(0, 0.3, generator=generator)
        adapter.gate.weight.data *= 30
        if frozen:
            gate = torch.rand(1, generator=generator)
            adapter.frozen = torch.cat([torch.randn(6, generator=generator), gate, 1 - gate])
    return adapters.requires_grad_(False)


@pytest.mark.parametrize(("name", "attention"), sample(FIRST_CASES, 4, 1))
def test_adapters_compute_what_their_formula_says(name, attention):
    model, batch = built(name, attention), batch_of(name)
    sees = name in WITH_IMAGES and name != "mllama"
    for number, layers in enumerate((EVERYWHERE, BESIDE_IMAGES if sees else BESIDE)):
        policy = policy_of(name, layers)
        # One of the two policies has frozen adapters, in every other family the first one.
        frozen = (number + FIRST_CASES.index((name, attention)) // 4) % 2 == 0
        check(model, batch, policy, adapters=drawn(model, policy, number, frozen))


@pytest.mark.parametrize(("name", "attention"), sample(FIRST_CASES, 8))
def test_a_folded_ffn_computes_what_the_adapter_and_the_ffn_do(name, attention):
    model, policy = built(name, attention), policy_of(name, EVERYWHERE)
    adapters, before = drawn(model, policy, frozen=True), copy.deepcopy(model.state_dict())
    adapters = copy.deepcopy(adapters)
    inputs = batch_of(name).padded("left")
    with apply_policy(model, policy, adapters=adapters) as handle:
        folded = {one.layer.index for one in handle._wrapped if one.composition.folded is not None}
        found = run(model, inputs).logits
        for one in handle._wrapped:
            one.composition.folded = None
        close(found, run(model, inputs).logits)
    dense = {
        layer.index for layer in decoder_layers(model) if not any("expert" in n for n in layer.sublayers.ffn_children)
    }
    assert folded == dense & {index for index, _ in adapters.each}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for index in folded:
        sublayers, adapter = decoder_layers(model)[index].sublayers, adapters.of_layer(index)
        x = torch.randn(2, 5, model.config.get_text_config().hidden_size)
        with torch.no_grad():
            wanted = sublayers.run_ffn_modules(adapter(x, adapter.constants))
            close(sublayers.run_ffn_modules(x, fold(sublayers, adapter).parts()), wanted, 1e-6)


def test_an_adapter_without_weights_changes_nothing():
    model, inputs = built("llama", "sdpa"), batch_of("llama").padded("left")
    policy = policy_of("llama", EVERYWHERE)
    with apply_policy(model, policy_of("llama", dict.fromkeys(range(LAYERS), SKIP))):
        expected = run(model, inputs).logits
    with apply_policy(model, policy, adapters=Adapters.of(model, policy, 8)):
        assert torch.equal(run(model, inputs).logits, expected)


def test_gradients_of_adapters_are_those_of_their_formula():
    model, batch = FAMILIES["llava"].build("sdpa").double(), batch_of("llava")
    policy = policy_of("llava", {0: ADAPTER, 1: {"token_ratio": 0.5}, 2: ADAPTER})
    adapters = drawn(model, policy).double().requires_grad_(True)
    parameters = list(adapters.parameters())
    inputs = {name: one.double() if one.is_floating_point() else one for name, one in batch.alone(0).items()}
    end, direction = len(batch.ids[0]), torch.randn(len(batch.ids[0]), 100, dtype=torch.float64)
    with apply_policy(model, policy, adapters=adapters):
        logits = run(model, inputs, gradients=True, use_cache=False).logits[0]
        found = torch.autograd.grad((logits * direction).sum(), parameters)
    logits = reference(model, batch.family, policy, inputs, end, gradients=True, adapters=adapters)
    wanted = torch.autograd.grad((logits * direction).sum(), parameters)
    norm = torch.stack([one.norm() for one in wanted]).norm()
    for one, other in zip(found, wanted, strict=True):
        assert one.norm() > 0 and (one - other).norm() < 1e-6 * norm


def test_gradients_pass_a_frozen_adapter_to_the_ffn():
    model, policy = FAMILIES["llama"].build("sdpa"), policy_of("llama", {1: ADAPTER})
    inputs, weight = batch_of("llama").alone(0), layer_list(model)[1].mlp.up_proj.weight
    with apply_policy(model, policy, adapters=drawn(model, policy, frozen=True)):
        run(model, inputs, gradients=True).logits.sum().backward()
        assert weight.grad.norm() > 0
        before = run(model, inputs).logits
        with torch.no_grad():
            weight.mul_(2.0)
        changed = run(model, inputs).logits
    with apply_policy(model, policy, adapters=drawn(model, policy, frozen=True)):
        assert not torch.equal(before, changed) and torch.equal(changed, run(model, inputs).logits)


def test_a_module_that_is_replaced_under_a_folded_adapter_is_refused():
    model, policy, inputs = (
        FAMILIES["llama"].build("sdpa"),
        policy_of("llama", {1: ADAPTER}),
        batch_of("llama").alone(0),
    )
    mlp = layer_list(model)[1].mlp
    with apply_policy(model, policy, adapters=drawn(model, policy, frozen=True)):
        mlp.down_proj = copy.deepcopy(mlp.down_proj)
        with pytest.raises(ModelError, match=r"modules were replaced(.|\n)*down_proj of a LlamaMLP"):
            run(model, inputs)


def flops_of(model, policy, adapters=None):
    counter = FlopCounterMode(display=False)
    with apply_policy(model, policy, adapters=adapters), counter:
        run(model, batch_of("llama").alone(0))
    return counter.get_total_flops()


def test_a_folded_adapter_costs_nothing_and_another_its_products():
    model, policy, rank = built("llama", "sdpa"), policy_of("llama", {1: ADAPTER}), 6
    skipped = flops_of(model, policy_of("llama", {1: SKIP}))
    assert flops_of(model, policy, drawn(model, policy, frozen=True)) == skipped
    width, tokens = model.config.hidden_size, len(batch_of("llama").ids[0])
    each = 2 * width * rank + 2 * width * rank  # down, and up by both experts
    once = 2 * width * rank + 2 * width * 2 + 2 * 2 * width  # the mean, the gate, and the biases by the gate
    assert flops_of(model, policy, drawn(model, policy)) == skipped + tokens * each + once


def test_the_cache_has_what_the_adapter_needs_of_the_prompt_and_nothing_else():
    model, inputs = built("llama", "sdpa"), batch_of("llama").alone(0)
    policy = policy_of("llama", EVERYWHERE)
    for frozen, numbers in ((False, 6 + 2), (True, 0)):
        with apply_policy(model, policy, adapters=drawn(model, policy, frozen=frozen)):
            cache = run(model, inputs).past_key_values
        assert kv_cache_bytes(cache) == LAYERS * 4 * numbers
    cache.reset()
    assert all(layer.prompt is None for layer in cache.layers)


def test_a_static_cache_and_joined_caches_decode_as_rows_do():
    model, batch = built("llama", "sdpa"), batch_of("llama")
    policy, inputs = policy_of("llama", {0: ADAPTER, 2: ADAPTER}), batch.padded("left")
    with apply_policy(model, policy, adapters=drawn(model, policy)):
        expected = told(model, inputs)
        fixed = told(model, inputs, cache_implementation="static")
        beams = told(model, inputs, num_beams=3)
        fixed_beams = told(model, inputs, num_beams=3, cache_implementation="static")
        rows = [batch.alone(row) for row in range(2)]
        caches = [run(model, row).past_key_values for row in rows]
        length = max(len(ids) for ids in batch.ids[:2])
        both = joined(*caches, (1, 1))
        real = torch.stack([torch.cat([torch.zeros(length - len(i)), torch.ones(len(i) + 1)]) for i in batch.ids[:2]])
        places = torch.tensor([[len(ids)] for ids in batch.ids[:2]])
        ids = torch.tensor([[5], [6]])
        step = {"input_ids": ids, "attention_mask": real.long(), "position_ids": places}
        logits = run(model, step, past_key_values=both).logits
    longer = answered(batch, torch.cat([ids, torch.zeros(len(batch.ids) - 2, 1)]).long().expand(-1, ANSWER))
    for row, own in enumerate(batch.ids[:2]):
        whole = reference(model, batch.family, policy, longer.alone(row), len(own), adapters=drawn(model, policy))
        close(logits[row, 0], whole[len(own)])
    assert torch.equal(fixed.sequences, expected.sequences) and torch.equal(fixed_beams.sequences, beams.sequences)
    close(torch.stack(fixed.logits), torch.stack(expected.logits))


def test_a_prompt_in_pieces_is_refused_and_a_frozen_adapter_takes_it():
    model, inputs = built("llama", "sdpa"), batch_of("llama").alone(0)
    policy = policy_of("llama", {1: ADAPTER})
    with apply_policy(model, policy, adapters=drawn(model, policy)):
        with pytest.raises(ModelError, match=r"a prompt in pieces cannot be used(.|\n)*more of it is to come"):
            told(model, inputs, prefill_chunk_size=4)
        cache = run(model, inputs).past_key_values
        with pytest.raises(ModelError, match=r"nothing says where the prompt ends"):
            run(model, inputs, past_key_values=cache)
        longer = {"input_ids": torch.cat([inputs["input_ids"]] * 2, dim=1)}
        with pytest.raises(ModelError, match=r"a prompt in pieces cannot be used(.|\n)*an earlier forward read a part"):
            told(model, longer, past_key_values=cache)
        with pytest.raises(ModelError, match=r"this attention mask cannot be used(.|\n)*a Tensor of 3 dimensions"):
            run(model, {"input_ids": inputs["input_ids"], "attention_mask": torch.ones(1, 9, 9)})
    cache = run(model, inputs).past_key_values
    with (
        apply_policy(model, policy, adapters=drawn(model, policy)),
        pytest.raises(ModelError, match="needs the prompt"),
    ):
        run(model, {"input_ids": torch.tensor([[3]])}, past_key_values=cache)
    with apply_policy(model, policy, adapters=drawn(model, policy, frozen=True)):
        whole = told(model, inputs)
        assert torch.equal(told(model, inputs, prefill_chunk_size=4).sequences, whole.sequences)


def test_the_file_beside_a_policy_has_its_adapters(tmp_path):
    model, inputs = built("llava", "sdpa"), batch_of("llava").padded("left")
    policy = policy_of("llava", {1: ADAPTER, 3: {**ADAPTER, "ffn_ratio": 0.5}})
    with pytest.raises(PolicyError, match="none were trained"):
        apply_policy(model, policy)
    save_file({}, tmp_path / "trained.safetensors")
    for frozen in (False, True):
        adapters = drawn(model, policy, frozen=frozen)
        adapters.save(tmp_path)
        weights = TrainedWeights.of(tmp_path, "safetensors", adapters=True)
        policy.model_copy(update={"weights": weights}).save(tmp_path / "policy.yaml")
        with apply_policy(model, policy, adapters=adapters):
            expected = run(model, inputs).logits
        with apply_policy(model, tmp_path):
            assert torch.equal(run(model, inputs).logits, expected)
    fewer = Policy.load(tmp_path).model_copy(update={"layers": {1: policy.layers[1]}})
    with pytest.raises(
        PolicyMismatch, match=r"adapters in .* do not fit(.|\n)*3\.down\.weight: in the file or the policy alone"
    ):
        apply_policy(model, fewer)
    tensors = load_file(tmp_path / "adapters.safetensors")
    save_file(tensors | {"1.up": torch.zeros(2, 3, 6)}, tmp_path / "adapters.safetensors")
    with pytest.raises(PolicyError, match="other weights than its policy"):
        apply_policy(model, tmp_path)
    weights = TrainedWeights.of(tmp_path, "safetensors", adapters=True)
    policy.model_copy(update={"weights": weights}).save(tmp_path / "policy.yaml")
    with pytest.raises(PolicyMismatch, match=r"1\.up: found \[2, 3, 6\], the model needs"):
        apply_policy(model, tmp_path)


@pytest.mark.parametrize(
    "key",
    [
        {"ffn": "skip"},
        {"phase": "prefill"},
        {"tokens": "image"},
        {"token_ratio": 0.5},
        {"window": 1},
        {"wiring": "pair"},
        {"wiring": "parallel"},
        {"head_ratio": 0.5},
    ],
)
def test_other_keys_beside_an_adapter_are_refused(key):
    ((name, value),) = key.items()
    with pytest.raises(ValueError, match=f"found {name}: {value} beside attention: adapter"):
        LayerChoice.model_validate({**ADAPTER, **key})


def test_what_else_adapters_cannot_do_is_refused():
    with pytest.raises(ValueError, match="found reselect: once beside attention: adapter in layer 1"):
        Policy.model_validate(
            {"layers": {0: {"token_ratio": 0.5}, 1: ADAPTER}, "token_selection": {"reselect": "once"}}
        )
    for name in ("lfm2", "mllama"):
        family, model = FAMILIES[name], built(name, "eager" if name == "mllama" else "sdpa")
        other = (family.linear + family.cross)[0]
        policy = Policy.model_validate({"layers": {other: ADAPTER}})
        with pytest.raises(PolicyMismatch, match="an adapter takes the place of an attention between tokens"):
            apply_policy(model, policy, adapters=drawn(model, policy))


def test_a_mixture_of_experts_is_not_folded():
    model = built("mixtral", "sdpa")
    policy = policy_of("mixtral", {1: ADAPTER})
    assert fold(decoder_layers(model)[1].sublayers, drawn(model, policy, frozen=True).of_layer(1)) is None


def test_equal_policies_have_equal_fingerprints():
    adapted = Policy(layers={1: ADAPTER})
    assert adapted.fingerprint == Policy(layers={1: {**ADAPTER, "ffn": "run"}}).fingerprint
    assert adapted.fingerprint != Policy(layers={1: SKIP}).fingerprint
    assert "adapter" in adapted.to_yaml() and Policy.model_validate(adapted.document()) == adapted
