"""Graphs compute what the model computes under the policy, and hold nothing of what it skips."""

from importlib.util import find_spec

import pytest
import torch
from contract import policy_of

from families import batch_of, built
from skipsearch.exports.export import export
from skipsearch.exports.graph.targets import Graph, Onnx, OpenVino, TorchExport
from skipsearch.exports.graph.trace import trace
from skipsearch.exports.target import Source
from skipsearch.policies.errors import ExportError

NOTHING, ATTENTION, FFN = {"attention": "skip", "ffn": "skip"}, {"attention": "skip"}, {"ffn": "skip"}
POLICY = policy_of({0: ATTENTION, 1: NOTHING, 2: FFN})
PARALLEL = policy_of({0: {"wiring": "parallel"}, 2: NOTHING})


def source(name: str) -> Source:
    layout = "middle" if name == "llava" else "text"
    return Source(built(name, "sdpa"), prompts=[batch_of(name, layout, seed).padded() for seed in range(2)])


@pytest.mark.parametrize("target", [TorchExport, Onnx, OpenVino])
@pytest.mark.parametrize(("name", "policy"), [("llama", POLICY), ("gemma3", PARALLEL), ("llava", POLICY)])
def test_a_graph_is_proven_in_its_own_tool(target: type[Graph], name, policy, tmp_path):
    if any(find_spec(package) is None for package in target.packages):
        pytest.skip(f"{target.name} is not installed")
    if (target, name) == (Onnx, "llava"):
        with pytest.raises(ExportError, match="onnx cannot write LlavaForConditionalGeneration"):
            export(policy, source(name), target(), tmp_path / "out")
        return
    done = export(policy, source(name), target(), tmp_path / "out")
    assert done.difference <= 1e-5
    assert (tmp_path / "out" / target.file).exists()


@pytest.mark.parametrize("name", ["llama", "neox", "opt"])
def test_a_graph_has_the_weights_that_run(name):
    given = source(name)
    dense, graph = (trace(policy, given).state_dict for policy in (policy_of({}), POLICY))
    gone = {key for key in dense if key not in graph}
    layers = [
        {key for key in gone if f".{index}." in key and weight_matrix(dense[key])}
        for index in range(len(given.model.get_decoder().layers))
    ]
    assert len(layers[1]) == len(layers[0]) + len(layers[2]) and layers[0] and layers[2] and not layers[3]


def weight_matrix(tensor: torch.Tensor) -> bool:
    return tensor.ndim > 1


def test_what_a_graph_cannot_hold_is_named(tmp_path):
    policy = policy_of({0: {"token_ratio": 0.5}, 1: {"ffn": "skip", "phase": "decode"}, 3: FFN})
    with pytest.raises(ExportError, match="torch-export cannot represent") as error:
        export(policy, source("llava"), TorchExport(), tmp_path / "out")
    assert error.value.details == (
        "a graph has no token_ratio 0.5 in layer 0",
        "a graph has no skip_ffn (decode) in layer 1",
    )
    assert [*tmp_path.iterdir()] == []


class Missing(TorchExport):
    packages = ("no_such_package",)
    extra = "graphs"


def test_a_missing_package_is_said_before_anything_is_traced(tmp_path):
    with pytest.raises(ExportError, match="packages that are not installed") as error:
        export(POLICY, source("llama"), Missing(), tmp_path / "out")
    assert 'pip install "skipsearch[graphs]"' in error.value.hint
