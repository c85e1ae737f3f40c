"""The JSON Schemas that editors complete YAML with: committed as generated, and of one mind with the real checks."""

from __future__ import annotations

import json
from pathlib import Path

import bad_files
import jsonschema
import pytest
import yaml

from skipsearch.policies.choice import CHOICES, LayerChoice
from skipsearch.policies.policy import Policy
from skipsearch.search.places import shipped_spaces
from skipsearch.search.space.json_schema import FILES, text_of

POLICY, SPACE = (json.loads(path.read_text(encoding="utf-8")) for path in FILES)


def complaint(schema, text):
    """What an editor would mark first, None where it marks nothing."""
    data = json.loads(json.dumps(yaml.safe_load(text)))  # An editor sees keys as text.
    return jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(data))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_committed_schema_is_the_generated_one(path):
    now = text_of(FILES[path]())
    assert path.read_text(encoding="utf-8") == now, (
        "run `python -m skipsearch.search.space.json_schema` and commit what it writes"
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_is_a_schema(path):
    jsonschema.Draft202012Validator.check_schema(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", shipped_spaces())
def test_shipped_spaces_pass(name):
    assert complaint(SPACE, shipped_spaces()[name].read_text(encoding="utf-8")) is None


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[3].glob("results/example/**/pareto-*.yaml")))
def test_the_example_policies_pass(path):
    assert complaint(POLICY, path.read_text(encoding="utf-8")) is None


def test_all_keys_pass_together():
    space = """
        schema: skipsearch/space/v1
        model: {id: m, revision: null, dtype: auto, device: cpu, attn_implementation: sdpa, trust_remote_code: false}
        layers:
          - {range: 0, choices: [keep]}
          - {range: 1-last, choices: [skip_layer, {token_ratio: 0.5}, {token_ratio: [0, 1], ffn: skip},
             {wiring: parallel, norm: [own, shared], phase: decode}, {choice: [skip_ffn, keep], tokens: [all, text]}]}
        schedules:
          - shifted_cosine: {ratio: [0.3, 0.5], max: 0.85, min: 0.15}
          - linear: {ratio: 0.5, max: 0.85, min: [0, 0.15]}
          - fastv: {layer: [2, 3], token_ratio: 0.5}
          - interval: {interval: [2, [2, 4]], start: 0, end: null, choice: [skip_ffn, parallel], norm: shared,
             phase: [both, decode], tokens: all}
        tied: [[2, 3], [4, 5]]
        forbid: [{2: [skip_ffn, {token_ratio: 0.5}], 3: skip_ffn}, {consecutive: skip_ffn, more_than: 3}]
        token_selection: {score: norm, reselect: [each_layer, once]}
        evaluate: {accuracy: {tasks: [a], search: {limit: 3}}, flops: , latency: {threads: null}, plugin: {any: thing}}
        objectives: {accuracy: maximize, plugin_metric: maximize}
        constraints: {accuracy: ">= 0.9 * dense", plugin_metric: "<= .5"}
        search: {trials: 3, seed: 0, sampler: tpe, start: [fastv], max_failures: 2, stop: {stagnation: 9, minutes: 0.5}}
        workers: {count: auto, gpus: 0.5, cpus: 1, address: null, runner: tune}
    """
    assert complaint(SPACE, space) is None
    assert complaint(SPACE, space.split("workers:")[0] + "search:\n") is None
    with_schedules_alone = bad_files.SPACE.replace(
        "layers: [{", "schedules: [{fastv: {layer: 2, token_ratio: 0.5}}] # "
    )
    assert complaint(SPACE, with_schedules_alone) is None


def test_what_a_policy_writes_passes():
    layers = dict(
        enumerate([*CHOICES.values(), LayerChoice(token_ratio=0.5), LayerChoice(token_ratio=0.0, ffn="skip")])
    )
    figure = {"value": 0.61, "dense": 0.62, "stderr": 0.01, "n": 20, "split": "report"}
    policy = Policy.model_validate(
        {
            "model": {"id": "m", "num_layers": 9},
            "layers": layers,
            "measured": {"accuracy": figure},
            "provenance": {"study": "s", "trial": 4, "skipsearch": "0.1.0"},
        }
    )
    assert complaint(POLICY, policy.to_yaml()) is None


def wrong():
    """The broken files whose mistake is in a key or a value, as far as a schema can say it."""
    beyond = {
        # Between values, or of YAML itself: for the command to find.
        "policy: layers beyond the model", "policy: layer twice", "policy: layer twice, once in hexadecimal",
        "policy: layer twice, once in quotes", "policy: merge key", "space: nothing to search", "space: backwards",
        "space: overlap", "space: window beside a ratio", "space: groups that overlap or differ",
        "space: forbidden choices that no layer has", "space: dense forbidden",
        "space: empty id", "space: no tasks", "space: range beyond any model", "space: key twice",
        "space: infinite bound", "space: endless GPUs", "ratio .nan", "policy: schedule for an unknown depth",
        "policy: decay upside down", "policy: layer beyond the schedule", "space: decays upside down",
        "space: name beside what it stands for",
        # Perhaps an installed evaluator measures it.
        "space: near evaluator", "space: objective of another evaluator", "space: near objective",
        "space: constraint that no evaluator measures",
        # Perhaps an installed package has the score.
        "policy: unknown score",
        # No plain data.
        "policy: octal", "policy: base 60",
        "policy: python object", "policy: binary", "policy: not of its tag", "policy: endless number",
        "policy: list as a key",
    }  # fmt: skip
    names = [case for case in bad_files.cases() if case.id.startswith(("policy: ", "space: ", "ratio "))]
    assert beyond < {case.id for case in names}
    return [pytest.param(case.values[0], id=case.id) for case in names if case.id not in beyond]


@pytest.mark.parametrize("text", wrong())
def test_wrong_files_are_marked(text):
    assert complaint(POLICY if "policy/v1" in text else SPACE, text) is not None


def test_the_undamaged_files_pass():
    assert complaint(POLICY, bad_files.POLICY) is None
    assert complaint(SPACE, bad_files.SPACE) is None


@pytest.mark.parametrize("schema", [POLICY, SPACE], ids=["policy", "space"])
def test_every_key_at_the_top_is_described(schema):
    assert not [key for key, entry in schema["properties"].items() if not entry.get("description")]


def test_an_editor_completes_names():
    choices = SPACE["$defs"]["LayerRule"]["properties"]["choices"]["items"]["anyOf"]
    assert choices[0]["enum"] == list(CHOICES)
    known = ["accuracy", "answer_loss", "divergence", "flops", "latency", "memory", "speculative"]
    assert list(SPACE["properties"]["evaluate"]["properties"]) == known
    assert SPACE["properties"]["objectives"]["properties"]["ttft_ms"]["const"] == "minimize"
    assert "prompt_tokens" in SPACE["$defs"]["LatencyOptions"]["properties"]
