"""Models that PEFT wraps: a policy holds through the wrapper and the model inside, and is refused a second time."""

import copy

import peft
import pytest
import torch
from slow_widths import units
from torch import nn
from transformers.pytorch_utils import Conv1D

from families import FAMILIES, PAD, Batch, layer_list, run
from skipsearch import Policy, apply_policy
from skipsearch.policies.errors import PolicyError
from skipsearch.policies.rankings.scores import Scores, ranking_file, remember

POLICIES = {
    "skip": Policy(layers={1: {"ffn": "skip"}, 2: {"attention": "skip"}}),
    "phase": Policy(layers={1: {"ffn": "skip", "phase": "decode"}, 2: {"attention": "skip", "phase": "prefill"}}),
    "ratio": Policy(layers={1: {"token_ratio": 0.5}, 2: {"token_ratio": 0.25, "ffn": "skip"}}),
    "widths": Policy(
        layers={1: {"ffn_ratio": 0.5, "tokens": "image"}, 2: {"head_ratio": 0.5, "ffn_ratio": 0.25}},
        width_selection={"ranking": "first"},
    ),
}
ADAPTER = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], exclude_modules=r".*vision.*")


def adapted(family, config=ADAPTER):
    """A model inside a LoRA adapter with random weights, and the same model with the adapter merged."""
    wrapped = peft.get_peft_model(family.build("sdpa"), config).eval()
    torch.manual_seed(1)
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            weight.data = 0.3 * torch.randn_like(weight)
    return wrapped, copy.deepcopy(wrapped).merge_and_unload()


def generated(model, inputs):
    out = model.generate(
        **inputs, max_new_tokens=4, do_sample=False, pad_token_id=PAD, return_dict_in_generate=True, output_logits=True
    )
    return torch.stack(out.logits)


@pytest.mark.parametrize("held", ["wrapper", "inside"])
@pytest.mark.parametrize(
    ("name", "policy"),
    [("llama", "skip"), ("llama", "phase"), ("llava", "skip"), ("llava", "ratio"), ("llava", "widths")],
)
def test_a_policy_under_an_adapter_computes_what_it_does_on_the_merged_model(name, policy, held):
    family = FAMILIES[name]
    rows = [(2, "image", 3), (4, "image", 2)] if family.image_tokens else [(6,), (9,)]
    inputs = Batch.of(family, rows).padded()
    wrapped, merged = adapted(family)
    dense = generated(wrapped, inputs)
    with apply_policy(merged, POLICIES[policy]):
        wanted = generated(merged, inputs)
    handle = apply_policy(wrapped if held == "wrapper" else wrapped.base_model.model, POLICIES[policy])
    torch.testing.assert_close(generated(wrapped, inputs), wanted)
    assert not torch.allclose(dense, wanted)
    with pytest.raises(PolicyError, match="already runs under a policy"):
        apply_policy(wrapped.base_model.model if held == "wrapper" else wrapped, POLICIES[policy])
    handle.remove()
    torch.testing.assert_close(generated(wrapped, inputs), dense)


@pytest.mark.parametrize("name", ["phi3", "gpt2", "opt", "qwen2-moe", "neox", "minicpm3"])
def test_a_part_of_an_adapter_runs_beside_a_part_of_its_layer(name):
    family = FAMILIES[name]
    inputs = Batch.of(family, [(6,), (9,)]).padded()
    model = family.build("sdpa")
    inside = {id(part) for layer in layer_list(model) for part in layer.modules()}
    linear = [key for key, part in model.named_modules() if id(part) in inside and isinstance(part, nn.Linear | Conv1D)]
    # A router's choice of experts may flip by rounding.
    targets = [key for key in linear if not key.endswith(("mlp.gate", "router"))]
    wrapped, merged = adapted(family, peft.LoraConfig(r=4, target_modules=targets))
    shares = {1: {"ffn_ratio": 0.5}, 2: {"ffn_ratio": 0.25}}
    policies = [Policy(layers=shares | {3: {"head_ratio": 0.5}}, width_selection={"ranking": "first"})]
    draw = torch.Generator().manual_seed(0)
    channels = {index: sum(unit.channels for unit in units(layer_list(model)[index])) for index in shares}
    scores = Scores({index: torch.rand(count, generator=draw) for index, count in channels.items()})
    drawn = {"ranking": "energy", "file": "drawn.safetensors", "sha256": remember(ranking_file(scores, {}))}
    policies.append(Policy(layers=shares, width_selection=drawn))
    before = {key: value.clone() for key, value in wrapped.state_dict().items()}
    for policy in policies:
        with apply_policy(merged, policy):
            wanted = run(merged, inputs).logits
        with apply_policy(wrapped, policy):
            torch.testing.assert_close(run(wrapped, inputs).logits, wanted, rtol=1e-4, atol=1e-4)
            assert all(torch.equal(value, before[key]) for key, value in wrapped.state_dict().items())
        assert all(torch.equal(value, before[key]) for key, value in wrapped.state_dict().items())
