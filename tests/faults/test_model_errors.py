"""Errors of a model's own code are told from too little memory, and from mistakes in skipsearch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as t
from torch import nn

import tiny
from skipsearch.evaluators.subject import ModelSpec
from skipsearch.exports.graph.targets import TorchExport
from skipsearch.exports.graph.trace import trace
from skipsearch.exports.target import Source
from skipsearch.exports.vllm.surgery import refuse_unknown_build
from skipsearch.policies.errors import ExportError, ModelError
from skipsearch.policies.families.layers import decoder_layers, layer_list, verify_layers
from skipsearch.policies.families.model_errors import is_out_of_memory
from skipsearch.policies.policy import Policy
from skipsearch.search import cli
from skipsearch.search.init import read_model, small_model
from skipsearch.search.init.allowed import OPTIONAL, support_of, under_test
from skipsearch.search.models import run

HUGE = 1 << 50
ODD = ("transformers.models.odd", "raise ValueError('odd')")
MEMORY = {
    "device": ("torch", "raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20 GiB')"),
    "allocator": ("torch", f"torch.empty({HUGE})"),
    "host": ("transformers.models.odd", "raise MemoryError"),
}
MISTAKE = ("skipsearch.policies.runtime.odd", "misspelt")
SKIP = Policy.model_validate({"layers": {0: {"ffn": "skip"}}})


def raising(module, statement):
    """A function of a module that only runs a statement."""
    room = {"__name__": module, "torch": torch}
    exec(f"def odd(*arguments, **options): {statement}", room)
    return room["odd"]


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = tiny.tiny_llava(tmp_path_factory.mktemp("models"))
    return small_model.small_model(t.AutoConfig.from_pretrained(folder), "llava").model, str(folder)


class Once:
    """Puts a function before the next forward of a model alone."""

    def __init__(self, model, odd):
        self.odd, self.handle = odd, model.register_forward_pre_hook(self)

    def __call__(self, *arguments):
        self.handle.remove()
        self.odd()


def tried(model, path, odd, patch):
    tested, _ = under_test(model, decoder_layers(model), "mine")
    Once(model, odd)
    return tested.problem(SKIP)


def tried_on_grids(model, path, odd, patch):
    tested, _ = under_test(model, decoder_layers(model), "mine")
    Once(model, odd)
    return support_of(tested, OPTIONAL["window"]).reason


def tried_with_images(model, path, odd, patch):
    layers = decoder_layers(model)
    Once(model, odd)
    return under_test(model, layers, "mine")[1]


def tried_with_text(model, path, odd, patch):
    layers, hook = decoder_layers(model), model.register_forward_pre_hook(lambda *_: odd())
    try:
        return under_test(model, layers, "mine")[1]
    finally:
        hook.remove()


def taken_apart(model, path, odd, patch):
    layers = [*layer_list(model)]
    Once(layers[0], odd)
    return str(verify_layers(model, layers))


def made_small(model, path, odd, patch):
    patch.setattr(small_model, "made_small", odd)
    return str(small_model.small_model(model.config, "mine"))


def configured(model, path, odd, patch):
    patch.setattr(read_model, "read_config", odd)
    return str(read_model.read_model(ModelSpec(id=path)))


def processed(model, path, odd, patch):
    patch.setattr(read_model, "read_processor", odd)
    return read_model.read_model(ModelSpec(id=path)).unread


def counted(model, path, odd, patch):
    patch.setattr(run, "read_config", odd)
    return str(run.configured_layers(ModelSpec(id=path)))


def traced(model, path, odd, patch):
    hook = model.register_forward_pre_hook(lambda *_: odd())
    try:
        return str(trace(SKIP, Source(model)))
    finally:
        hook.remove()


def converted(model, path, odd, patch):
    patch.setattr(TorchExport, "save", odd)
    return str(TorchExport().write(SKIP, Source(model), Path(path)))


def surgery(model, path, odd, patch):
    class Layer(nn.Module):
        def forward(self, positions, hidden_states, residual):
            return odd()

    layer = Layer()
    layer.norm, layer.mlp = nn.LayerNorm(8), nn.Linear(8, 8)
    return str(refuse_unknown_build(nn.ModuleList([layer]), 0, ["mlp"]))


# What is said where a model raises a ValueError of its own.
ODD_MODEL = {
    tried: "the model fails under it: ValueError: odd",
    tried_on_grids: "the small model does not run on a whole grid of image tokens: ValueError: odd",
    tried_with_images: "the small model does not run on image tokens without an image: ValueError: odd",
    tried_with_text: "mine does not generate from token ids, so no choice can be tried",
    taken_apart: "the layers of LlavaForConditionalGeneration cannot be checked",
    made_small: "no small llava can be built from the configuration of mine",
    configured: "cannot be loaded",
    processed: "ValueError: odd",
    counted: "cannot be loaded",
    traced: "torch.export cannot trace LlavaForConditionalGeneration",
    converted: "torch-export cannot write LlavaForConditionalGeneration",
    surgery: "layer 0 cannot be taken apart in vLLM",
}
# Statements of skipsearch that cannot be traced, or do not suit a layer of vLLM, are reasons against the export.
MISTAKES = [site for site in ODD_MODEL if site not in (taken_apart, traced, converted, surgery)]


def name(value):
    return getattr(value, "__name__", None)


@pytest.mark.parametrize("site", ODD_MODEL, ids=name)
def test_what_a_model_raises_is_said_of_the_model(site, llava, monkeypatch):
    try:
        said = site(*llava, raising(*ODD), monkeypatch)
    except (ModelError, ExportError) as error:
        said = str(error)
    assert ODD_MODEL[site] in said and "ValueError: odd" in said.replace("\n  odd", "ValueError: odd")


@pytest.mark.parametrize(
    ("site", "memory"), [(site, memory) for site in ODD_MODEL for memory in MEMORY
                         if (site, memory) != (traced, "allocator")], ids=name,
)  # fmt: skip
def test_too_little_memory_is_not_said_of_a_model(site, memory, llava, monkeypatch):
    with pytest.raises((RuntimeError, MemoryError)) as failure:
        site(*llava, raising(*MEMORY[memory]), monkeypatch)
    assert is_out_of_memory(failure.value)


@pytest.mark.parametrize("site", MISTAKES, ids=name)
def test_a_mistake_in_skipsearch_is_not_said_of_a_model(site, llava, monkeypatch):
    with pytest.raises(NameError, match="misspelt"):
        site(*llava, raising(*MISTAKE), monkeypatch)


def test_a_command_says_that_there_is_too_little_memory(monkeypatch, capsys):
    monkeypatch.setattr(cli, "run_command", raising(*MEMORY["allocator"]))
    assert cli.main([]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: there is too little memory") and "DefaultCPUAllocator" in said and "hint: " in said
    monkeypatch.setattr(cli, "run_command", raising("torch", "raise RuntimeError('another')"))
    with pytest.raises(RuntimeError, match="another"):
        cli.main([])
