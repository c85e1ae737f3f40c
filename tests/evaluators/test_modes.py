"""Modes of decoding: compiled steps answer as plain ones and are timed without their compilation."""

import shutil

import pytest
import torch
from pydantic import ValidationError

import tiny
from skipsearch.evaluators.latency import LatencyEvaluator, LatencyOptions
from skipsearch.evaluators.subject import ModelSpec, load_subject
from skipsearch.evaluators.timing import modes
from skipsearch.policies.apply import apply_policy
from skipsearch.policies.choice import CHOICES, LayerChoice
from skipsearch.policies.errors import EvaluatorError, ModelError
from skipsearch.policies.metadata import ModelRef
from skipsearch.policies.policy import Policy

POLICY = Policy(layers={0: CHOICES["skip_attention"], 1: CHOICES["skip_ffn"]})
FEW = {"mode": "compiled", "new_tokens": 4, "repeats": 2, "warmup": 0, "prompt_tokens": 6}


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    paths = {"llama": tiny.tiny_llama(folder, layers=2), "llava": tiny.tiny_llava(folder)}
    return {name: load_subject(ModelSpec(id=str(path), device="cpu")) for name, path in paths.items()}


@pytest.fixture
def eager_backend(monkeypatch):
    """Graphs are traced and run as they are, which takes a tenth of the time of compiling them."""
    monkeypatch.setattr(modes, "BACKEND", "eager")


def measured(subject, policy, **options):
    evaluator = LatencyEvaluator(LatencyOptions(**{**FEW, **options}), subject)
    with torch.inference_mode(), apply_policy(subject.model, policy) as handle:
        return evaluator.measure(handle, "search")


def check(subject, policy):
    found = measured(subject, policy)
    for name in ("ttft_ms", "tpot_ms"):
        detail = found[name].detail
        assert detail["mode"] == "compiled" and detail["graphs"] >= 1 and detail["dense_graphs"] >= 1
        assert len(detail["repeats_ms"]) == len(detail["dense_repeats_ms"]) == 2
        # What compiling took is in no time.
        assert 1e3 * detail["compile_s"] > sum(detail["repeats_ms"]) > 0
    assert "get_compiled_call" not in vars(subject.model)


def test_compiled_steps_answer_as_plain_ones_and_are_timed_without_their_compilation(subjects, eager_backend):
    check(subjects["llama"], POLICY)


@pytest.mark.soak
def test_tokens_that_are_left_out_compile_too(subjects, eager_backend):
    check(subjects["llava"], Policy(layers={1: LayerChoice(token_ratio=0.5), 2: CHOICES["skip_ffn"]}))


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++")
def test_the_compiler_itself_runs(subjects):
    check(subjects["llama"], POLICY)
    check(subjects["llama"], Policy(model=ModelRef(quantization="int8"), layers={1: LayerChoice(ffn_ratio=0.5)}))


@pytest.mark.soak
def test_layers_that_a_static_cache_does_not_serve_are_refused(subjects, eager_backend):
    with pytest.raises(ModelError, match="StaticCache"):
        measured(subjects["llama"], Policy(layers={1: LayerChoice(attention="skip", phase="decode")}))


@pytest.mark.soak
def test_steps_that_answer_otherwise_are_refused(subjects, monkeypatch):
    def doubled(graph, inputs):
        return lambda *args: tuple(2 * one if one.is_floating_point() else one for one in graph(*args))

    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda name: doubled)
    with pytest.raises(EvaluatorError, match="the policy answers otherwise in mode compiled"):
        measured(subjects["llama"], POLICY)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CPU has no CUDA graphs")
def test_captured_steps_answer_as_plain_ones(tmp_path):
    subject = load_subject(ModelSpec(id=str(tiny.tiny_llama(tmp_path, layers=2)), device="cuda"))
    found = measured(subject, POLICY, mode="captured", new_tokens=12)
    assert found["tpot_ms"].detail["mode"] == "captured" and found["tpot_ms"].value > 0


def test_what_does_not_run_in_a_mode_is_refused_by_name(subjects, eager_backend, monkeypatch):
    with pytest.raises(EvaluatorError, match="only a GPU decodes in mode captured"):
        LatencyEvaluator(LatencyOptions(mode="captured"), subjects["llama"])
    model = subjects["llama"].model
    with monkeypatch.context() as patched, pytest.raises(EvaluatorError, match="compiled nothing for LlamaForCausalLM"):
        patched.setattr(type(model), "_valid_auto_compile_criteria", lambda *_: False)
        measured(subjects["llama"], POLICY)
    with monkeypatch.context() as patched, pytest.raises(EvaluatorError, match="does not decode in mode compiled"):
        patched.setattr(modes, "BACKEND", "no such compiler")
        measured(subjects["llama"], POLICY)
    for options, found in (
        ({"mode": "captured", "new_tokens": 6}, "new_tokens is 6, expected at least 7 in mode captured"),
        ({"mode": "compiled", "load": {}}, "found mode compiled beside load"),
    ):
        with pytest.raises(ValidationError, match=found):
            LatencyOptions(**options)
