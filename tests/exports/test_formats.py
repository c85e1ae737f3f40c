"""Text formats of other tools: what is written is read again, published files are read right, and the rest is named."""

import json
import random
from pathlib import Path

import pytest
import searching
from asking import open_study

from families import built
from skipsearch import Policy
from skipsearch.exports.export import export
from skipsearch.exports.formats.sublayers import Given
from skipsearch.exports.formats.table import FORMATS, format_of, read_file
from skipsearch.exports.reference import Reference
from skipsearch.exports.registry import target_class
from skipsearch.exports.target import Options, Source
from skipsearch.policies.choice import CHOICES, LayerChoice
from skipsearch.policies.errors import ExportError, PolicyError, PolicyMismatch, SpaceError
from skipsearch.policies.metadata import ModelRef
from skipsearch.search.cli import main

BASE = "some/model"
SKIPS = ("keep", "skip_ffn", "skip_attention", "skip_layer")


def policy_of(layers, count=6):
    choices = {index: CHOICES[name] for index, name in layers.items()}
    return Policy(model=ModelRef(id=BASE, revision="v1", num_layers=count), layers=choices)


def read(text, **more):
    given = Given(text, "given", **more)
    return FORMATS[format_of(given)].read(given)


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_format_writes_is_recognised_and_is_the_same_policy(name):
    draw = random.Random(0)
    for count in (2, 3, 6, 6, 6, 9, 32, 80):
        layers = {index: draw.choice(SKIPS) for index in range(1, count)}
        policy = policy_of(layers, count)
        given = Given(FORMATS[name].write(policy), "given", count)
        assert format_of(given) == name
        found = FORMATS[name].read(given)
        assert found.fingerprint == policy.fingerprint and found.model.num_layers == count
        if name == "mergekit":
            assert found.model == policy.model


@pytest.mark.parametrize("name", FORMATS)
def test_choices_that_a_format_cannot_say_are_refused_by_name(name):
    others = {1: LayerChoice(ffn="skip", phase="decode"), 2: CHOICES["parallel"], 4: LayerChoice(token_ratio=0.5)}
    policy = Policy(model=ModelRef(id=BASE, num_layers=6), layers={0: CHOICES["skip_ffn"], **others})
    named = ["skip_ffn (decode) in layer 1", "parallel in layer 2", "token_ratio 0.5 in layer 4"]
    with pytest.raises(ExportError) as caught:
        FORMATS[name].write(policy)
    assert [*caught.value.details] == named
    reasons = target_class(name)().can(policy, Source(built("llama", "sdpa"), id=BASE))
    assert [reason for reason in reasons if reason.startswith(f"{name} has no")] == [
        f"{name} has no {n}" for n in named
    ]


SELF_SD = """{
  "llama-2-13b": {"attention": [3, 5, 6], "mlp": [6, 9]},
  "llama-2-13b_cnndm": {"attention": [2], "mlp": []}
}"""
# Parts of a config.json of LLM-Drop: numbers in the order of their ranks, or one entry a layer.
BLOCKS = '{"model_type": "mistral", "num_hidden_layers": 8, "rms_norm_eps": 1e-05, "drop_mlp_list": [6, 5, 4], \
"drop_attn_list": [6, 5, 4]}'
LOGICAL = '{\n\t"drop_attn_list": [false, true, false, true],\n\t"drop_mlp_list": [false, false, false, true]\n}'
MERGE = """
merge_method: passthrough
dtype: bfloat16
slices:
- sources:
  - model: org/base@abc
    layer_range: [0, 3]
- sources:
  - model: org/base@abc
    layer_range: [4, 6]
    parameters: {scale: [{filter: o_proj, value: 0.0}, {value: 1.0}]}
- sources: [{model: org/base@abc, layer_range: [7, 8]}]
  parameters: {scale: {filter: down_proj, value: 0}}
"""


@pytest.mark.parametrize(
    ("text", "more", "layers"),
    [
        (SELF_SD, {"entry": "llama-2-13b"}, {3: "skip_attention", 5: "skip_attention", 6: "skip_layer", 9: "skip_ffn"}),
        (BLOCKS, {}, dict.fromkeys((4, 5, 6), "skip_layer")),
        (LOGICAL, {}, {1: "skip_attention", 3: "skip_layer"}),
        ("none\nattn\nmlp\nattn+mlp\n", {}, {1: "skip_attention", 2: "skip_ffn", 3: "skip_layer"}),
        (
            MERGE,
            {"num_layers": 9},
            {
                3: "skip_layer",
                4: "skip_attention",
                5: "skip_attention",
                6: "skip_layer",
                7: "skip_ffn",
                8: "skip_layer",
            },
        ),
    ],
    ids=["self-sd", "llm-drop blocks", "llm-drop booleans", "evopress", "mergekit"],
)
def test_files_as_their_tools_write_them(text, more, layers):
    found = read(text, **more)
    assert {index: choice.label for index, choice in found.layers.items()} == layers


def merge(*sources, extra=""):
    entries = "".join(f"- sources:\n  - {{model: org/base, {source}}}\n" for source in sources)
    return f"merge_method: passthrough\nslices:\n{entries}{extra}"


UP = merge("layer_range: [0, 24]", "layer_range: [8, 32]")
MISTAKES = {
    "a repeated layer": (UP, {"num_layers": 32}, "slices[1].sources[0].layer_range: layer 8 comes after layer 23"),
    "an unknown depth": (UP, {}, "does not say how many layers org/base has"),
    "a tail": (merge("layer_range: [0, 9]"), {"num_layers": 8}, "found layer 8, expected 0 to 7"),
    "an empty range": (merge("layer_range: [3, 3]"), {"num_layers": 8}, "found [3, 3], expected the first layer"),
    "a scale": (
        merge("layer_range: [0, 8], parameters: {scale: [{filter: q_proj, value: 0.5}, {value: 1}]}"),
        {"num_layers": 8},
        "model.layers.0.self_attn.q_proj.weight is scaled by 0.5, expected 1",
    ),
    "an embedding": (
        merge("layer_range: [0, 8]", extra="parameters: {scale: 0}"),
        {"num_layers": 8},
        "model.layers.0.input_layernorm.weight is scaled by 0",
    ),
    "a head": (
        merge("layer_range: [0, 8]", extra="parameters: {scale: [{filter: lm_head, value: 2}]}"),
        {"num_layers": 8},
        "lm_head.weight is scaled by 2",
    ),
    "a gradient": (merge("layer_range: [0, 8], parameters: {scale: [0, 1]}"), {"num_layers": 8}, "found 0, expected a"),
    "another filter": (
        merge("layer_range: [0, 8], parameters: {scale: [{filter: c_proj, value: 0}]}"),
        {"num_layers": 8},
        "the filter 'c_proj' names no tensor of a Llama-like layer",
    ),
    "a merge": (merge("layer_range: [0, 8]").replace("passthrough", "ties"), {"num_layers": 8}, "found 'ties'"),
    "two models": (
        merge("layer_range: [0, 4]", "layer_range: [4, 8]").replace("org/base", "org/other", 1),
        {"num_layers": 8},
        "found 'org/base', expected 'org/other'",
    ),
    "a lora": (
        merge("layer_range: [0, 8]").replace("org/base", "org/base+lora"),
        {},
        "expected a model without a LoRA",
    ),
    "whole models": ("merge_method: passthrough\nmodels: [{model: a/b}]\n", {}, "expected a list of slices"),
    "several entries": (SELF_SD, {}, "has 2 policies, expected one"),
    "no such entry": (SELF_SD, {"entry": "llama"}, "has no policy 'llama'"),
    "a number beyond": (SELF_SD, {"entry": "llama-2-13b", "num_layers": 8}, "mlp[1]: found 9, expected a layer number"),
    "a list of words": (
        BLOCKS.replace("[6, 5, 4]", '["a", true]', 1),
        {},
        "found 'a', expected a layer number, 0 to 7",
    ),
    "another depth": (BLOCKS, {"num_layers": 9}, "num_hidden_layers: found 8, expected 9"),
    "too few booleans": (LOGICAL, {"num_layers": 5}, "found 4 entries, expected 5, one for each layer"),
    "a wrong word": ("attn\nnone\nffn\n", {}, "given:3:1  found 'ffn', expected none, attn, mlp, attn+mlp"),
    "too few lines": ("attn\nnone\n", {"num_layers": 3}, "found 2 lines, expected 3"),
    "a levels file": ("model.layers.0.mlp.up_proj: 3\n", {}, "is in no format that can be imported"),
    "broken JSON": ('{"a": [', {}, "is in no format that can be imported"),
    "a policy": ("schema: skipsearch/policy/v1\n", {}, "is a file of skipsearch already"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named_with_their_places(case):
    text, more, expected = MISTAKES[case]
    with pytest.raises(PolicyError) as caught:
        read(text, **more)
    assert expected in str(caught.value)


# Targets


@pytest.mark.parametrize("name", FORMATS)
def test_a_target_writes_its_file_and_proves_it(name, tmp_path):
    policy = policy_of({1: "skip_attention", 2: "skip_layer"}, 4)
    source = Source(built("llama", "sdpa"), id=BASE, revision="v1")
    done = export(policy, source, target_class(name)(), tmp_path / "out")
    assert done.difference == 0 and done.proof.startswith("read back") and "was not run" in done.proof
    file = tmp_path / "out" / FORMATS[name].file
    assert read_file(file, num_layers=4)[1].fingerprint == policy.fingerprint
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: some/model" in card and "pipeline_tag: text-generation" in card and "was not run" in card


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_says_something_else_fails_the_proof(name, tmp_path):
    source = Source(built("llama", "sdpa"), id=BASE)
    target = target_class(name)()
    reference = Reference.of(policy_of({1: "skip_attention"}, 4), source)
    target.write(policy_of({1: "skip_ffn"}, 4), source, tmp_path)
    assert target.check(tmp_path, reference) == float("inf")


def reasons(name, family, layers, options=Options(), **given):
    source = Source(built(family, "sdpa"), **{"id": BASE, **given})
    return " | ".join(target_class(name)(options).can(policy_of(layers, 4), source))


def test_a_target_refuses_models_that_its_tool_does_not_load_right():
    skip = {2: "skip_layer"}
    assert "as it is, for all layers: layer_types" in reasons("mergekit", "gemma3", skip)
    assert "for all layers: scale_depth" in reasons("mergekit", "minicpm3", skip)
    assert reasons("mergekit", "gemma3", {1: "skip_ffn", 2: "skip_attention"}) == ""
    assert "its output projection is not called down_proj" in reasons("mergekit", "qwen3-moe", {1: "skip_ffn"})
    assert "its output projection is not called o_proj" in reasons("mergekit", "neox", {1: "skip_attention"})
    assert "and this one has several parts" in reasons("mergekit", "llava", skip)
    assert "--no-zero forbids" in reasons("mergekit", "llama", {1: "skip_ffn"}, Options(zero=False))
    assert reasons("mergekit", "llama", dict.fromkeys(range(4), "skip_layer")) == "no layer is left"
    assert "this model is a qwen2" in reasons("llm-drop", "qwen2", skip)
    assert "this model is a qwen2" in reasons("evopress", "qwen2", skip)
    assert "the policy changes layer 0 | SWIFT keeps" in reasons("swift", "llama", {0: "skip_ffn", 3: "skip_ffn"})


def test_llm_drop_names_the_classes_without_which_its_lists_are_ignored(tmp_path):
    export(
        policy_of({1: "skip_ffn"}, 4), Source(built("mistral", "sdpa")), target_class("llm-drop")(), tmp_path / "out"
    )
    keys = json.loads((tmp_path / "out" / "drop_lists.json").read_text())
    assert keys.pop("auto_map")["AutoModelForCausalLM"] == "modeling_dropped_mistral.MistralForCausalLM"
    assert keys == {"num_hidden_layers": 4, "drop_attn_list": [], "drop_mlp_list": [1]}


def test_mergekit_itself_makes_the_model_under_the_policy(tmp_path):
    """Runs where mergekit is installed, which is no dependency."""
    merging = pytest.importorskip("mergekit.merge", reason="mergekit is not installed")
    import torch
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.options import MergeOptions
    from transformers import AutoModelForCausalLM

    from skipsearch import apply_policy

    model = built("llama", "sdpa")
    model.save_pretrained(tmp_path / "base")
    named = policy_of({0: "skip_ffn", 1: "skip_layer", 3: "skip_attention"}, 4)
    policy = named.model_copy(update={"model": ModelRef(num_layers=4)})
    source = Source(model, id=str(tmp_path / "base"))
    export(policy, source, target_class("mergekit")(), tmp_path / "out")
    config = MergeConfiguration.model_validate(yaml.safe_load((tmp_path / "out" / "mergekit.yaml").read_text()))
    options = MergeOptions(copy_tokenizer=False, write_model_card=False)
    merging.run_merge(config, str(tmp_path / "merged"), options)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        found = merged(ids).logits
        with apply_policy(model, policy):
            assert torch.equal(found, model(ids).logits)
    assert merged.config.num_hidden_layers == 3


# The command, and the way into a search


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("drop.txt").write_text("none\nattn\nnone\nattn+mlp\n")
    Path("layers.json").write_text(SELF_SD)
    return tmp_path


def test_the_command_prints_or_writes_the_policy(here, capsys):
    assert main(["import", "drop.txt"]) == 0
    printed = capsys.readouterr().out
    assert main(["import", "drop.txt", "--out", "policy.yaml"]) == 0
    assert capsys.readouterr().out == (
        "wrote policy.yaml, from evopress: skip_attention in 1 layers, skip_layer in 1 layers\n"
    )
    assert Path("policy.yaml").read_text() == printed
    assert main(["import", "layers.json", "--entry", "llama-2-13b_cnndm", "--format", "swift", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "swift" and found["policy"]["layers"] == {"2": {"attention": "skip"}}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("nowhere.txt", "nowhere.txt does not exist"),
        ("drop.txt --num-layers 5", "found 4 lines, expected 5"),
        ("drop.txt --num-layers 99999", "found 99999, expected at most 10000"),
        ("drop.txt --entry x", "a file of evopress has one policy"),
        ("drop.txt --format mergekit", "drop.txt has a problem"),
        ("layers.json", "hint: name one with --entry"),
        ("drop.txt --out layers.json", "layers.json exists"),
        (".", ". is a folder"),
    ],
)
def test_broken_imports_say_what_is_wrong(here, capsys, arguments, expected):
    assert main(["import", *arguments.split()]) == 2
    assert expected in capsys.readouterr().err


def test_the_formats_of_the_command_are_those_of_the_table(capsys):
    with pytest.raises(SystemExit):
        main(["import", "--help"])
    assert f"{{auto,{','.join(FORMATS)}}}" in capsys.readouterr().out


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    return searching.tiny_space(tmp_path_factory.mktemp("space"))


def test_an_imported_policy_starts_a_search(here, space):
    imported = space.parent / "drop.yaml"
    assert main(["import", "drop.txt", "--out", str(imported)]) == 0
    study = open_study(space, here, search__start="[last, drop.yaml]")
    assert study.ask().policy.is_dense
    second = study.ask()
    assert second.policy.fingerprint == Policy.load(imported).fingerprint
    assert second.trial.user_attrs["rule"] == "drop.yaml: skip_attention in 1 layer, skip_layer in 1 layer"
    fingerprints = [searching.loaded(space, search__start=start).space.fingerprint() for start in ("[drop.yaml]",) * 2]
    Policy(layers={1: CHOICES["skip_ffn"]}).save(imported)
    changed = searching.loaded(space, search__start="[drop.yaml]").space.fingerprint()
    assert len({*fingerprints}) == 1 and changed not in fingerprints


@pytest.mark.parametrize(
    ("layers", "error", "expected"),
    [
        ("layers: {0: {attention: skip}}", SpaceError, "layer 0 cannot be skip_attention"),
        ("model: {num_layers: 9}", PolicyMismatch, "policy was made for 9 layers, model has 4"),
    ],
)
def test_a_start_that_the_space_does_not_allow_leaves_no_study_behind(here, space, layers, error, expected):
    (space.parent / "wrong.yaml").write_text(f"schema: skipsearch/policy/v1\n{layers}\n")
    with pytest.raises(error, match=expected):
        open_study(space, here, search__start="[wrong.yaml]")
    assert not (here / "study.db").exists()


def test_a_start_that_cannot_be_read_is_named_in_the_space(space):
    with pytest.raises(SpaceError, match=r"search.start\[1\]: .*nowhere.yaml does not exist"):
        searching.loaded(space, search__start="[last, nowhere.yaml]")
