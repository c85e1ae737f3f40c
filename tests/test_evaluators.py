"""What every evaluator promises, checked on each built-in one, and how evaluators are found."""

import json
import math
import pickle
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

import tiny
from skipsearch.evaluators import base
from skipsearch.evaluators.base import BUILT_IN, Metric, Options, available, evaluator_class
from skipsearch.evaluators.prompts import fixed_input, generate
from skipsearch.evaluators.subject import ModelSpec, load_subject
from skipsearch.policies.apply import apply_policy
from skipsearch.policies.choice import CHOICES, LayerChoice
from skipsearch.policies.errors import EvaluatorError, ModelError
from skipsearch.policies.policy import Policy

UNITS = {"fraction", "nats", "flops", "ms", "bytes"}


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    paths = {"llama": tiny.tiny_llama(folder), "llava": tiny.tiny_llava(folder)}
    tasks = {"llama": tiny.text_tasks(folder)["text_gen"], "llava": tiny.image_tasks(folder)["image_mc"]}
    loaded = {kind: load_subject(ModelSpec(id=str(path), device="cpu")) for kind, path in paths.items()}
    for subject in loaded.values():
        # transformers hooks into a vision tower at its first forward, once and for all.
        generate(subject.model, fixed_input(subject), new_tokens=1)
    return SimpleNamespace(loaded=loaded, tasks=tasks)


def made(name, kind, subjects):
    examples = {"tasks": [str(subjects.tasks[kind])], "search": {"limit": 4}}
    options = {
        "accuracy": examples,
        "answer_loss": examples,
        "divergence": examples,
        "latency": {"new_tokens": 3, "repeats": 2, "warmup": 1},
    }
    found = evaluator_class(name)
    return found(found.options(**options.get(name, {})), subjects.loaded[kind])


def some_policy(kind):
    layers = {0: CHOICES["skip_ffn"], 1: CHOICES["skip_attention"], 2: CHOICES["parallel"], 3: CHOICES["skip_layer"]}
    return Policy(layers={**layers, 2: LayerChoice(token_ratio=0.5)} if kind == "llava" else layers)


def fingerprint(model):
    """All that could be left behind on a model: weights, and attributes and hooks of every module."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = {(name, key) for name, module in model.named_modules() for key in vars(module)}
    hooks = [
        len(getattr(module, table))
        for module in model.modules()
        for table in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs")
    ]
    return weights, attributes, hooks, model.generation_config.to_dict(), model.training


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_declares_what_it_measures(name):
    found = evaluator_class(name)
    assert found.name == name
    assert issubclass(found.options, Options)
    for metric in found.metrics.values():
        assert metric.unit in UNITS
        assert metric.direction in ("maximize", "minimize")
        assert metric.text


@pytest.mark.parametrize("kind", ["llama", "llava"])
@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_measures_and_leaves_the_model_as_it_was(name, kind, subjects):
    model = subjects.loaded[kind].model
    evaluator = made(name, kind, subjects)
    before = fingerprint(model)
    with apply_policy(model, some_policy(kind)) as handle:
        for split in ("search", "report") if evaluator.splits else ("search",):
            measured = evaluator.measure(handle, split)
            assert set(measured) == set(evaluator.metrics)
            for measurement in measured.values():
                assert math.isfinite(measurement.value)
                assert measurement.n >= 1
                assert json.loads(json.dumps(asdict(measurement)))["value"] == measurement.value
                assert pickle.loads(pickle.dumps(measurement)) == measurement
        assert handle.prompt_ends is None
    weights, *rest = fingerprint(model)
    for left, found in zip(rest, before[1:], strict=True):
        assert left == found
    assert all(torch.equal(weights[key], before[0][key]) for key in before[0])


@pytest.mark.parametrize("kind", ["llama", "llava"])
@pytest.mark.parametrize("name", sorted(set(BUILT_IN) - {"latency"}))
def test_is_repeatable(name, kind, subjects):
    def figures(evaluator):
        with apply_policy(subjects.loaded[kind].model, some_policy(kind)) as handle:
            return {name: (m.value, m.n, m.stderr) for name, m in evaluator.measure(handle, "search").items()}

    evaluator = made(name, kind, subjects)
    first = figures(evaluator)
    assert figures(evaluator) == first
    assert figures(made(name, kind, subjects)) == first


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_refuses_options_it_does_not_know(name):
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        evaluator_class(name).options(colour="red")


def test_finding_the_built_in_ones_imports_nothing_heavy():
    heavy = "torch transformers lm_eval datasets numpy PIL"
    code = f"""
import sys
from skipsearch.evaluators.base import available, evaluator_class
from skipsearch.evaluators.prompts import fixed_input, generate
from skipsearch.evaluators.subject import ModelSpec
print([evaluator_class(name).options.model_json_schema() is None for name in available()])
sys.exit(", ".join(set("{heavy}".split()) & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


class Energy:
    """A sound plug-in."""

    name: ClassVar[str] = "energy"
    options: ClassVar[type[Options]] = Options
    metrics: ClassVar[dict[str, Metric]] = {"energy_j": Metric("joule", "minimize", "Joules.")}
    cost: ClassVar[int] = 5
    exclusive: ClassVar[bool] = True
    splits: ClassVar[bool] = False

    def __init__(self, options, subject): ...

    def measure(self, handle, split):
        return {}


class Hollow:
    """No evaluator at all."""

    name = "hollow"


def install(monkeypatch, *values, package=None):
    """Pretend that packages bring these evaluators."""
    entries = [EntryPoint(value.split(":")[1].lower(), value, base.GROUP) for value in values]
    if package:
        entries = [entry._for(SimpleNamespace(name=package, version="1.2")) for entry in entries]
    monkeypatch.setattr(base, "entry_points", lambda group: entries if group == base.GROUP else [])


def test_an_installed_evaluator_is_found(monkeypatch):
    install(monkeypatch, f"{__name__}:Energy")
    assert evaluator_class("energy").metrics["energy_j"].unit == "joule"
    assert available() == ("accuracy", "answer_loss", "divergence", "energy", "flops", "latency", "memory")


def refusal(name):
    with pytest.raises(EvaluatorError) as caught:
        evaluator_class(name)
    return str(caught.value)


def test_an_unknown_evaluator_is_told():
    assert refusal("latancy").splitlines() == [
        "there is no evaluator 'latancy'",
        "  the nearest known one is 'latency'",
        "hint: available: accuracy, answer_loss, divergence, flops, latency, memory",
    ]


def test_a_collision_names_both_origins(monkeypatch):
    install(monkeypatch, "other.package:Flops", package="skip-extras")
    message = refusal("flops")
    assert "the evaluator 'flops' exists 2 times" in message
    assert "other.package:Flops, from skip-extras 1.2" in message
    assert "skipsearch.evaluators.flops:FlopsEvaluator, built in" in message


def test_a_built_in_one_that_is_also_an_entry_point_is_no_collision(monkeypatch):
    install(monkeypatch, BUILT_IN["flops"].replace("FlopsEvaluator", "Flops"))
    monkeypatch.setitem(BUILT_IN, "flops", BUILT_IN["flops"])
    entry = EntryPoint("flops", BUILT_IN["flops"], base.GROUP)
    monkeypatch.setattr(base, "entry_points", lambda group: [entry])
    assert evaluator_class("flops").name == "flops"


def test_what_is_no_evaluator_is_refused(monkeypatch):
    install(monkeypatch, f"{__name__}:Hollow", package="broken")
    message = refusal("hollow")
    assert f"{__name__}:Hollow, from broken 1.2, is no evaluator" in message
    for part in ("options", "metrics", "cost", "exclusive", "splits", "measure"):
        assert f"{part}: expected" in message


@pytest.mark.parametrize("value", ["no.such.module:Thing", f"{__name__}:Thing"])
def test_what_cannot_be_imported_is_told(monkeypatch, value):
    install(monkeypatch, value)
    assert "the evaluator 'thing' cannot be imported" in refusal("thing")


def test_a_subject_is_ready_to_measure(subjects):
    for kind, subject in subjects.loaded.items():
        assert subject.is_multimodal == (kind == "llava")
        assert not subject.model.training
        assert not any(weight.requires_grad for weight in subject.model.parameters())
        assert subject.tokenizer.decode([2]) == "<eos>"


def test_a_subject_loads_as_asked(tmp_path, capfd):
    path = tiny.tiny_llama(tmp_path)
    capfd.readouterr()
    subject = load_subject(ModelSpec(id=str(path), dtype="bfloat16", device="cpu", attn_implementation="eager"))
    assert subject.model.dtype == torch.bfloat16
    assert subject.model.config._attn_implementation == "eager"
    assert capfd.readouterr() == ("", "")


def test_models_that_do_not_load_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "perceptron"}')
    cases = {
        "/nowhere/model": "model folder /nowhere/model does not exist",
        "nobody/no-such-model": "model nobody/no-such-model cannot be loaded from the hub",
        str(tmp_path / "empty"): f"model {tmp_path / 'empty'} cannot be loaded",
        str(tmp_path / "odd"): f"model {tmp_path / 'odd'} cannot be loaded",
    }
    for name, message in cases.items():
        with pytest.raises(ModelError) as caught:
            load_subject(ModelSpec(id=name))
        assert caught.value.what == message
        assert caught.value.hint


def test_a_wrong_device_is_told(tmp_path):
    with pytest.raises(ModelError, match="device cuda:77 is not available"):
        load_subject(ModelSpec(id=str(tiny.tiny_llama(tmp_path)), device="cuda:77"))
