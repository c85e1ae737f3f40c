"""`skipsearch export` on a tiny Llama: what it prints, and that mistakes are named with a way out."""

from __future__ import annotations

import json
import shutil

import pytest

import tiny
from skipsearch import Policy
from skipsearch.search.cli import main
from skipsearch.search.cli_exports import model_spec
from skipsearch.search.options import parse_options

HEAD = "schema: skipsearch/policy/v1\n"
SHA = "ab" * 32
POLICIES = {
    "skips": f"model: {{num_layers: {tiny.LAYERS}}}\nlayers: {{0: {{attention: skip}}, 1: {{ffn: skip}}}}",
    "layer": "layers: {1: {attention: skip, ffn: skip}}",
    "share": "layers: {0: {token_ratio: 0.5}}\ntoken_selection: {score: diverse, reselect: once}",
    "five": "model: {id: a/b, num_layers: 5}\nlayers: {1: {ffn: skip}}",
    "pinned": "model: {id: a/b, revision: v1}\nlayers: {1: {ffn: skip}}",
    "ranked": "layers: {1: {ffn_ratio: 0.5}}\n"
    f"width_selection: {{ranking: energy, file: lost.safetensors, sha256: {SHA}}}",
    "no-sha": "layers: {1: {ffn_ratio: 0.5}}\nwidth_selection: {ranking: energy, file: lost.safetensors, sha256: abc}",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a model, a part of it, and policies."""
    folder = tmp_path_factory.mktemp("world")
    tiny.tiny_llama(folder)
    shutil.copytree(folder / "llama", folder / "broken", ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "used").mkdir()
    (folder / "used" / "file").touch()
    for name, text in POLICIES.items():
        (folder / f"{name}.yaml").write_text(f"{HEAD}{text}\n")
    return folder


TARGETS = "hf, hf-remote, vllm, gguf, torch-export, onnx, openvino, mergekit, llm-drop, evopress, swift, hub"
OTHERS = "hint: `--to list` shows the targets that can; `skipsearch serve` and `apply_policy` run every policy"
MISTAKES = {
    "skips.yaml --to hf --model llama --out": [
        "error: argument --out: expected one argument",
        "hint: `skipsearch export --help` lists its arguments",
    ],
    "skips.yaml --to hf --model llama": [
        "error: --out is missing",
        "hint: name the folder to write, as in --out exported",
    ],
    "skips.yaml --to nothing --model llama --out out": [
        "error: no such export target",
        f"  found 'nothing', expected one of {TARGETS}",
        "hint: `skipsearch export POLICY --to list` describes them",
    ],
    "lost.yaml --to hf --model llama --out out": [
        "error: lost.yaml does not exist",
        "hint: check the path; `skipsearch ls` lists what there is",
    ],
    "skips.yaml --to hf --out out": [
        "error: no model is given",
        "  skips.yaml names none and is in no study's folder",
        "hint: name it, as in --model llava-hf/llava-1.5-7b-hf",
    ],
    "skips.yaml --to hf --model ./nowhere --out out": [
        "error: model folder ./nowhere does not exist",
        "hint: give a hub id such as llava-hf/llava-1.5-7b-hf, or a folder that save_pretrained wrote",
    ],
    "skips.yaml --to hf --model broken --out out": [
        "error: model broken cannot be loaded",
        "  OSError: Error no file named model.safetensors found in directory broken.",
        "hint: give a folder that save_pretrained wrote, with config.json, weights and tokenizer",
    ],
    "five.yaml --to hf --model llama --out out": [
        f"error: policy was made for 5 layers, model has {tiny.LAYERS}",
        "  policy for a/b, model LlamaForCausalLM",
        "hint: use the model named in the policy, or search again for this one with `skipsearch run`",
    ],
    "skips.yaml --to hf --model llama --revision v2 --out out": [
        "error: llama is a folder on this machine",
        "  found --revision v2",
        "hint: leave --revision out, or name a model of the hub",
    ],
    "pinned.yaml --to hf --model a/b --revision v2 --out out": [
        "error: the policy was made for another revision of a/b",
        "  found --revision v2, expected v1",
        "hint: leave --revision out, or search again at the other one",
    ],
    "ranked.yaml --to hub --model llama --out out": [
        "error: the ranking {here}/lost.safetensors cannot be read",
        f"  No such file or directory, expected a file with SHA-256 {SHA}",
        "hint: copy the file that lies beside the policy, or make one for this model with `skipsearch rank`",
    ],
    "no-sha.yaml --to hub --model llama --out out": [
        "error: no-sha.yaml has a problem",
        "  no-sha.yaml:3:60  width_selection.sha256: found 'abc', expected text that matches ^[0-9a-f]{{64}}$",
    ],
    "skips.yaml --to hf --model llama --out used": [
        "error: used exists",
        "  an export needs a folder of its own",
        "hint: name another one with --out",
    ],
    "skips.yaml --to hf --model llama --out used/file/out": [
        "error: used/file/out cannot be made",
        "  used/file is a file",
        "hint: name another folder with --out",
    ],
    "share.yaml --to hf --model llama --out out": [
        "error: hf cannot represent this policy",
        "  a plain checkpoint has no token_ratio 0.5 in layer 0",
        OTHERS,
    ],
    "skips.yaml --to hf --model llama --no-zero --out out": [
        "error: hf cannot represent this policy",
        "  skip_attention in layer 0 would be written with weights of 0, which --no-zero forbids",
        "  skip_ffn in layer 1 would be written with weights of 0, which --no-zero forbids",
        OTHERS,
    ],
    "skips.yaml --to vllm --model llama --python nowhere/python --out out": [
        "error: the interpreter of --python does not run",
        "  [Errno 2] No such file or directory: 'nowhere/python'",
        "hint: give the path of a Python interpreter, as in --python ~/env/bin/python",
    ],
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_named_with_a_way_out(command, here, capsys):
    assert main(["export", *command.split(" ")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err[err.index("error:") :].strip().splitlines() == [
        line.format(here=here) for line in MISTAKES[command]
    ]
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "revision"), [([], "v1"), (["--model", "a/b"], "v1"), (["--model", "a/c"], None)]
)
def test_the_policys_own_model_is_loaded_at_the_policys_revision(arguments, revision, here):
    options = parse_options(["export", "pinned.yaml", "--to", "hf", "--out", "out", *arguments])
    assert model_spec(options, Policy.load(options.policy)).revision == revision


def printed(capsys, *arguments):
    """Standard output of an export that succeeds."""
    assert main(["export", *arguments, "--model", "llama"]) == 0
    return capsys.readouterr().out


def test_the_targets_of_a_policy_are_listed(here, capsys):
    found = json.loads(printed(capsys, "skips.yaml", "--to", "list", "--no-zero", "--json"))
    assert found["choices"] == {"skip_attention": 1, "skip_ffn": 1}
    assert [*found["targets"]] == TARGETS.split(", ")
    assert all({*reasons} == {*found["choices"]} for reasons in found["targets"].values())
    assert "--no-zero" in found["targets"]["hf"]["skip_ffn"][0]
    assert found["targets"]["hf-remote"] == {"skip_attention": [], "skip_ffn": []}
    assert all(flag["flag"] is None and flag["reasons"] for flag in found["flags"].values())


def test_the_list_has_flags_of_runtimes(here, capsys):
    flags = json.loads(printed(capsys, "share.yaml", "--to", "list", "--json"))["flags"]
    assert flags["openvino-genai"] == {"flag": "pruning_ratio=50, relevance_weight=0", "reasons": []}
    shown = printed(capsys, "share.yaml", "--to", "list")
    assert "\nflag of tensorrt-edge-llm: --visualPrune --dartReductionRatio=0.5 (keeps as many image tokens" in shown
    shown = printed(capsys, "layer.yaml", "--to", "list")
    assert "\nno flag of openvino-genai: it leaves out image tokens before layer 0 and nothing else; found" in shown


def test_an_export_is_told_to_programs(here, capsys):
    found = json.loads(printed(capsys, "layer.yaml", "--to", "evopress", "--no-zero", "--out", "dropped", "--json"))
    policy = Policy.load(here / "dropped" / "policy.yaml")
    assert policy.layers == Policy.load(here / "layer.yaml").layers
    assert found == {
        "target": "evopress", "folder": "dropped", "difference": 0.0, "tolerance": 1e-4,
        "proof": f"read back, and the same policy ({policy.fingerprint}); evopress itself was not run",
        "size_bytes": (here / "dropped" / "layer_drop_config.txt").stat().st_size,
        "notes": ["layer_drop_config.txt has no weights: the tool loads those of the model"],
    }  # fmt: skip
