"""A graph holds what runs, and its tool computes what the policy computes, without transformers."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from contract import policy_of

from families import batch_of, built
from skipsearch import apply_policy
from skipsearch.exports.export import export
from skipsearch.exports.graph import targets
from skipsearch.exports.graph.targets import Onnx, OpenVino, TorchExport
from skipsearch.exports.graph.trace import trace
from skipsearch.exports.target import Source
from skipsearch.policies.errors import ExportError

SHARED = {"wiring": "parallel", "norm": "shared"}
POLICY = policy_of({0: {"attention": "skip"}, 1: {"attention": "skip", "ffn": "skip"}, 2: {"ffn": "skip"}, 3: SHARED})
# torch.onnx knows no operation for a check that LLaVA makes.
CASES = [
    ("torch-export", "llava"),
    ("onnx", "llama"), ("onnx", "gemma3"), ("onnx", "mixtral"),
    ("openvino", "llama"), ("openvino", "llava"), ("openvino", "mixtral"),
]  # fmt: skip
TARGETS = {target.name: target for target in (TorchExport, Onnx, OpenVino)}
SOAK = pytest.mark.soak


def source_of(name: str) -> Source:
    """The model; the first prompt says which inputs a graph has, and prompts of other inputs do not count."""
    layouts = ("middle", "text") if name == "llava" else ()
    return Source(built(name, "sdpa"), prompts=[batch_of(name, layout).padded() for layout in layouts])


@pytest.mark.parametrize(
    ("target", "name"), [case if case[0] == "torch-export" else pytest.param(*case, marks=SOAK) for case in CASES]
)
def test_the_tool_alone_computes_what_the_policy_computes(target, name, tmp_path):
    missing = [package for package in TARGETS[target].packages if find_spec(package) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    done = export(POLICY, source_of(name), TARGETS[target](), tmp_path / "out")
    assert done.difference < 1e-5
    assert (tmp_path / "out" / TARGETS[target].file).exists()
    shapes = "1, tokens" if name == "llava" else "rows, tokens"
    assert done.notes[0].startswith(f"inputs: input_ids ({shapes}), attention_mask ({shapes})")


@pytest.mark.parametrize("name", ["llama", "llava", "mixtral", "neox"])
def test_the_graph_has_the_weights_and_the_operations_that_run(name):
    model, source = built(name, "sdpa"), source_of(name)
    program = trace(POLICY, source)
    inputs = batch_of(name, "middle").padded()
    with apply_policy(model, POLICY), torch.enable_grad():
        model(**inputs, use_cache=False).logits.sum().backward()
    runs = {f"model.{key}" for key, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    assert {spec.target for spec in program.graph_signature.input_specs if spec.kind.name == "PARAMETER"} == runs
    assert set(program.state_dict) <= runs | {f"model.{key}" for key, _ in model.named_buffers()}
    assert not any("transformers" in str(node.target) for node in program.graph.nodes if node.op == "call_function")
    attentions = sum("scaled_dot_product" in str(node.target) for node in program.graph.nodes)
    of_images = model.config.vision_config.num_hidden_layers if name == "llava" else 0
    assert attentions == 2 + of_images


def test_rows_and_tokens_stay_free_and_padding_counts():
    model, source = built("llama", "sdpa"), source_of("llama")
    module = trace(POLICY, source).module()
    for rows, tokens in ((1, 1), (1, 40), (3, 7)):
        ids = torch.randint(3, 90, (rows, tokens), generator=torch.Generator().manual_seed(tokens))
        mask = torch.ones_like(ids)
        mask[1:, -2:] = 0
        with apply_policy(model, POLICY), torch.no_grad():
            expected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        torch.testing.assert_close(module(input_ids=ids, attention_mask=mask)[mask.bool()], expected[mask.bool()])


@pytest.mark.parametrize("target", TARGETS.values())
def test_what_a_graph_cannot_express_is_named(target):
    policy = policy_of({0: {"wiring": "parallel"}, 1: {"ffn": "skip", "phase": "prefill"}, 2: {"token_ratio": 0.5}})
    assert target().can(policy, source_of("llava")) == [
        "a graph has no skip_ffn (prefill) in layer 1",
        "a graph has no token_ratio 0.5 in layer 2",
    ]
    assert target().can(POLICY, source_of("llama")) == []


@pytest.mark.soak
def test_what_a_converter_does_not_know_is_named(tmp_path):
    if find_spec("onnx") is None or find_spec("onnxscript") is None:
        pytest.skip("onnx not installed")
    with pytest.raises(ExportError, match=r"onnx cannot write Llava(.|\n)*No ONNX function found for .*_is_all_true"):
        export(POLICY, source_of("llava"), Onnx(), tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_a_missing_tool_and_a_model_that_cannot_be_traced_are_typed_errors(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(targets, "find_spec", lambda package: None)
        with pytest.raises(ExportError, match=r"openvino needs packages(.|\n)*skipsearch\[openvino\]"):
            export(POLICY, source_of("llama"), OpenVino(), tmp_path / "missing")
    prompts = [batch_of("qwen2-vl", "middle").padded()]
    with pytest.raises(ExportError, match="torch.export cannot trace Qwen2VL"):
        export(POLICY, Source(built("qwen2-vl", "sdpa"), prompts=prompts), TorchExport(), tmp_path / "untraced")
    assert not any(tmp_path.iterdir())
