"""The policy as a value and as a file."""

from __future__ import annotations

import copy
import json
import pickle
import random
import subprocess
import sys
from typing import Any

import jsonschema
import pytest
import yaml
from policy_files import HEAD, complaint, load
from pydantic import ValidationError

from skipsearch import LayerChoice, Policy
from skipsearch.policies.choice import CHOICES, WidthSelection
from skipsearch.policies.errors import PolicyMismatch
from skipsearch.policies.schemas import policy_schema
from skipsearch.policies.scores.token_selection import TokenSelection

SKIP_LAYER = {"attention": "skip", "ffn": "skip"}


def policy_of(layers: dict[int, dict[str, Any]], score: str = "attention") -> Policy:
    return Policy.model_validate({"layers": layers, "token_selection": {"score": score}})


def once(layers: dict[int, dict[str, Any]]) -> Policy:
    return Policy.model_validate({"layers": layers, "token_selection": {"reselect": "once"}})


FULL = {
    "schema": "skipsearch/policy/v1",
    "model": {"id": "llava-hf/llava-1.5-7b-hf", "revision": None, "num_layers": 32},
    "layers": {
        5: {"token_ratio": 0.75},
        12: {"attention": "skip"},
        13: {"ffn": "skip", "token_ratio": 0.0},
        20: SKIP_LAYER,
        21: {"wiring": "parallel"},
    },
    "token_selection": {"score": "norm", "reselect": "each_layer"},
    "measured": {
        "accuracy": {"value": 0.612, "dense": 0.62, "stderr": 0.011, "n": 2000, "split": "report"},
        "prefill_flops": {"value": 5.1e12, "dense": 8.4e12},
        "ttft_ms": {"value": 0.0000123, "iqr": 1e-7},
    },
    "provenance": {"study": "llava-2026-11-20", "trial": 41, "skipsearch": "0.1.0"},
}

FREEZE_IMAGE = {"attention": "keys_only", "ffn": "skip", "tokens": "image"}
IMAGE_WIDTH = {"ffn_ratio": 0.5, "tokens": "image"}
IMAGE_HEADS = {"head_ratio": 0.5, "tokens": "image"}
FIRST = WidthSelection(ranking="first")


# The value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (policy_of({3: {"attention": "run", "ffn": "run", "wiring": "sequential", "token_ratio": 1.0}}), Policy()),
        (policy_of({3: {}}), Policy()),
        (policy_of({3: {**SKIP_LAYER, "token_ratio": 0.5, "wiring": "parallel"}}), policy_of({3: SKIP_LAYER})),
        (policy_of({3: {"ffn": "skip", "wiring": "parallel"}}), policy_of({3: {"ffn": "skip"}})),
        (policy_of({3: {**SKIP_LAYER, "wiring": "pair"}, 4: SKIP_LAYER}), policy_of({3: SKIP_LAYER, 4: SKIP_LAYER})),
        (policy_of({3: {"wiring": "pair", "tokens": "image", "phase": "decode"}}), Policy()),
        (policy_of({3: {"window": 2, "tokens": "image", "phase": "prefill"}}), policy_of({3: {"window": 2}})),
        (
            policy_of({3: {"window": 2, "attention": "keys_only", "tokens": "image", "ffn": "skip"}}),
            policy_of({3: FREEZE_IMAGE}),
        ),
        (
            policy_of({3: {"window": 2, "ffn": "skip", "phase": "decode"}}),
            policy_of({3: {"ffn": "skip", "phase": "decode"}}),
        ),
        (
            policy_of({3: {"window": 2, "ffn": "skip", "tokens": "text"}}),
            policy_of({3: {"ffn": "skip", "tokens": "text"}}),
        ),
        (policy_of({3: {"wiring": "pair", "norm": "shared", "ffn_ratio": 1.0}}), policy_of({3: {"wiring": "pair"}})),
        (
            policy_of({3: {"wiring": "pair", "tokens": "image", "token_ratio": 0, "ffn": "skip"}}),
            policy_of({3: {"wiring": "pair", "tokens": "image", "token_ratio": 0}}),
        ),
        (policy_of({3: {"token_ratio": 0}}), policy_of({3: {"token_ratio": -0.0}})),
        (policy_of({3: {"token_ratio": 0.0}}, "norm"), policy_of({3: {"token_ratio": 0.0}}, "uniform")),
        (policy_of({3: {"ffn": "skip"}}, "norm"), policy_of({3: {"ffn": "skip"}}, "attention")),
        (policy_of({1: {"ffn": "skip"}, 0: {"ffn": "skip"}}), policy_of({0: {"ffn": "skip"}, 1: {"ffn": "skip"}})),
        (policy_of({3: {"ffn": "skip", "norm": "shared"}}), policy_of({3: {"ffn": "skip"}})),
        (
            policy_of({3: {"ffn": "skip", "tokens": "text", "phase": "decode"}}),
            policy_of({3: {"ffn": "skip", "phase": "decode"}}),
        ),
        (
            policy_of({3: {"ffn": "skip", "tokens": "image", "phase": "prefill"}}),
            policy_of({3: {"ffn": "skip", "tokens": "image"}}),
        ),
        (policy_of({3: {"ffn": "skip", "tokens": "image", "phase": "decode"}}), Policy()),
        (policy_of({3: {"token_ratio": 0.5, "phase": "prefill"}}), policy_of({3: {"token_ratio": 0.5}})),
        (policy_of({4: {"token_ratio": 0.5, "tokens": "text", "rest": "keys_only", "evict": True}}), Policy()),
        (
            policy_of({3: {"token_ratio": 0.5, "phase": "decode", "rest": "attention", "evict": True}}),
            policy_of({3: {"token_ratio": 0.5, "phase": "decode"}}),
        ),
        (
            policy_of({3: {"token_ratio": 0.5, "phase": "decode", "ffn": "skip", "tokens": "image"}}),
            policy_of({3: {"token_ratio": 0.5, "phase": "decode"}}),
        ),
        (once({3: {"token_ratio": 0.5, "phase": "decode"}}), policy_of({3: {"token_ratio": 0.5, "phase": "decode"}})),
        (
            once({2: {"token_ratio": 0.5}, 3: {"token_ratio": 0.75, "phase": "decode"}, 4: {"token_ratio": 0.6}}),
            once({2: {"token_ratio": 0.5}}),
        ),
        # Frozen tokens that no token reads, and what the tokens beyond a ratio do where none is kept.
        (policy_of({3: {"attention": "keys_only"}}), policy_of({3: {"attention": "skip"}})),
        (policy_of({3: {"attention": "keys_only", "ffn": "skip"}}), policy_of({3: SKIP_LAYER})),
        (
            policy_of({3: {"attention": "keys_only", "token_ratio": 0.5, "rest": "keys_only", "evict": True}}),
            policy_of({3: {"attention": "skip", "token_ratio": 0.5}}),
        ),
        (policy_of({3: {"token_ratio": 0.0, "rest": "keys_only"}}), policy_of({3: FREEZE_IMAGE})),
        (policy_of({3: {"token_ratio": 0.0, "rest": "attention"}}), policy_of({3: {"ffn": "skip", "tokens": "image"}})),
        (policy_of({3: {"token_ratio": 0.0, "rest": "ffn"}}), policy_of({3: {"attention": "skip", "tokens": "image"}})),
        (policy_of({3: {**FREEZE_IMAGE, "token_ratio": 0.5, "rest": "keys_only"}}), policy_of({3: FREEZE_IMAGE})),
        (
            policy_of({3: {"token_ratio": 0.5, "rest": "ffn", "evict": True}}),
            policy_of({3: {"token_ratio": 0.5, "rest": "ffn"}}),
        ),
        (
            policy_of({3: {"token_ratio": 0.5, "rest": "attention", "evict": True, "phase": "prefill"}}),
            policy_of({3: {"token_ratio": 0.5, "rest": "attention"}}),
        ),
        (policy_of({3: {**SKIP_LAYER, "tokens": "image"}}), policy_of({3: {"token_ratio": 0.0}})),
        (once({2: {"token_ratio": 0.5}, 3: {"token_ratio": 0.75}}), once({2: {"token_ratio": 0.5}})),
        (Policy.model_validate({**FULL, "measured": {}, "provenance": {}, "model": {}}), Policy.model_validate(FULL)),
        # Shares of channels that change nothing.
        (policy_of({3: {"ffn_ratio": 1.0}}), Policy()),
        (policy_of({3: {"ffn_ratio": 0.5, "ffn": "skip"}}), policy_of({3: {"ffn": "skip"}})),
        (policy_of({3: {"ffn_ratio": 0.5, "tokens": "image", "phase": "decode"}}), Policy()),
        (policy_of({3: {**IMAGE_WIDTH, "token_ratio": 0.0}}), policy_of({3: {"token_ratio": 0.0}})),
        # Shares of heads that change nothing.
        (policy_of({3: {"head_ratio": 1.0}}), Policy()),
        (policy_of({3: {"head_ratio": 0.5, "attention": "skip"}}), policy_of({3: {"attention": "skip"}})),
        (policy_of({3: {"head_ratio": 0.5, **FREEZE_IMAGE}}), policy_of({3: FREEZE_IMAGE})),
        (policy_of({3: {**IMAGE_HEADS, "phase": "decode"}}), Policy()),
        (policy_of({3: {**IMAGE_HEADS, "phase": "prefill"}}), policy_of({3: IMAGE_HEADS})),
        (
            policy_of({3: {"ffn": "skip"}}).model_copy(update={"width_selection": FIRST}),
            policy_of({3: {"ffn": "skip"}}),
        ),
    ],
)
def test_policies_that_compute_the_same_have_one_canonical_form_and_one_fingerprint(one, other):
    assert one.canonical().layers == other.canonical().layers
    assert one.canonical().token_selection == other.canonical().token_selection
    assert one.fingerprint == other.fingerprint
    assert hash(one) == hash(other)
    assert one.canonical().canonical() == one.canonical()


def test_policies_that_compute_differently_have_different_fingerprints():
    choices = [dict(part) for part in ({"ffn": "skip"}, {"attention": "skip"}, SKIP_LAYER, {"wiring": "parallel"})]
    choices += [{"token_ratio": 0.5}, {"token_ratio": 0.25}, {"token_ratio": 0.5, "ffn": "skip"}]
    choices += [{"ffn": "skip", "phase": "prefill"}, {"ffn": "skip", "phase": "decode"}]
    choices += [{"ffn": "skip", "tokens": "image"}, {"ffn": "skip", "tokens": "text"}]
    choices += [{"ffn": "skip", "tokens": "text", "phase": "prefill"}, {"wiring": "parallel", "norm": "shared"}]
    choices += [{"attention": role, "phase": "prefill"} for role in ("keys_only", "queries_only")]
    choices += [{"attention": role, "tokens": "image"} for role in ("keys_only", "queries_only")]
    choices += [{"attention": "queries_only"}, FREEZE_IMAGE, {"token_ratio": 0.5, "phase": "decode"}]
    choices += [{"token_ratio": 0.5, "rest": rest} for rest in ("keys_only", "attention", "ffn")]
    choices += [{"token_ratio": 0.5, "rest": rest, "evict": True} for rest in ("keys_only", "attention")]
    choices += [{"token_ratio": 0.5, "rest": "attention", "evict": True, "ffn": "skip", "tokens": "image"}]
    choices += [{"ffn_ratio": 0.5}, {"ffn_ratio": 0.25}, {"ffn_ratio": 0.5, "phase": "decode"}, IMAGE_WIDTH]
    choices += [{"ffn_ratio": 0.5, "attention": "skip", "token_ratio": 0.5, "rest": "ffn"}]
    choices += [{"head_ratio": 0.5}, {"head_ratio": 0.25}, {"head_ratio": 0.5, "phase": "decode"}, IMAGE_HEADS]
    choices += [{"head_ratio": 0.5, "ffn_ratio": 0.5}, {"head_ratio": 0.5, "token_ratio": 0.5, "rest": "attention"}]
    choices += [{"head_ratio": 0.5, "ffn": "skip"}, {"head_ratio": 0.5, "token_ratio": 0.5}]
    labels = [LayerChoice.model_validate(choice).canonical().label for choice in choices]
    assert len({*labels}) == len(labels)
    policies = [policy_of({layer: choice}) for layer in (0, 1) for choice in choices]
    policies += [
        policy_of({0: one}).model_copy(update={"width_selection": FIRST}) for one in (IMAGE_WIDTH, IMAGE_HEADS)
    ]
    policies += [Policy(), policy_of({0: {"token_ratio": 0.5}}, "norm"), policy_of(dict.fromkeys((0, 1), SKIP_LAYER))]
    policies += [once({0: {"token_ratio": 0.5}}), once({0: {**SKIP_LAYER, "tokens": "image"}})]
    assert len({policy.fingerprint for policy in policies}) == len(policies)


def test_a_fingerprint_never_changes_between_versions():
    assert policy_of({5: {"token_ratio": 0.5}, 2: {"ffn": "skip"}}).fingerprint == "ec99a63356e6b185"


def test_a_policy_from_choices_names_only_what_differs():
    policy = Policy.of([CHOICES["keep"], CHOICES["skip_ffn"], LayerChoice(token_ratio=1.0)])
    assert policy.layers == {1: LayerChoice(ffn="skip")}
    assert [choice.label for choice in policy.choices(3)] == ["keep", "skip_ffn", "keep"]
    assert policy_of({0: {"ffn": "skip", "token_ratio": 0.25}}).choice(0).label == "skip_ffn + token_ratio 0.25"
    labels = {
        "ffn_ratio 0.5 (image)": IMAGE_WIDTH,
        "skip_attention, ffn_ratio 0.5": {"attention": "skip", "ffn_ratio": 0.5},
        "skip_ffn, head_ratio 0.5 (image)": {**IMAGE_HEADS, "ffn": "skip"},
        "ffn_ratio 0.5, head_ratio 0.25": {"ffn_ratio": 0.5, "head_ratio": 0.25},
        "freeze_image": FREEZE_IMAGE,
        "freeze (prefill)": {"attention": "keys_only", "ffn": "skip", "phase": "prefill"},
        "keys_only (text)": {"attention": "keys_only", "tokens": "text"},
        "queries_only, skip_ffn (image)": {"attention": "queries_only", "ffn": "skip", "tokens": "image"},
        "token_ratio 0.5, rest attention, evict": {"token_ratio": 0.5, "rest": "attention", "evict": True},
        "token_ratio 0.5 (decode)": {"token_ratio": 0.5, "phase": "decode"},
        "skip_ffn (decode) + token_ratio 0.5": {"token_ratio": 0.5, "ffn": "skip", "phase": "decode"},
    }
    assert {LayerChoice.model_validate(choice).label: choice for choice in labels.values()} == labels
    assert Policy().is_dense and policy_of({4: {"token_ratio": 1.0}}).is_dense and not policy.is_dense


def test_a_policy_is_frozen():
    policy = Policy.model_validate(FULL)
    for part, name in ((policy, "layers"), (policy.choice(5), "ffn"), (policy.model, "id")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, name, None)


@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, lambda p: pickle.loads(pickle.dumps(p))])
def test_a_policy_can_be_copied_and_pickled(again):
    policy = Policy.model_validate(FULL)
    assert again(policy) == policy
    assert again(policy).fingerprint == policy.fingerprint


def test_a_policy_fits_its_number_of_layers_only():
    policy = Policy.model_validate(FULL)
    policy.check_fits(32, "Some")
    with pytest.raises(PolicyMismatch, match="made for 32 layers, model has 40"):
        policy.check_fits(40, "Some")
    with pytest.raises(PolicyMismatch, match="layer 7, model has layers 0 to 6"):
        policy_of({7: SKIP_LAYER}).check_fits(7, "Some")


# The file


def random_policy(seed: int) -> Policy:
    draw = random.Random(seed)
    choices = [
        LayerChoice(
            attention=draw.choice(["run", "skip"]),
            ffn=draw.choice(["run", "skip"]),
            wiring=draw.choice(["sequential", "parallel"]),
            norm=draw.choice(["own", "shared"]),
            phase=draw.choice(["both", "prefill", "decode"]),
            tokens=draw.choice(["all", "image", "text"]),
            token_ratio=draw.choice([None, 0.0, 1.0, draw.random(), 1e-7]),
        )
        for _ in range(draw.randrange(1, 40))
    ]
    return Policy.of(choices, TokenSelection(reselect=draw.choice(["each_layer", "once"])))


@pytest.mark.parametrize("policy", [Policy(), Policy.model_validate(FULL), *map(random_policy, range(20))])
def test_a_file_gives_the_policy_back_to_the_last_digit(policy, tmp_path):
    policy.save(tmp_path / "one.yaml")
    again = Policy.load(tmp_path / "one.yaml")
    assert again == policy.canonical()
    again.save(tmp_path / "two.yaml")
    assert (tmp_path / "two.yaml").read_text() == (tmp_path / "one.yaml").read_text()


def test_a_file_has_one_line_a_layer_and_nothing_that_is_empty():
    lines = policy_of({5: {"token_ratio": 0.5}, 2: SKIP_LAYER, 3: {}}).to_yaml().splitlines()
    assert lines == [
        "schema: skipsearch/policy/v1",
        "layers:",
        "  2: {attention: skip, ffn: skip}",
        "  5: {token_ratio: 0.5}",
        "token_selection: {score: attention, reselect: each_layer}",
    ]


def test_figures_are_written_with_six_digits():
    policy = Policy.model_validate({"measured": {"a": {"value": 1 / 3}, "b": {"value": 5.1e12, "dense": 2.0}}})
    assert policy.document()["measured"] == {"a": {"value": 0.333333}, "b": {"value": 5100000000000, "dense": 2}}


def test_every_mistake_is_told_at_once_with_its_place(tmp_path):
    text = """\
schema: skipsearch/policy/v1
model: {id: 5, num_layers: 0}
layers:
  5: {atention: skip}
  -1: {ffn: skip}
  6: {token_ratio: 1.5,
      wiring: crossed}
  7: {token_ratio: '0.5'}
  8: {token_ratio: .nan}
  9: skip
mesured: {}
"""
    told = complaint(tmp_path, text)
    assert "9 problems" in told or "10 problems" in told
    for place, words in {
        "2:": "model.num_layers",
        "4:": "layers[5].atention: unknown key; the nearest known one is 'attention'",
        "5:": "-1",
        "6:7": "layers[6].token_ratio: found 1.5",
        "7:7": "layers[6].wiring: found 'crossed', expected 'sequential', 'parallel' or 'pair'",
        "8:": "layers[7].token_ratio: found '0.5'",
        "9:": "layers[8].token_ratio",
        "10:": "layers[9]: found 'skip'",
        "11:1": "mesured: unknown key; the nearest known one is 'measured'",
    }.items():
        line = next((line for line in told.splitlines() if words in line), "")
        assert f"policy.yaml:{place}" in line, (place, words, told)


def test_a_layer_beyond_the_model_is_told_with_its_place(tmp_path):
    told = complaint(tmp_path, HEAD + "model: {num_layers: 4}\nlayers:\n  1: {ffn: skip}\n  4: {ffn: skip}\n  9: {}\n")
    assert "policy.yaml:5:3  layers[4]: found layer 4, expected 0 to 3" in told
    assert "policy.yaml:6:3  layers[9]" in told and "layers[1]" not in told


def test_a_pair_that_cannot_be_is_told_with_its_place(tmp_path):
    told = complaint(
        tmp_path,
        HEAD + "model: {num_layers: 6}\nlayers:\n  1: {wiring: pair}\n  2: {wiring: pair}\n  5: {wiring: pair}\n",
    )
    assert "policy.yaml:5:3  layers[2]: found wiring: pair, but layer 1 already forms a pair with layer 2" in told
    assert (
        "policy.yaml:6:3  layers[5]: found wiring: pair, but layer 5 is the last one" in told
        and "layers[1]" not in told
    )
    with pytest.raises(PolicyMismatch, match="layer 3 cannot begin a pair"):
        policy_of({3: {"wiring": "pair"}}).check_fits(4, "a model")


def test_what_routers_cannot_rank_is_told_beside_other_mistakes(tmp_path):
    layers = "  1: {wiring: pair}\n  2: {wiring: pair, token_ratio: 0.5, rest: ffn}\n  3: {token_ratio: 0}\n  7: {}\n"
    rest = "token_selection: {score: router}\nwidth_selection: {ranking: energy}\n"
    told = complaint(tmp_path, HEAD + "model: {num_layers: 6}\nlayers:\n" + layers + rest)
    assert "5 problems" in told
    expected = "expected a token_ratio above 0 without rest, evict, phase and tokens, because of the score router"
    assert f"policy.yaml:5:3  layers[2]: found rest: ffn, {expected}" in told
    assert f"policy.yaml:6:3  layers[3]: found token_ratio: 0, {expected}" in told
    for other in (
        "5:3  layers[2]: found wiring: pair",
        "7:3  layers[7]",
        "9:19  width_selection.ranking: found no file",
    ):
        assert f"policy.yaml:{other}" in told


# The schema


def accepted(text: str) -> bool:
    """What the JSON Schema says; editors read YAML keys as text."""
    data = json.loads(json.dumps(yaml.safe_load(text)))
    return jsonschema.Draft202012Validator(policy_schema()).is_valid(data)


GOOD = [
    yaml.safe_dump(FULL),
    "schema: skipsearch/policy/v1\n",
    HEAD + "layers:\nmeasured:\n",
    HEAD + "layers: {0: {}, 9999: {token_ratio: 1}}\n",
    HEAD + "layers: {3: {token_ratio: null, ffn: run}}\n",
    HEAD + "layers: {3: {wiring: parallel, norm: shared, phase: decode, tokens: text}}\n",
    HEAD + "model: {num_layers: 9}\nschedule: {interval: {interval: [2, 4], choice: skip_ffn}}\n",
]
BAD = [
    "layers: {1: {ffn: skip}}\n",
    "schema: skipsearch/policy/v2\n",
    HEAD + "layer: {}\n",
    HEAD + "layers: {1: {token_ratio: 1.01}}\n",
    HEAD + "layers: {1: {token_ratio: true}}\n",
    HEAD + "layers: {1: {token_ratio: '0.5'}}\n",
    HEAD + "layers: {1: {ffn: yes}}\n",
    HEAD + "layers: {1: skip}\n",
    HEAD + "layers: []\n",
    HEAD + "token_selection: {score: 3}\n",
    HEAD + "model: {num_layers: 0}\n",
    HEAD + "model: {num_layers: 9}\nschedule: {}\n",
    HEAD + "model: {num_layers: 9}\nschedule: {fastv: {layer: 2}}\n",
    HEAD + "layers: {1: {ffn: skip, phase: never}}\n",
    HEAD + "measured: {accuracy: {dense: 0.5}}\n",
    HEAD + "provenance: {who: me}\n",
]


@pytest.mark.parametrize("text", GOOD)
def test_the_schema_accepts_what_loads(text, tmp_path):
    load(tmp_path, text)
    assert accepted(text)


@pytest.mark.parametrize("text", BAD)
def test_the_schema_refuses_what_does_not_load(text, tmp_path):
    complaint(tmp_path, text)
    assert not accepted(text)


def test_the_schema_is_itself_sound():
    jsonschema.Draft202012Validator.check_schema(policy_schema())


# The weight


def test_a_policy_needs_no_heavy_library():
    code = """
import sys, skipsearch
skipsearch.Policy.model_validate({"layers": {1: {"ffn": "skip"}}}).to_yaml(), skipsearch.LayerChoice
heavy = {"torch", "transformers", "optuna", "ray", "lm_eval", "plotly", "numpy"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
