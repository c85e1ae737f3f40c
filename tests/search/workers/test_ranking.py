"""A ranking of channels belongs to a study: it is made once, on the search split, and no other one is taken."""

from __future__ import annotations

import json

import pytest

import tiny
from skipsearch import Policy
from skipsearch.evaluators.example_options import ExampleOptions
from skipsearch.evaluators.loaded_examples import LoadedExamples
from skipsearch.evaluators.statistics import layer_statistics
from skipsearch.evaluators.subject import ModelSpec, load_subject
from skipsearch.policies.errors import PolicyError, PolicyMismatch, SpaceError, StudyError
from skipsearch.policies.rankings.files import digest
from skipsearch.policies.rankings.scores import Scores, ranking_file, read_scores
from skipsearch.policies.scores.router import GAMMA_MOD
from skipsearch.search.cli import main
from skipsearch.search.space.load import load_space
from skipsearch.search.space.parameters import Parameters
from skipsearch.search.workers.evaluate import PolicyEvaluator
from skipsearch.search.workers.ranking import make_ranking, take_ranking, with_ranking

SPACE = """
schema: skipsearch/space/v1
model: {id: ./llama, device: cpu}
layers:
  - {range: 1-2, ffn_ratio: [1, 0.5, 0.25]}
  - {range: 3, head_ratio: [1, 0.5]}
width_selection: {ranking: [weights, energy]}
evaluate:
  accuracy: {tasks: [./text_mc.yaml], search: {limit: 6}, report: {limit: 6}}
  flops:
objectives: {accuracy: maximize, prefill_flops: minimize}
workers: {count: 1}
"""
LAYERS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranking")
    tiny.tiny_llama(folder)
    tiny.text_tasks(folder, 12)
    (folder / "space.yaml").write_text(SPACE)
    return folder


def space_of(folder, **overrides):
    given = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return load_space(str(folder / "space.yaml"), given).space


class Workers:
    """One worker in this process, which counts how often it ranks."""

    def __init__(self, evaluator):
        self.evaluator, self.ranked, self.content = evaluator, 0, b""

    def rank_widths(self):
        self.ranked += 1
        return make_ranking(self.evaluator)

    def share_ranking(self, content):
        self.content = content
        take_ranking(self.evaluator, content)


@pytest.fixture(scope="module")
def evaluator(folder):
    return PolicyEvaluator(space_of(folder))


@pytest.fixture
def workers(evaluator):
    return Workers(evaluator)


def test_a_study_ranks_once_and_its_policies_name_the_file(folder, workers, tmp_path):
    space, file = space_of(folder), tmp_path / "energy.safetensors"
    ranked = with_ranking(space, LAYERS, workers, file)
    sha256 = digest(file.read_bytes())
    assert workers.ranked == 1 and workers.content == file.read_bytes() and {*tmp_path.iterdir()} == {file}
    found = read_scores(file.read_bytes(), "")
    assert ({*found.channels}, {*found.heads}) == ({1, 2}, {3})  # the layers that may run a share
    chosen = {"layer_01.ffn_ratio": "ffn_ratio 0.5", "layer_03.head_ratio": "head_ratio 0.5", "ranking": "energy"}
    policy = Parameters(ranked, LAYERS).policy(chosen)
    selection = {"ranking": "energy", "file": "energy.safetensors", "sha256": sha256}
    assert policy.document()["width_selection"] == selection
    assert Parameters(ranked, LAYERS).encode(policy)["ranking"] == "energy"
    # A worker gets plain data, and has the ranking by its SHA-256.
    sent = Policy.model_validate(policy.document())
    assert workers.evaluator.measure(sent, ["flops"]).failure is None
    other = Policy.model_validate({**policy.document(), "width_selection": {**selection, "sha256": "0" * 64}})
    assert "is not beside it" in workers.evaluator.measure(other, ["flops"]).failure
    again = with_ranking(space, LAYERS, workers, file, sha256)
    assert workers.ranked == 1 and again.fingerprint() == ranked.fingerprint() != space.fingerprint()


def test_only_the_search_split_is_seen(folder, evaluator, monkeypatch):
    """Its prompts have each example once, in full and without padding."""
    accuracy = next(one for one in evaluator.evaluators if one.name == "accuracy")
    texts = [json.loads(line)["question"] for line in (folder / "text.jsonl").read_text().splitlines()]
    encode = evaluator.subject.tokenizer.encode
    found = [prompt["input_ids"][0].tolist() for prompt in accuracy.calibration_prompts(128)]
    assert found == [encode(text) for text in texts[:6]]
    assert [len(one["input_ids"]) for one in accuracy.calibration_prompts(3)] == [1, 1, 1]
    monkeypatch.setattr(type(accuracy._model), "max_length", 3)
    assert [prompt["input_ids"][0].tolist() for prompt in accuracy.calibration_prompts(1)] == [encode(texts[0])[-3:]]


def test_a_resumed_study_has_its_own_ranking_or_stops(folder, workers, tmp_path):
    file = tmp_path / "energy.safetensors"
    ranked = with_ranking(space_of(folder), LAYERS, workers, file)
    sha256 = ranked.width_selection.sha256
    given = tmp_path / "given.safetensors"
    given.write_bytes(make_ranking(PolicyEvaluator(space_of(folder, width_selection__alpha=0.0))))
    named = space_of(folder, width_selection__file=given)
    with pytest.raises(StudyError, match="the study was made for another ranking"):
        with_ranking(named, LAYERS, workers, file, sha256)
    file.write_bytes(given.read_bytes())
    with pytest.raises(StudyError, match="lacks the ranking that it was begun with") as error:
        with_ranking(space_of(folder), LAYERS, workers, file, sha256)
    assert f"found SHA-256 {digest(given.read_bytes())}, expected {sha256}" in str(error.value)
    file.unlink()
    with pytest.raises(StudyError, match="lacks the ranking that it was begun with"):
        with_ranking(space_of(folder), LAYERS, workers, file, sha256)
    # A space that names a file has that one, in a study of its own.
    taken = with_ranking(named, LAYERS, workers, file)
    assert file.read_bytes() == given.read_bytes() and workers.ranked == 1
    assert taken.width_selection.file == "energy.safetensors" and taken.fingerprint() != ranked.fingerprint()


def test_a_given_ranking_must_be_the_right_one(folder, workers, tmp_path):
    given, made = tmp_path / "given.safetensors", read_scores(make_ranking(workers.evaluator), "")
    given.write_bytes(ranking_file(Scores({1: made.channels[1]}, made.heads), {}))
    named = space_of(folder, width_selection__file=given)
    with pytest.raises(PolicyMismatch, match="does not fit the model") as error:
        with_ranking(named, LAYERS, workers)
    assert "layer 2: found no scores of channels, expected 48" in str(error.value)
    given.write_bytes(ranking_file(Scores(made.channels), {}))
    with pytest.raises(PolicyMismatch, match="layer 3: found no scores of groups of heads, expected 2"):
        with_ranking(named, LAYERS, workers)
    with pytest.raises(PolicyError, match="is another ranking than its policy's"):
        with_ranking(space_of(folder, width_selection__file=given, width_selection__sha256="a" * 64), LAYERS, workers)
    given.unlink()
    with pytest.raises(PolicyError, match="cannot be read"):
        with_ranking(named, LAYERS, workers)


def test_a_space_without_widths_needs_no_ranking(folder, workers, tmp_path):
    space = space_of(folder, layers="[{range: all, choices: [keep, skip_ffn]}]")
    assert with_ranking(space, LAYERS, workers, tmp_path / "energy.safetensors") is space
    first = space_of(folder, width_selection="{ranking: first}")
    assert with_ranking(first, LAYERS, workers) is first
    assert not workers.ranked and not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"width_selection": "{ranking: weights, alpha: 0.5}"}, "found alpha without the ranking energy"),
        ({"width_selection": "{ranking: energy, alpha: 1.5}"}, "width_selection.alpha"),
        ({"width_selection": "{ranking: energy, file: missing}"}, "width_selection.file: there is no file"),
        ({"width_selection": f"{{ranking: energy, sha256: {'a' * 64}}}"}, "found sha256 without file"),
        (
            {"evaluate": "{flops: , memory: }", "objectives": "{prefill_flops: minimize, kv_cache_bytes: minimize}"},
            "width_selection.ranking: energy is found on examples, and no evaluator has any",
        ),
    ],
)
def test_a_space_that_asks_for_no_possible_ranking_is_refused(folder, overrides, line):
    with pytest.raises(SpaceError) as error:
        space_of(folder, **overrides)
    assert line in str(error.value)


def test_the_command_ranks_a_model_and_its_file_works_beside_a_policy(folder, capsys, tmp_path):
    model, task, out = folder / "llama", folder / "text_mc.yaml", tmp_path / "own.safetensors"
    command = ["rank", str(model), "--tasks", f"{task},{folder / 'text_gen.yaml'}", "--out", str(out), "--limit", "5"]
    assert main([*command, "--json", "--alpha", "0.5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["channels"] == {str(index): 48 for index in range(LAYERS)} and found["refused"] == {"channels": {}}
    assert (found["examples"], found["alpha"]) == (5, 0.5) and found["tokens"] > 5
    assert found["width_selection"]["sha256"] == digest(out.read_bytes())
    policy = {"schema": "skipsearch/policy/v1", "layers": {1: {"ffn_ratio": 0.5}, 3: {"ffn_ratio": 0.5}}}
    file = tmp_path / "policy.yaml"
    Policy.model_validate({**policy, "width_selection": found["width_selection"]}).save(file)
    assert main(["eval", str(file), "--space", str(folder / "space.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main(command) == 2 and f"{out} exists" in capsys.readouterr().err
    out.unlink()
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("ranked 192 channels of 4 layers on 5 examples of ")
    assert f"width_selection: {{ranking: energy, file: own.safetensors, sha256: {digest(out.read_bytes())}}}" in printed
    out.unlink()
    assert main([*command, "--of", "both", "--alpha", "0"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("ranked 192 channels of 4 layers and 8 groups of heads of 4 layers on 5 examples of ")
    both = {"ffn_ratio": 0.5, "head_ratio": 0.5}
    selection = {**found["width_selection"], "sha256": digest(out.read_bytes())}
    Policy.model_validate({**policy, "layers": {1: both}, "width_selection": selection}).save(file)
    assert main(["eval", str(file), "--space", str(folder / "space.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    wrong = [["--alpha", "2"], ["--limit", "0"], ["--tasks", "no/such.yaml"], ["--tasks", ","]]
    for options in wrong:
        rest = command[2:] if options[0] != "--tasks" else command[4:]
        assert main(["rank", str(model), *rest, *options, "--out", str(tmp_path / "new")]) == 2
        assert "error: " in capsys.readouterr().err


def test_the_command_writes_a_policy_of_the_layers_with_the_lowest_attention_ranks(folder, tmp_path, capsys):
    model, out = tiny.tiny_llava(tmp_path), tmp_path / "arank.yaml"
    tiny.image_tasks(tmp_path, 4)
    command = ["rank", str(model), "--tasks", str(tmp_path / "image_gen.yaml"), "--of", "layers", "--limit", "2"]
    assert main([*command, "--out", str(out), "--count", "2", "--token-ratio", "0.3", "--json"]) == 0
    found, policy = json.loads(capsys.readouterr().out), Policy.load(out)
    lowest = sorted(range(LAYERS), key=lambda index: found["ranks"][index])[:2]
    assert found["layers"] == [*policy.layers] == sorted(lowest) and found["examples"] == 2
    assert {choice.token_ratio for choice in policy.layers.values()} == {0.3}
    assert policy.token_selection.router == GAMMA_MOD and policy.model.num_layers == LAYERS
    subject = load_subject(ModelSpec(id=str(model)))
    prompts = LoadedExamples(ExampleOptions(tasks=[command[3]]), subject).calibration_prompts(2)
    ranks = [one.attention_rank for one in layer_statistics(subject.model, [*prompts])]
    assert found["ranks"] == pytest.approx(ranks)
    assert main([*command, "--out", str(out)]) == 2 and "exists" in capsys.readouterr().err
    for wrong, says in ((["--count", "5"], "expected at most 4"), (["--token-ratio", "1"], "between 0 and 1")):
        assert main([*command, "--out", str(tmp_path / "new"), *wrong]) == 2
        assert says in capsys.readouterr().err
    command[1] = str(folder / "llama")
    assert main([*command, "--out", str(tmp_path / "new")]) == 2 and "sees no images" in capsys.readouterr().err
