"""`skipsearch init`: the space it writes for a model, what it refuses, and a search of that space."""

from __future__ import annotations

import json
import re
from itertools import chain, combinations
from pathlib import Path

import pytest
import transformers as t
from model_types import all_rows, outcome_of

import tiny
from skipsearch.evaluators.subject import ModelSpec
from skipsearch.policies.choice import LayerChoice
from skipsearch.policies.errors import ModelError
from skipsearch.search.cli import main
from skipsearch.search.init.allowed import OFFERED as OFFERED_KEYS
from skipsearch.search.init.allowed import OPTIONAL, Allowed, Support, allowed
from skipsearch.search.init.proposal import Wishes, rules
from skipsearch.search.init.shrink import shrunk
from skipsearch.search.init.small_model import layer_kinds, representatives, small_model
from skipsearch.search.init.space_text import SpaceFile
from skipsearch.search.space.load import SPACES, load_space

EVERY = {"attention": 1.0, "ffn": 1.0, "wiring": 1.0, "ffn_ratio": 1.0, "head_ratio": 1.0, "wiring: pair": 1.0}
# What a space for a model type offers, by key the share of its layers.
OFFERED = {
    "llama": EVERY,
    "gptj": EVERY,
    "cohere2": {**EVERY, "wiring": 0.0},  # both sublayers read the layer's input in the dense model too
    # A decode step leaves cross-attention out where it has stored nothing.
    "mllama": {**EVERY, "attention": 0.8, "head_ratio": 0.8, "wiring: pair": 0.0},
    "qwen3_next": {**EVERY, "head_ratio": 0.25},  # the others are recurrences
    "llava": {**EVERY, "token_ratio": 1.0, "window": 1.0},
}
REFUSED = {
    "bert": "no decoder layers found in BertLMHeadModel",
    "bart": "is an encoder with a decoder",
    "mamba": "the layers of MambaForCausalLM cannot be taken apart",
    "vit": "is no language model that transformers loads",
    "chameleon": "no small chameleon can be built",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A LLaVA and a Llama in folders, with task files in a folder of their own."""
    folder = tmp_path_factory.mktemp("world")
    tiny.tiny_llava(folder)
    tiny.tiny_llama(folder)
    (folder / "tasks").mkdir()
    tiny.image_tasks(folder / "tasks")
    return folder


@pytest.fixture
def here(world, monkeypatch):
    """The folder of the models, in which each test names a file of its own."""
    monkeypatch.chdir(world)
    return world


@pytest.mark.parametrize("kind", OFFERED)
def test_a_space_offers_what_a_family_allows(kind, tmp_path):
    row = outcome_of(kind, tmp_path)
    assert (row.outcome, row.keys) == ("space", OFFERED[kind])


@pytest.mark.parametrize("kind", REFUSED)
def test_other_models_are_refused_by_name(kind, tmp_path):
    row = outcome_of(kind, tmp_path)
    assert row.outcome == "refused" and REFUSED[kind] in row.reason


def test_a_missing_package_is_named(tmp_path):
    row = outcome_of("qwen2_5_vl", tmp_path)
    if t.utils.is_torchvision_available():
        assert row.outcome == "space"
    else:
        assert "needs a package that is missing: torchvision" in row.reason and row.layers == 80


@pytest.mark.soak
def test_no_model_type_fails_in_another_way():
    assert not [row for row in all_rows(None) if row.outcome == "failed"]


def test_a_small_configuration_keeps_the_build_of_layers():
    large = t.LlamaConfig(hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, pad_token_id=31999)
    small = shrunk(large, 2)
    assert (small.num_hidden_layers, small.head_dim, small.hidden_size) == (32, 128, 256)
    assert (small.num_attention_heads, small.num_key_value_heads, large.hidden_size) == (2, 1, 4096)
    assert small.pad_token_id < small.vocab_size < large.vocab_size
    assert len({small.pad_token_id, small.bos_token_id, small.eos_token_id}) == 3


def test_each_kind_of_layer_stands_in_the_small_model():
    config = t.Gemma2Config(num_hidden_layers=6)
    small = small_model(config, "gemma2")
    assert small.stands_for == (0, 1, 0, 1, 0, 1)
    assert len(layer_kinds(small.model.model.layers)) == 2
    assert representatives(["a", "a", "b", "a"]) == [0, 2] and representatives(["a", "a", "a"]) == [0, 1]


def test_a_window_is_tried_on_whole_grids():
    config = t.Qwen2VLConfig()
    found = allowed(small_model(config, "qwen2_vl"), "qwen2_vl").optional["window"]
    assert len(found.layers) == config.get_text_config().num_hidden_layers, found.reason


def test_a_space_says_any_set_of_keys(tmp_path):
    sets = chain.from_iterable(combinations(OFFERED_KEYS, size) for size in range(1, len(OFFERED_KEYS) + 1))
    for place, given in enumerate(sets):
        offered = {key: Support(frozenset(range(4 if place % 2 else 9)), "") for key in given}
        found = Allowed(9, ("Layer",), offered, {}, {}, ("once",) if "token_ratio" in given else ())
        spec = ModelSpec(id="some/model")
        proposal = SpaceFile("some/model", spec, found, rules(found), ["arc_easy"], ["ttft_ms"], Wishes(), True, True)
        (tmp_path / "space.yaml").write_text(proposal.text())
        domains = load_space(str(tmp_path / "space.yaml")).space.domains(9)
        choices = {choice for domain in domains for choice in domain}
        assert {OFFERED_KEYS[key] for key in given if key != "token_ratio"} <= choices
        assert any(choice.token_ratio == 0.5 for choice in choices) == ("token_ratio" in given)


@pytest.mark.parametrize(
    ("key", "replaced", "choice"),
    [("head_ratio", None, {"head_ratio": 0.5}), ("window", "token_ratio", {"window": 2}),
     ("wiring", "wiring", {"wiring": "pair"})],
)  # fmt: skip
def test_a_key_in_a_comment_takes_its_place_when_it_is_uncommented(key, replaced, choice, tmp_path):
    offered, optional = ({name: Support(frozenset(range(9))) for name in keys} for keys in (OFFERED_KEYS, OPTIONAL))
    found = Allowed(9, ("Layer",), offered, optional, {}, ("each_layer",))
    spec = ModelSpec(id="some/model")
    proposal = SpaceFile("some/model", spec, found, rules(found), ["arc_easy"], ["ttft_ms"], Wishes(), True, True)
    lines = [line for line in proposal.text().splitlines() if not line.startswith(f"    {replaced}:")]
    text = "\n".join(lines).replace(f"    # {key}:", f"    {key}:")
    (tmp_path / "space.yaml").write_text(text)
    # A pair needs a layer behind it.
    assert LayerChoice(**choice) in load_space(str(tmp_path / "space.yaml")).space.domains(10)[8]


def test_a_configuration_that_cannot_be_built_is_refused():
    config = t.LlamaConfig(hidden_act="unheard-of")
    with pytest.raises(ModelError, match="no small llama can be built from the configuration of mine"):
        small_model(config, "mine")


def test_every_key_of_a_space_has_a_comment(here, capsys):
    assert main(["init", "llava", "-o", "-", "--tasks", "tasks", "--limit", "3"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    for place, line in enumerate(lines):
        is_key = re.match(r" *(- )?\{?\w+: *\S", line)
        assert not is_key or "# " in line or lines[place - 1].lstrip().startswith("#"), line
    assert "tasks: [tasks/image_gen.yaml, tasks/image_mc.yaml]" in out
    assert "next: skipsearch run FILE" in err and "skipsearch plan FILE" in err


def test_what_the_options_ask_for_is_in_the_space(here, capsys):
    arguments = ["--tasks", "tasks/image_mc.yaml", "--keep", "0.95", "--minimize", "ttft_ms,kv_cache_bytes"]
    Path("sub").mkdir()
    more = ["--minimize", "divergence", "--trials", "9", "--limit", "2", "--json"]
    assert main(["init", "llava", "-o", "sub/mine.yaml", *arguments, *more]) == 0
    told = json.loads(capsys.readouterr().out)
    keys = ["attention", "ffn", "wiring", "ffn_ratio", "token_ratio"]
    assert (told["num_layers"], told["layers"]) == (4, {"0-3": keys})
    assert told["next"][1] == "skipsearch run sub/mine.yaml"
    space = load_space("sub/mine.yaml").space
    assert [*space.objectives] == ["accuracy", "ttft_ms", "kv_cache_bytes", "divergence"]
    assert space.constraints["accuracy"].text == ">= 0.95 * dense" and space.search.trials == 9
    assert space.model.id == str(here / "llava")
    accuracy = space.evaluate["accuracy"]
    assert accuracy["tasks"] == [str(here / "tasks/image_mc.yaml")]
    assert (accuracy["search"], accuracy["report"]) == ({"limit": 2}, {"limit": 10})


def test_a_file_is_named_by_its_model_and_never_overwritten(here, capsys):
    assert main(["init", "./llama/"]) == 0
    text = Path("llama.yaml").read_text()
    assert "tasks: [arc_easy, hellaswag]" in text and "token_ratio: [" not in text
    assert main(["validate", "llama.yaml"]) == 0
    assert main(["init", "llama", "--trials", "3"]) == 2
    assert "llama.yaml exists" in capsys.readouterr().err and Path("llama.yaml").read_text() == text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["llama", "--minimize", "ttft"], "no evaluator measures 'ttft'"),
        (["llama", "--minimize", "accuracy"], "more of it is better"),
        (["llama", "--keep", "1.2"], "expected a share above 0"),
        (["llama", "--tasks", "missing.yaml"], "task file missing.yaml does not exist"),
        (["llama", "--tasks", "llava"], "no task is in the folder llava"),
        (["./nowhere"], "model folder ./nowhere does not exist"),
        (["tasks"], "model tasks cannot be loaded"),
        (["llama", "-o", "nowhere/mine.yaml"], "the folder nowhere does not exist"),
    ],
)
def test_mistakes_are_named(here, capsys, arguments, words):
    output = [] if "-o" in arguments else ["-o", "new.yaml"]
    assert main(["init", *arguments, *output]) == 2
    assert words in capsys.readouterr().err and not Path("new.yaml").exists()


def test_the_next_command_trusts_what_the_space_needs(here, tmp_path, capsys):
    (tmp_path / "own.yaml").write_text("task: own\ndoc_to_text: !function utils.text\n")
    assert main(["init", "llama", "-o", str(tmp_path / "mine.yaml"), "--tasks", str(tmp_path)]) == 0
    assert f"next: skipsearch run {tmp_path / 'mine.yaml'} --trust-task-code" in capsys.readouterr().out


def test_shipped_tasks_are_found_from_any_folder(tmp_path):
    text = (SPACES / "llava.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text)
    tasks = load_space(str(tmp_path / "mine.yaml")).space.evaluate["accuracy"]["tasks"]
    assert tasks[0] == str(SPACES / "tasks/pope.yaml")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/pope.yaml").write_text("task: pope\n")
    tasks = load_space(str(tmp_path / "mine.yaml")).space.evaluate["accuracy"]["tasks"]
    assert tasks[0] == str(tmp_path / "tasks/pope.yaml") and tasks[1] == str(SPACES / "tasks/gqa.yaml")


def test_a_model_of_ones_own_is_searched_without_an_editor(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        assert main([*arguments]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    model, task = str(world / "llava"), str(world / "tasks/image_mc.yaml")
    run("init", model, "-o", "own.yaml", "--tasks", task, "--minimize", "prefill_flops", "--trials", "8")
    assert "is a space" in run("validate", "own.yaml")
    told = json.loads(run("run", "own.yaml", "--quiet", "--json"))
    policy = next(tmp_path.glob("results/own/policies/*.yaml"))
    assert "layer" in run("show", str(policy))
    measured = json.loads(run("eval", str(policy), "--json"))
    assert told and measured
