"""What every evaluator promises, checked on each built-in one, and how evaluators are found."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

import tiny
from families import FAMILIES
from skipsearch.evaluators import base
from skipsearch.evaluators.base import BUILT_IN, Metric, Options, available, evaluator_class
from skipsearch.evaluators.prompts import fixed_input, generate
from skipsearch.evaluators.subject import ModelSpec, load_subject
from skipsearch.policies import plugins
from skipsearch.policies.apply import apply_policy
from skipsearch.policies.choice import CHOICES, LayerChoice
from skipsearch.policies.errors import EvaluatorError, ModelError
from skipsearch.policies.policy import Policy
from skipsearch.testing import EvaluatorContract, FamilyContract
from skipsearch.testing.evaluators import plain

UNITS = {"fraction", "nats", "flops", "ms", "bytes", "tokens", "times"}


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
        "speculative": {"new_tokens": 6, "draft_tokens": 2, "prompts": 2, "repeats": 1},
    }
    found = evaluator_class(name)
    return found(found.options(**options.get(name, {})), subjects.loaded[kind])


def some_policy(kind):
    layers = {0: CHOICES["skip_ffn"], 1: CHOICES["skip_attention"], 2: CHOICES["parallel"], 3: CHOICES["skip_layer"]}
    return Policy(layers={**layers, 2: LayerChoice(token_ratio=0.5)} if kind == "llava" else layers)


class TestBuiltIn(EvaluatorContract):
    """The contract over every evaluator that is built in, on a text model and on one of images."""

    @pytest.fixture(params=["llama", "llava"])
    def kind(self, request):
        return request.param

    @pytest.fixture(params=sorted(BUILT_IN))
    def name(self, request):
        return request.param

    @pytest.fixture
    def subject(self, kind, subjects):
        return subjects.loaded[kind]

    @pytest.fixture
    def evaluator(self, name, kind, subjects):
        return made(name, kind, subjects)

    @pytest.fixture
    def policy(self, kind):
        return some_policy(kind)

    def test_has_the_name_that_it_is_found_by(self, name, evaluator):
        assert evaluator.name == name and {metric.unit for metric in evaluator.metrics.values()} <= UNITS

    def test_is_repeatable(self, name, kind, evaluator, subject, policy, subjects):
        if name in ("latency", "speculative"):
            pytest.skip("a clock is not repeatable")
        super().test_is_repeatable(evaluator, subject, policy)
        with apply_policy(subject.model, policy) as handle:
            ours, anew = (one.measure(handle, "search") for one in (evaluator, made(name, kind, subjects)))
        assert {key: plain(entry) for key, entry in ours.items()} == {key: plain(one) for key, one in anew.items()}


class TestLlama(FamilyContract):
    """The contract of families, as a plug-in would use it."""

    @pytest.fixture
    def model(self):
        return FAMILIES["llama"].build("sdpa")

    @pytest.fixture
    def inputs(self):
        return {"input_ids": torch.tensor([[5, 9, 7, 11, 6, 8]])}


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
    monkeypatch.setattr(plugins, "installed", lambda group: entries if group == base.GROUP else [])


def test_an_installed_evaluator_is_found(monkeypatch):
    install(monkeypatch, f"{__name__}:Energy")
    assert evaluator_class("energy").metrics["energy_j"].unit == "joule"
    assert available() == (
        "accuracy",
        "answer_loss",
        "divergence",
        "energy",
        "flops",
        "latency",
        "memory",
        "speculative",
    )


def refusal(name):
    with pytest.raises(EvaluatorError) as caught:
        evaluator_class(name)
    return str(caught.value)


def test_an_unknown_evaluator_is_told():
    *said, hint = refusal("latancy").splitlines()
    assert said == ["there is no evaluator 'latancy'", "  the nearest known one is 'latency'"]
    # Other tests of this process may have brought evaluators of their own.
    assert {"accuracy", "answer_loss", "divergence", "flops", "latency", "memory", "speculative"} <= {
        *hint.removeprefix("hint: available: ").split(", ")
    }


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
    monkeypatch.setattr(plugins, "installed", lambda group: [entry])
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
