"""The plug-in of vLLM, on models that are built as vLLM builds them and with loaders that stand for vLLM's."""

import copy
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from vllm_builds import (
    LAYERS,
    WIDTH,
    Asking,
    Bare,
    Biased,
    Damped,
    Decoder,
    Fused,
    Parallel,
    Picture,
    Sandwich,
    Scaled,
    Unpacking,
    Writing,
    compilation_of,
)

from skipsearch.exports.vllm import plugin
from skipsearch.exports.vllm.surgery import filled_memory
from skipsearch.policies.errors import ExportError

BASE = "vllm.model_executor.model_loader.base_loader"
LAYER, ATTENTION, FFN = {"attention": "skip", "ffn": "skip"}, {"attention": "skip"}, {"ffn": "skip"}
MIXED = {"0": ATTENTION, "1": LAYER, "3": FFN}


@pytest.fixture
def loaders(monkeypatch):
    """vLLM's base of all loaders, and one with a `load_model` of its own."""

    class Loader:
        def __init__(self, model):
            self.model = model

        def load_model(self, vllm_config, model_config, prefix=""):
            return self.model

    class Own(Loader):
        def load_model(self, vllm_config, model_config, prefix=""):
            return self.model

    module = ModuleType(BASE)
    module.BaseModelLoader = Loader
    monkeypatch.setitem(sys.modules, BASE, module)
    plugin.register()
    plugin.register()
    return Loader, Own


def load(loader, model, value, **parallel):
    """Load a model with a value under the key of its configuration; also returns vLLM's lists."""
    settings = {"pipeline_parallel_size": 1, "enable_eplb": False} | parallel
    compilation = compilation_of(model)
    config = SimpleNamespace(parallel_config=SimpleNamespace(**settings), compilation_config=compilation)
    hf_config = SimpleNamespace() if value is None else SimpleNamespace(skipsearch=value)
    loaded = loader(model).load_model(vllm_config=config, model_config=SimpleNamespace(hf_config=hf_config))
    return loaded, compilation


def made(build):
    torch.manual_seed(0)
    return Decoder(build)


def run(model):
    torch.manual_seed(1)
    with torch.no_grad():
        return model(torch.arange(7), torch.randn(7, WIDTH))


def zeroed(model, layers):
    """The same model with weights of zero where a sublayer is skipped."""
    model = copy.deepcopy(model)
    for index, choice in layers.items():
        layer = model.layers[int(index)]
        for part, weight in (("attention", layer.self_attn.o_proj.weight), ("ffn", layer.mlp.down.weight)):
            if choice.get(part) == "skip":
                torch.nn.init.zeros_(weight)
    return model


@pytest.mark.parametrize("build", [Fused, Sandwich, Scaled, Parallel])
@pytest.mark.parametrize("layers", [MIXED, {"0": LAYER, "4": LAYER}, {"0": FFN, "2": {"attention": "run"}}, {}])
def test_runs_the_policy(loaders, build, layers):
    model = made(build)
    dense, expected = run(model), run(zeroed(model, layers))
    loaded, _ = load(loaders[0], model, {"num_layers": LAYERS, "layers": layers})
    assert torch.allclose(run(loaded), expected, atol=1e-6)
    assert torch.allclose(expected, dense, atol=1e-2) == (layers == {})


def test_frees_the_cache_the_experts_and_the_weights(loaders):
    model = made(Fused)
    # As vLLM's mixtures of experts do, it keeps a list of them.
    listed = [layer.mlp for layer in model.layers]
    before = sum(weight.numel() for weight in model.parameters())
    loaded, compilation = load(loaders[0], model, {"num_layers": LAYERS, "layers": MIXED})
    experts = [f"layers.{index}.mlp.experts" for index in (0, 2, 4)]
    assert compilation.static_all_moe_layers == experts
    assert [*compilation.static_forward_context] == [f"layers.{i}.self_attn.attn" for i in (2, 3, 4)] + experts
    assert [sum(weight.numel() for weight in part.parameters()) for part in listed] == [136, 0, 136, 0, 136]
    # Two attentions and two FFNs of 136 numbers, two norms of 8.
    assert sum(weight.numel() for weight in loaded.parameters()) == before - 4 * 136 - 2 * WIDTH


def test_weights_that_others_share_stay(loaders):
    model = made(Fused)
    model.layers[3].mlp.experts.weight = model.layers[2].mlp.experts.weight
    expected = run(zeroed(model, MIXED))
    loaded, _ = load(loaders[0], model, {"num_layers": LAYERS, "layers": MIXED})
    assert torch.allclose(run(loaded), expected, atol=1e-6)


def test_the_text_half_of_a_model_that_takes_images(loaders):
    model = Picture(made(Fused))
    expected = run(zeroed(model.language_model, MIXED))
    loaded, compilation = load(loaders[1], model, {"num_layers": LAYERS, "layers": MIXED})
    assert torch.allclose(run(loaded.language_model), expected, atol=1e-6)
    assert len(compilation.static_forward_context) == 6


@pytest.mark.parametrize("kind", [0, 1])
def test_without_a_policy_it_does_nothing(loaders, kind):
    model = made(Damped)
    before = [*model.modules()]
    loaded, compilation = load(loaders[kind], model, None, pipeline_parallel_size=2)
    assert loaded is model and [*model.modules()] == before
    assert len(compilation.static_forward_context) == 2 * LAYERS


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (Biased, "with zeros for both sublayers it changes the hidden states"),
        (Damped, "with zeros for both sublayers it changes the hidden states"),
        (Writing, "with zeros for both sublayers it changes the hidden states"),
        (Unpacking, "without its sublayers it raises ValueError: too many values"),
        (Asking, "its arguments are positions, hidden_states, residual, metadata"),
        (Bare, "expected one attention, and an FFN that is a module of several parts"),
    ],
)
@pytest.mark.parametrize("choice", [LAYER, ATTENTION, FFN])
def test_unknown_builds_are_refused_by_name(loaders, build, words, choice):
    with pytest.raises(ExportError) as failure:
        load(loaders[0], made(build), {"num_layers": LAYERS, "layers": {"3": choice}})
    assert f"layer 3 cannot be taken apart in vLLM\n  found a {build.__name__} with the parts self_attn, mlp," in str(
        failure.value
    )
    assert words in str(failure.value)


@pytest.mark.parametrize(
    ("choice", "line"),
    [
        ({"token_ratio": 0.5}, "layer 1: token_ratio 0.5"),
        ({"wiring": "parallel"}, "layer 1: wiring parallel"),
        ({"ffn": "skip", "phase": "decode"}, "layer 1: phase decode"),
        ({"ffn": "skip", "tokens": "image"}, "layer 1: tokens image"),
        ({"attention": "keys_only"}, "layer 1: attention keys_only"),
        ({"attention": "queries_only"}, "layer 1: attention queries_only"),
        ({"ffn": "skip", "rest": "attention"}, "layer 1: rest attention"),
        ({"ffn": "skip", "evict": True}, "layer 1: evict True"),
        ({"mlp": "skip"}, "layer 1: mlp skip"),
        ({"ffn": "sparse"}, "layer 1: ffn sparse"),
        ("skip_ffn", "layer 1: found 'skip_ffn', expected a mapping"),
    ],
)
def test_other_choices_are_refused_by_name(loaders, choice, line):
    with pytest.raises(ExportError, match="vLLM cannot run this policy") as failure:
        load(loaders[0], made(Fused), {"num_layers": LAYERS, "layers": {"0": FFN, "1": choice}})
    assert failure.value.details == (line,)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("skip", "has another form"),
        ({"layers": MIXED}, "has another form"),
        ({"num_layers": LAYERS, "layers": MIXED, "token_selection": {}}, "has another form"),
        ({"num_layers": LAYERS, "layers": {"5": FFN}}, "layer 5: found '5', expected a number below num_layers"),
        ({"num_layers": LAYERS, "layers": {"03": FFN}}, "layer 03: found '03'"),
        ({"num_layers": 4, "layers": MIXED}, "made for 4 layers, the model has 5"),
        ({"num_layers": LAYERS, "layers": {str(i): ATTENTION for i in range(LAYERS)}}, "skips every attention"),
    ],
)
def test_values_that_do_not_fit_are_refused(loaders, value, words):
    with pytest.raises(ExportError) as failure:
        load(loaders[0], made(Fused), value)
    assert words in str(failure.value)


def test_shared_keys_and_values_are_refused(loaders):
    model = made(Fused)
    model.layers[2].self_attn.attn.kv_sharing_target_layer_name = "layers.1.self_attn.attn"
    with pytest.raises(ExportError, match="layers.2.self_attn.attn reads the cache of layers.1.self_attn.attn"):
        load(loaders[0], model, {"num_layers": LAYERS, "layers": MIXED})


@pytest.mark.parametrize("setting", [{"pipeline_parallel_size": 2}, {"enable_eplb": True}])
def test_settings_that_need_whole_layers_are_refused(loaders, setting):
    with pytest.raises(ExportError, match=f"{next(iter(setting))} is"):
        load(loaders[0], made(Fused), {"num_layers": LAYERS, "layers": MIXED}, **setting)


def test_it_imports_without_what_an_environment_for_vllm_may_lack():
    code = "import sys; sys.modules.update(transformers=None, pydantic=None); import skipsearch.exports.vllm.plugin"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_memory_that_no_sublayer_wrote_to_does_not_pass_for_zeros():
    with filled_memory():
        assert torch.empty(3, 4).isnan().all() and torch.empty_like(torch.zeros(2)).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()
