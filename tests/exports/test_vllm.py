"""Folders for vLLM: what is in them, how they are compared, and vLLM itself where an environment has it."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import transformers as t
from configurations import EXPERTS

from families import IMAGE, LAYERS, batch_of, built
from skipsearch import Policy
from skipsearch.exports.export import export
from skipsearch.exports.reference import Reference
from skipsearch.exports.target import Options, Source
from skipsearch.exports.vllm import files
from skipsearch.exports.vllm.plugin import skipped
from skipsearch.exports.vllm.target import SCRIPT, VllmFolder, config_value, difference, text_rows
from skipsearch.policies.errors import ExportError

LAYER, ATTENTION, FFN = {"attention": "skip", "ffn": "skip"}, {"attention": "skip"}, {"ffn": "skip"}
SKIPS = Policy.model_validate({"layers": {0: ATTENTION, 1: FFN, 3: LAYER}})
PYTHON = os.environ.get("SKIPSEARCH_VLLM_PYTHON")


@pytest.fixture
def no_probe(monkeypatch):
    monkeypatch.setattr("skipsearch.exports.vllm.target.require_vllm", lambda python: None)


def saved(folder: Path) -> Source:
    model = built("llama", "sdpa")
    model.save_pretrained(folder, max_shard_size="20KB")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_text("weights of another format")
    return Source(model, id=str(folder))


def test_the_weights_of_a_folder_are_linked_and_its_configuration_gets_the_key(tmp_path, no_probe):
    source, out = saved(tmp_path / "model"), tmp_path / "out"
    out.mkdir()
    notes = VllmFolder().write(SKIPS, source, out)
    assert notes[0].startswith("the weights are hard links") and "2 layers get no cache" in notes[1]
    weights = sorted(file.name for file in (tmp_path / "model").glob("*.safetensors"))
    assert len(weights) > 1
    assert all((out / name).samefile(tmp_path / "model" / name) for name in weights)
    assert {file.name for file in out.iterdir()} == {
        *weights, "config.json", "model.safetensors.index.json", "generation_config.json", "tokenizer_config.json",
        "hf_overrides.json",
    }  # fmt: skip
    value = {"num_layers": LAYERS, "layers": {"0": ATTENTION, "1": FFN, "3": LAYER}}
    assert json.loads((out / "hf_overrides.json").read_text()) == {"skipsearch": value}
    config = json.loads((out / "config.json").read_text())
    assert config.pop("skipsearch") == value
    assert config == json.loads((tmp_path / "model" / "config.json").read_text())
    assert skipped(value) == {0: {"attention"}, 1: {"ffn"}, 3: {"attention", "ffn"}}


def test_another_disk_gets_a_copy_and_the_note_says_so(tmp_path, no_probe, monkeypatch):
    def refuse(*paths):
        raise OSError("another disk")

    source, out = saved(tmp_path / "model"), tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(files.os, "link", refuse)
    assert VllmFolder().write(SKIPS, source, out)[0].startswith("the weights are a second copy")
    assert t.AutoModelForCausalLM.from_pretrained(out).num_parameters() == source.model.num_parameters()


@pytest.mark.parametrize("lost", [None, "config.json", "model-00002-of-"])
def test_a_model_without_all_its_files_is_saved_whole(tmp_path, no_probe, lost):
    source, out = saved(tmp_path / "model"), tmp_path / "out"
    out.mkdir()
    if lost is None:
        source = Source(source.model, id="skipsearch/in-no-cache")
    else:
        next(file for file in (tmp_path / "model").iterdir() if file.name.startswith(lost)).unlink()
    assert VllmFolder().write(SKIPS, source, out)[0].startswith("the weights are a copy of the dense model's")
    read = t.AutoModelForCausalLM.from_pretrained(out)
    assert read.config.skipsearch == config_value(SKIPS, LAYERS) and not hasattr(source.model.config, "skipsearch")
    assert all(torch.equal(a, b) for a, b in zip(read.parameters(), source.model.parameters(), strict=True))


def test_the_cache_of_the_hub_is_found(tmp_path, monkeypatch):
    source = saved(tmp_path / "model")
    monkeypatch.setattr(files, "cached", lambda name, revision: {"one/model": tmp_path / "model"}.get(name))
    assert files.checkpoint_folder(Source(source.model, id="one/model")) == tmp_path / "model"
    assert files.checkpoint_folder(Source(source.model, id="another/model")) is None


@pytest.mark.parametrize(
    ("layers", "reasons"),
    [
        ({0: ATTENTION, 1: FFN, 3: LAYER}, []),
        ({1: {"wiring": "parallel"}, 2: FFN}, ["no parallel in layer 1"]),
        ({1: {"token_ratio": 0.5}}, ["no token_ratio 0.5 in layer 1"]),
        ({1: {**FFN, "phase": "decode"}, 2: {**FFN, "phase": "decode"}}, ["no skip_ffn (decode) in layer 1, 2"]),
        ({1: {**ATTENTION, "tokens": "image"}}, ["no skip_attention (image) in layer 1"]),
        (dict.fromkeys(range(LAYERS), ATTENTION), ["the policy skips every attention"]),
    ],
)
def test_choices_that_vllm_cannot_run_are_named(layers, reasons):
    found = VllmFolder().can(Policy.model_validate({"layers": layers}), Source(built("llava", "sdpa")))
    assert len(found) == len(reasons) and all(part in line for part, line in zip(reasons, found, strict=True))


def test_the_commands_that_load_it():
    source = Source(built("llama", "sdpa"), id="meta/llama", revision="v1")
    assert VllmFolder().load_lines(source, "out")[1:] == [
        "vllm serve out --dtype float32",
        'vllm serve meta/llama --revision v1 --dtype float32 --hf-overrides "$(cat out/hf_overrides.json)"  # the same',
    ]


def test_a_missing_tool_or_plug_in_is_said_before_anything_is_written(tmp_path):
    source = saved(tmp_path / "model")
    with pytest.raises(ExportError, match="no vLLM in") as failure:
        export(SKIPS, source, VllmFolder(), tmp_path / "out")
    assert "--python" in failure.value.hint
    with pytest.raises(ExportError, match="the interpreter of --python does not run"):
        export(SKIPS, source, VllmFolder(Options(python=tmp_path / "python")), tmp_path / "out")
    # An interpreter that has vLLM and not the plug-in.
    place = tmp_path / "place"
    (place / "vllm").mkdir(parents=True)
    (place / "vllm" / "__init__.py").touch()
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nshift\ncd {place}\nPYTHONPATH={place} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    with pytest.raises(ExportError, match="vLLM lacks the plug-in") as failure:
        export(SKIPS, source, VllmFolder(Options(python=python)), tmp_path / "out")
    assert failure.value.hint == f"install it: {python} -m pip install --no-deps skipsearch"
    assert not (tmp_path / "out").exists()


def listed(reference):
    """What vLLM would list: the likeliest tokens at each position."""
    found = []
    for output in text_rows(reference).outputs:
        likeliest = torch.log_softmax(output["logits"], -1).topk(5)
        found.append({"ids": likeliest.indices, "log_probabilities": likeliest.values, "tokens": output["tokens"]})
    return found


def test_log_probabilities_are_compared_without_padding_and_images():
    model = built("llava", "sdpa")
    text = torch.randint(1, IMAGE - 2, (2, 9))
    padded = {"input_ids": text, "attention_mask": torch.tensor([[0] * 3 + [1] * 6, [1] * 9])}
    reference = Reference.of(SKIPS, Source(model, prompts=[batch_of("llava").padded(), padded]))
    rows = text_rows(reference)
    assert [prompt["input_ids"].tolist() for prompt in rows.prompts] == [[text[1].tolist()]]
    found = listed(reference)
    assert difference(rows, found) < 1e-6
    found[0]["log_probabilities"][0, 4, 2] += 1
    assert difference(rows, found) > 0.05
    found = listed(reference)
    found[0]["tokens"] = found[0]["tokens"] + 1
    assert difference(rows, found) == float("inf")


def test_prompts_that_all_have_an_image_are_refused():
    reference = Reference.of(Policy(), Source(built("llava", "sdpa"), prompts=[batch_of("llava").padded()]))
    with pytest.raises(ExportError, match="compared on text"):
        text_rows(reference)


# vLLM's kernels for CPUs take heads of 32 numbers and more.
BASE = {
    "vocab_size": 199, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.15, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WINDOWS = ["sliding_attention", "sliding_attention", "full_attention"] * 2
VISION = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
}
REAL = {
    "llama": lambda: t.LlamaConfig(**BASE),
    "qwen3": lambda: t.Qwen3Config(**BASE, head_dim=32),
    "gemma3": lambda: t.Gemma3TextConfig(
        **BASE, head_dim=32, query_pre_attn_scalar=32, sliding_window=16, layer_types=WINDOWS
    ),
    "qwen3-moe": lambda: t.Qwen3MoeConfig(**BASE, **EXPERTS, head_dim=32),
    "mixtral": lambda: t.MixtralConfig(**BASE, num_local_experts=4),
    # Of the models that take images, one whose module in vLLM needs no torchvision.
    "idefics3": lambda: t.Idefics3Config(
        vision_config={**VISION, "patch_size": 4}, text_config=t.LlamaConfig(**BASE).to_dict(), image_token_id=198,
        tie_word_embeddings=False,
    ),
}  # fmt: skip
# One without and one with norms of queries and keys, and one with windows.
COMPILED = ("llama", "qwen3", "gemma3")
REAL_SKIPS = Policy.model_validate({"layers": {0: ATTENTION, 2: ATTENTION, 3: FFN, 5: LAYER}})


def real_source(name: str) -> Source:
    torch.manual_seed(0)
    config = REAL[name]()
    auto = t.AutoModelForImageTextToText if name == "idefics3" else t.AutoModelForCausalLM
    model = auto.from_config(config).eval()
    for parameter, weight in model.named_parameters():
        if "norm" in parameter:
            weight.data += 0.3 * torch.randn_like(weight)
    return Source(model)


@pytest.mark.soak
@pytest.mark.skipif(PYTHON is None, reason="SKIPSEARCH_VLLM_PYTHON names no interpreter with vLLM and the plug-in")
@pytest.mark.parametrize("name", REAL)
def test_vllm_computes_what_the_model_computes(name, tmp_path):
    source = real_source(name)
    done = export(REAL_SKIPS, source, VllmFolder(Options(python=Path(PYTHON))), tmp_path / "out")
    assert done.difference <= 1e-5
    if name not in COMPILED:
        return
    rows = text_rows(Reference.of(REAL_SKIPS, source))
    compiled = rows.run(SCRIPT, str(done.folder), "float32", "--compiled", python=Path(PYTHON))
    assert difference(rows, compiled) <= 1e-5
    # The same folder with a choice that vLLM cannot run.
    config = json.loads((done.folder / "config.json").read_text())
    config["skipsearch"]["layers"]["1"] = {"token_ratio": 0.5}
    (done.folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError) as failure:
        rows.run(SCRIPT, str(done.folder), "float32", python=Path(PYTHON))
    assert "layer 1: token_ratio 0.5" in str(failure.value)
