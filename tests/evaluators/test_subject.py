"""A checkpoint that does not fit its configuration, or has weights that are no numbers, is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, TorchAoConfig

import tiny
from skipsearch.evaluators.subject import ModelSpec, load_subject
from skipsearch.policies.apply import apply_policy
from skipsearch.policies.choice import LayerChoice
from skipsearch.policies.errors import ModelError
from skipsearch.policies.policy import Policy
from skipsearch.policies.quantized.weights import quantization_of

MISSING = "model.layers.2.mlp.up_proj.weight"


def without(weights):
    return {name: weight for name, weight in weights.items() if name != MISSING}


def with_more(weights):
    return {**weights, "model.layers.9.mlp.up_proj.weight": torch.zeros(2, 2)}


def reshaped(weights):
    return {**weights, MISSING: weights[MISSING][:8].clone()}


def with_nan(weights):
    weights[MISSING][0, 0] = float("nan")
    return weights


CASES = {
    without: f"{MISSING}, missing in the checkpoint",
    with_more: "model.layers.9.mlp.up_proj.weight, in the checkpoint alone",
    reshaped: f"{MISSING} (found [8, 32], expected [48, 32]), of another shape",
    with_nan: f"{MISSING} has NaN or infinite numbers",
}


@pytest.mark.parametrize("change", CASES, ids=lambda change: change.__name__)
def test_a_damaged_checkpoint_is_refused_with_its_tensors(tmp_path, change):
    path = tiny.tiny_llama(tmp_path)
    file = path / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(ModelError) as error:
        load_subject(ModelSpec(id=str(path), device="cpu"))
    assert CASES[change] in error.value.details and error.value.hint


def test_more_layers_than_weights_are_refused_and_a_tied_head_is_not_missing(tmp_path):
    path = tiny.tiny_llama(tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    weights = load_file(path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    assert load_subject(ModelSpec(id=str(path), device="cpu")).model.config.tie_word_embeddings
    (path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True, "num_hidden_layers": 9}))
    with pytest.raises(ModelError, match="45 tensors are missing in the checkpoint") as error:
        load_subject(ModelSpec(id=str(path), device="cpu"))
    assert error.value.details[-1] == "and 25 more"


def test_a_checkpoint_that_is_quantised_loads_as_it_is_or_names_the_package_that_it_needs(tmp_path):
    path = tiny.tiny_llama(tmp_path)
    config = TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
    saved = AutoModelForCausalLM.from_pretrained(path, quantization_config=config, device_map={"": "cpu"})
    saved.save_pretrained(path)
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    with torch.no_grad():
        expected = saved(**inputs).logits
        for kind in ("none", "int8"):
            model = load_subject(ModelSpec(id=str(path), device="cpu", quantization=kind)).model
            assert quantization_of(model) == "int8" and torch.equal(model(**inputs).logits, expected)
            with apply_policy(model, Policy(layers={1: LayerChoice(ffn_ratio=0.5)})):
                assert not torch.equal(model(**inputs).logits, expected)
    plain = json.loads((tiny.tiny_llama(tmp_path / "other") / "config.json").read_text())
    plain["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False}
    (tmp_path / "other" / "llama" / "config.json").write_text(json.dumps(plain))
    with pytest.raises(ModelError, match="llama needs a package that is missing"):
        load_subject(ModelSpec(id=str(tmp_path / "other" / "llama"), device="cpu"))
