"""A space as a value: what it expands to, what tells two apart, and how its file becomes it."""

from __future__ import annotations

import json
import pickle
import random
import re
from itertools import product
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from skipsearch.evaluators.subject import ModelSpec
from skipsearch.policies.choice import CHOICES, KEEP, LayerChoice
from skipsearch.policies.errors import SpaceError
from skipsearch.search.places import shipped_spaces
from skipsearch.search.space.constraint import Constraint
from skipsearch.search.space.layer_choices import LayerRule, SelectionOptions, WidthOptions
from skipsearch.search.space.load import load_space, load_spaces, space_path, validate_file
from skipsearch.search.space.parameters import Parameters
from skipsearch.search.space.search_settings import Search, StudySettings, Workers
from skipsearch.search.space.space import Space

ROOT = Path(__file__).resolve().parents[3]

TEXT = """\
schema: skipsearch/space/v1
model: {id: llava-hf/llava-1.5-7b-hf}
layers: [{range: all, choices: [keep, skip_ffn, {token_ratio: [0.5, 0.25]}]}]
evaluate: {flops: {}, accuracy: {tasks: [chartqa], search: {limit: 8}}}
objectives: {accuracy: maximize, prefill_flops: minimize}
constraints: {accuracy: ">= 0.9 * dense"}
search: {trials: 20}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text(TEXT)
    return path


@pytest.fixture
def space(file):
    return load_space(str(file)).space


def space_of(*rules):
    return Space.model_validate(
        {
            "schema": "skipsearch/space/v1",
            "model": {"id": "m"},
            "layers": list(rules),
            "evaluate": {"flops": None},
            "objectives": {"prefill_flops": "minimize"},
        }
    )


def labels(space, num_layers):
    return [[choice.label for choice in domain] for domain in space.domains(num_layers)]


@pytest.mark.parametrize(
    ("layers", "changed"),
    [("all", [0, 1, 2, 3, 4]), (3, [3]), ("3", [3]), ("1-2", [1, 2]), ("4-4", [4]), ("2-last", [2, 3, 4])],
)
def test_a_range_has_both_its_ends(layers, changed):
    found = space_of({"range": layers, "choices": ["keep", "parallel"]}).domains(5)
    assert [index for index, domain in enumerate(found) if domain != [KEEP]] == changed


def test_a_rule_without_a_range_is_for_all_layers():
    assert labels(space_of({"choices": ["skip_layer", "keep"]}), 2) == [["skip_layer", "keep"]] * 2


def test_rules_in_any_order_leave_the_other_layers_kept():
    rules = {"range": "3-last", "choices": ["skip_ffn", "keep"]}, {"range": 0, "choices": ["keep", "parallel"]}
    kept = [["keep"]] * 2
    assert labels(space_of(*rules), 5) == [["keep", "parallel"], *kept, ["skip_ffn", "keep"], ["skip_ffn", "keep"]]


@pytest.mark.parametrize("layers", [5, "2-5", "all-last", "last", "-3", "2-", "2-last-3", " 2", "٣"])
def test_a_range_that_the_model_has_not_or_that_is_none(layers):
    with pytest.raises((SpaceError, ValidationError)):
        space_of({"range": layers, "choices": ["keep", "parallel"]}).domains(5)


def test_choices_expand_in_order_and_each_once():
    entries = [
        "keep",
        {"token_ratio": [0.5, 0.25, 0.5]},
        {"ffn": "skip"},
        "skip_ffn",
        {"attention": "skip", "ffn": "skip", "token_ratio": [0.5, 0.25]},
        {"wiring": "parallel", "token_ratio": 0.5},
        {"token_ratio": 1.0},
    ]
    expanded = LayerRule.model_validate({"choices": entries}).expanded()
    assert [choice.label for choice in expanded] == [
        "keep", "token_ratio 0.5", "token_ratio 0.25", "skip_ffn", "skip_layer", "parallel + token_ratio 0.5",
    ]  # fmt: skip
    assert expanded == [choice.canonical() for choice in expanded]


def expanded(*entries):
    return [choice.label for choice in LayerRule.model_validate({"choices": list(entries)}).expanded()]


def test_lists_in_a_combination_give_every_combination_once():
    assert expanded({"wiring": "parallel", "norm": ["own", "shared"], "phase": ["both", "decode"]}) == [
        "parallel", "parallel (decode)", "parallel, shared norm", "parallel, shared norm (decode)",
    ]  # fmt: skip
    assert expanded({"ffn": "skip", "norm": ["own", "shared"], "tokens": ["text", "all"], "phase": "decode"}) == [
        "skip_ffn (decode)",
    ]  # fmt: skip
    assert expanded({"ffn": "skip", "tokens": "text", "token_ratio": [0.5, 0.25]}) == ["skip_ffn (text)"]


def test_a_name_may_have_a_scope():
    assert expanded({"choice": "skip_ffn", "phase": ["both", "decode"], "tokens": "image"}) == [
        "skip_ffn (image)", "keep",
    ]  # fmt: skip
    assert expanded({"choice": ["skip_ffn", "parallel", "keep"], "phase": "prefill", "token_ratio": 0.5}) == [
        "skip_ffn (prefill) + token_ratio 0.5", "parallel (prefill) + token_ratio 0.5", "token_ratio 0.5",
    ]  # fmt: skip


def test_the_labels_of_a_domain_tell_its_choices_apart():
    every = {"norm": ["own", "shared"], "phase": ["both", "prefill", "decode"], "tokens": ["all", "image", "text"],
             "token_ratio": [0, 0.5, 1]}  # fmt: skip
    # The name `freeze_image` has a scope already.
    named = [name for name in CHOICES if name != "freeze_image"]
    choices = LayerRule.model_validate({"choices": [{"choice": named, **every}]}).expanded()
    assert len({choice.label for choice in choices}) == len(choices) > 50
    roles = {"attention": ["run", "keys_only", "queries_only"], "ffn": ["run", "skip"], "evict": [False, True],
             "rest": ["skip", "keys_only", "attention", "ffn"]}  # fmt: skip
    choices = LayerRule.model_validate({**every, **roles}).expanded()
    assert len({choice.label for choice in choices}) == len(choices) > 100


@pytest.mark.parametrize("name", CHOICES)
def test_a_name_and_its_mapping_are_the_same_choice(name):
    spelled = LayerRule.model_validate({"choices": [CHOICES[name].document()]})
    assert LayerRule.model_validate({"choices": [name]}).expanded() == spelled.expanded() == [CHOICES[name]]


def numbers(count):
    """Numbers as people write them, with their values."""
    draw = random.Random(0)
    fixed = ["0", "1", "1.", ".5", "0.90", "12.5", "1e3", "2.5E-2", "3e+1", "007"]
    return fixed + [f"{draw.uniform(0, 10 ** draw.randint(-3, 6)):.{draw.randint(0, 5)}f}" for _ in range(count)]


@pytest.mark.parametrize("sign", [">=", "<="])
@pytest.mark.parametrize("space_", ["", " ", "  "])
def test_constraints_mean_what_they_say(sign, space_):
    draw = random.Random(1)
    for text in numbers(60):
        number, dense = float(text), draw.uniform(0, 100)
        forms = {
            f"{sign}{space_}{text}": number,
            f"{sign}{space_}{text}{space_}*{space_}dense": number * dense,
            f"{sign}{space_}dense{space_}-{space_}{text}": dense - number,
            f"{sign}{space_}dense{space_}+{space_}{text}": dense + number,
            f"{sign}{space_}dense": dense,
        }
        for form, bound in forms.items():
            constraint = Constraint.parse(f" {form} ")
            assert constraint.text == form
            inward = 1 if sign == ">=" else -1
            step = 1e-6 * (1 + abs(bound))
            assert constraint.excess(bound + inward * step, dense) <= 0, form
            assert constraint.excess(bound - inward * step, dense) == pytest.approx(step, rel=1e-3), form


@pytest.mark.parametrize(
    "text",
    ["", ">=", "0.9", "= 0.9", "> 0.9", "== dense", ">= 0.9 dense", ">= dense * 0.9", ">= 0.9 * dense - 1", ">= -1",
     ">= 1,5", ">= nan", ">= inf", ">= 1e999", ">= 1e999 * dense", ">= 0.9 * sparse", ">= 90%", "dense >= 0.9",
     ">= 0.9\n* dense\nx", ">= .", ">= 1e", 0.9, None, True, [">= 1"], {"at_least": 1}],
)  # fmt: skip
def test_what_is_no_constraint(text):
    with pytest.raises(ValueError, match=r"^found .*, expected a bound such as"):
        Constraint.parse(text)


SAME = ["search.trials=7", "search.max_failures=3", "workers.count=3", "workers.cpus=2", "workers.runner=tune",
        "search.stop={stagnation: 30, gain: 0.01}", "search.stop.minutes=5", "search.racing=none",
        "search.recover={method: lora}", "log.tensorboard=events",
        "study.storage=sqlite:///studies.db"]  # fmt: skip
OTHER = [
    "search.seed=1",
    "search.sampler=tpe",
    "search.start=none",
    "search.guide=none",
    "model.id=other/model",
    "model.dtype=float16",
    "model.revision=abc",
    "layers.0.range=1-last",
    "layers.0.choices=[keep, skip_ffn]",
    "layers.0.choices=[skip_ffn, keep, {token_ratio: [0.5, 0.25]}]",
    "tied=[[2, 3]]",
    "tied={every: 2}",
    "forbid=[{2: skip_ffn, 3: skip_ffn}]",
    "forbid=[{consecutive: skip_ffn, more_than: 3}]",
    "token_selection.score=norm",
    "token_selection.score=[attention, norm]",
    "token_selection.reselect=once",
    "width_selection.ranking=first",
    "width_selection.ranking=[weights, first]",
    "schedules=[{fastv: {layer: 2, token_ratio: 0.5}}]",
    "schedules=[{fastv: {layer: [2, 3], token_ratio: 0.5}}]",
    "schedules=[{fastv: {layer: [2, 3], token_ratio: 0.5}}, {interval: {interval: 2, choice: skip_ffn}}]",
    "evaluate.latency={}",
    "evaluate.accuracy.search.limit=9",
    "evaluate.accuracy.report.limit=9",
    "evaluate.flops.prompt_tokens=9",
    "objectives.decode_flops=minimize",
    "constraints.accuracy='>= 0.8 * dense'",
    "constraints.prefill_flops='<= dense'",
]


@pytest.mark.parametrize("change", SAME)
def test_trials_and_workers_may_change_between_resumes(change, file, space):
    assert load_space(str(file), dict([change.split("=", 1)])).space.fingerprint() == space.fingerprint()


def test_everything_else_makes_another_search(file, space):
    changed = [load_space(str(file), dict([change.split("=", 1)])).space.fingerprint() for change in OTHER]
    assert len({space.fingerprint(), *changed}) == len(OTHER) + 1


def test_what_came_later_leaves_the_fingerprints_of_older_spaces(file):
    """A study that was begun before schedules, phases and norms can be resumed, with the sampler it had."""
    assert load_space(str(file), {"search.sampler": "nsga2"}).space.fingerprint() == "a0cdc4d580d51929"


def test_every_key_is_known_to_make_another_search_or_not():
    """A new key must be added to one of the two lists above."""
    tried = {change.split("=")[0].split(".")[0] for change in SAME + OTHER}
    # Each of `models` becomes the `model` of a space of its own.
    assert tried == set(Space.model_fields) - {"schema_", "models"}
    search = {change.split("=")[0].split(".")[1] for change in SAME + OTHER if change.startswith("search.")}
    assert search == set(Space.model_fields["search"].annotation.model_fields)


def test_overrides(file):
    given = {"search.trials": "7", "constraints": "{}", "evaluate.accuracy.tasks": "[docvqa, ./mine.yaml]",
             "layers.0.choices": "[keep, skip_layer]", "workers.address": "ray://host:10001"}  # fmt: skip
    loaded = load_space(str(file), given)
    assert loaded.space.search.trials == 7
    assert loaded.space.constraints == {}
    assert loaded.space.evaluate["accuracy"]["tasks"] == ["docvqa", str(file.parent / "mine.yaml")]
    assert loaded.space.layers[0].expanded() == [KEEP, CHOICES["skip_layer"]]
    assert loaded.space.workers.address == "ray://host:10001"
    notes = "".join(f"\n# --set {key}={value}" for key, value in given.items())
    assert loaded.text == TEXT + notes


def test_an_override_reaches_under_a_name_with_nothing_behind_it(file):
    file.write_text(TEXT.replace("flops: {}", "flops: "))
    assert load_space(str(file), {"evaluate.flops.prompt_tokens": "9"}).space.evaluate["flops"] == {"prompt_tokens": 9}


def test_the_text_is_verbatim(file):
    file.write_bytes(TEXT.replace("search:", "# why\r\nsearch:").encode())
    assert load_space(str(file)).text == TEXT.replace("search:", "# why\nsearch:")


def test_paths_stand_relative_to_the_space(tmp_path, monkeypatch):
    """Whatever the current folder; what is no path is left for the hub and for lm-eval."""
    beside = tmp_path / "beside"
    (beside / "tasks").mkdir(parents=True)
    (beside / "model").mkdir()
    for name in ("own.yaml", "tasks/deep.yaml", "chartqa"):
        (beside / name).write_text("")
    (tmp_path / "absolute.yaml").write_text("")
    given = ["own.yaml", "./own.yaml", "tasks/deep.yaml", "../absolute.yaml", "./gone.yaml", "tasks",
             "chartqa", "other.yaml", "some/group", str(tmp_path / "absolute.yaml")]  # fmt: skip
    (beside / "s.yaml").write_text(
        TEXT.replace("[chartqa]", json.dumps(given)).replace("llava-hf/llava-1.5-7b-hf", "model")
    )
    monkeypatch.chdir(tmp_path)
    space = load_space("beside/s.yaml").space
    assert space.model.id == str(beside / "model")
    outside = str(tmp_path / "absolute.yaml")
    assert space.evaluate["accuracy"]["tasks"] == [
        *[str(beside / name) for name in ("own.yaml", "own.yaml", "tasks/deep.yaml")], outside,
        str(beside / "gone.yaml"), "tasks", "chartqa", "other.yaml", "some/group", outside,
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["llava-hf/llava-1.5-7b-hf", "gpt2", "x" * 5000])
def test_a_hub_id_stays(name, file):
    file.write_text(TEXT.replace("llava-hf/llava-1.5-7b-hf", name))
    assert load_space(str(file)).space.model.id == name


def test_a_shipped_space_is_loaded_by_name_unless_a_file_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_space("digits").space == load_space(str(shipped_spaces()["digits"])).space
    assert load_space("digits").name == "digits"
    Path("digits").write_text(TEXT)
    assert load_space("digits").space.model.id == "llava-hf/llava-1.5-7b-hf"
    assert space_path("digits.yaml") == Path("digits.yaml")


@pytest.mark.parametrize("name", shipped_spaces())
def test_a_shipped_space_is_right_and_needs_nothing_from_outside_its_folder(name):
    file = shipped_spaces()[name]
    space = load_space(name).space
    model = Path(space.model.id)
    assert model.is_dir() or "/" in space.model.id, "a folder beside it, or a hub id"
    given = [options or {} for options in space.evaluate.values()]
    splits = [options[split] for options in given for split in ("search", "report") if split in options]
    tasks = [task for one in (*given, *splits) for task in one.get("tasks", [])]
    assert tasks
    for path in [model, *map(Path, tasks)]:
        assert not path.is_absolute() or (path.exists() and path.is_relative_to(file.parent))
    assert len(space.domains(64)) == 64


WITH_SCHEDULES = (
    TEXT.partition("layers:")[0]
    + """\
layers: [{choices: [keep, {choice: [skip_ffn, parallel], phase: [both, decode], norm: shared}]}]
schedules:
  - fastv: {layer: [2, 3], token_ratio: 0.5}
  - interval: {interval: [2, [2, 4]], choice: [skip_ffn, parallel], phase: decode}
tied: [[2, 3]]
forbid: [{1: {choice: skip_ffn, phase: decode}, 2: [keep, skip_ffn]}, {consecutive: skip_ffn, more_than: 3}]
token_selection: {score: [attention, norm], reselect: once}
evaluate: {flops: }
objectives: {prefill_flops: minimize}
"""
)


@pytest.mark.parametrize("dump", ["python", "json", "aliases", "pickle"])
@pytest.mark.parametrize("name", ["some", "schedules", "schedules alone", *shipped_spaces()])
def test_round_trip(name, dump, file):
    """A space travels to workers and into the study as plain data."""
    if name.startswith("schedules"):
        file.write_text(WITH_SCHEDULES.replace("layers:", "#" if name.endswith("alone") else "layers:"))
    space = load_space(name if name in shipped_spaces() else str(file)).space
    plain = {
        "python": lambda: space.model_dump(),
        "json": lambda: json.loads(space.model_dump_json()),
        "aliases": lambda: json.loads(json.dumps(space.model_dump(mode="json", by_alias=True))),
        "pickle": lambda: pickle.loads(pickle.dumps(space)),
    }[dump]()
    back = Space.model_validate(plain)
    assert back == space
    assert back.fingerprint() == space.fingerprint()
    assert back.domains(64) == space.domains(64)


def test_a_space_is_frozen(space):
    with pytest.raises(ValidationError):
        space.search.trials = 3
    assert isinstance(space.domains(1)[0][0], LayerChoice)


# Keys of their own


KEYS = {"attention": ["run", "skip"], "ffn": ["run", "skip"], "token_ratio": [1, 0.5, 0.25]}


def test_a_rule_of_keys_stands_for_their_product():
    (found,) = labels(space_of({"range": 0, **KEYS}), 1)
    assert found == [
        "keep", "token_ratio 0.5", "token_ratio 0.25", "skip_ffn", "skip_ffn + token_ratio 0.5",
        "skip_ffn + token_ratio 0.25", "skip_attention", "skip_attention + token_ratio 0.5",
        "skip_attention + token_ratio 0.25", "skip_layer",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        ({"ffn": ["run", "skip"], "phase": ["both", "decode"]}, 3),
        ({"ffn": ["run", "skip"], "window": [2, None, 0]}, 6),
        ({"attention": ["run", "skip"], "window": [None, 1]}, 3),
        ({"wiring": ["sequential", "parallel"], "norm": ["own", "shared"]}, 3),
        ({"wiring": ["sequential", "parallel"], "ffn": ["run", "skip"]}, 3),
        ({"attention": ["run", "skip"], "tokens": ["all", "image", "text"]}, 4),
        ({"choices": ["keep", "parallel"], "token_ratio": [1, 0.5]}, 4),
        ({"choices": ["keep", "freeze_image"], "token_ratio": [1, 0]}, 3),
        ({"attention": ["run", "skip", "keys_only"]}, 2),
        ({"token_ratio": [1, 0.5], "rest": ["skip", "attention"], "evict": [False, True]}, 4),
        ({"token_ratio": [1, 0.5], "rest": ["skip", "ffn"], "phase": ["both", "decode"]}, 4),
    ],
)
def test_combinations_that_compute_the_same_are_one(keys, count):
    space = space_of({"range": "all", **keys})
    assert Parameters(space, 1).size == len(space.domains(1)[0]) == count
    assert len(Parameters(space, 6).domains) == 6


def test_a_layer_that_a_pair_contains_begins_none_and_the_last_layer_never_does():
    made = Parameters(space_of({"range": "0-2", "wiring": ["sequential", "pair"]}), 4)
    assert [*made.options] == ["layer_00.wiring", "layer_01.wiring", "layer_02.wiring"]
    pair = LayerChoice(wiring="pair")
    for labels, begins in (("110", {0}), ("111", {0, 2}), ("011", {1})):
        drawn = {f"layer_{n:02d}.wiring": "pair" if label == "1" else "sequential" for n, label in enumerate(labels)}
        policy = made.policy(drawn)
        assert policy.layers == dict.fromkeys(begins, pair) and made.policy(made.encode(policy)) == policy
    assert made.size == 5
    with pytest.raises(SpaceError, match="layer 3 is the last one"):
        Parameters(space_of({"range": "all", "wiring": ["sequential", "pair"]}), 4)


def test_each_key_is_a_parameter_and_a_list_of_choices_stays_one():
    keys = Parameters(space_of({"range": 1, **KEYS}), 2)
    assert keys.options == {
        "layer_01.attention": ["run", "skip_attention"],
        "layer_01.ffn": ["run", "skip_ffn"],
        "layer_01.token_ratio": ["token_ratio 1", "token_ratio 0.5", "token_ratio 0.25"],
    }
    listed = Parameters(space_of({"range": 1, "choices": ["keep", "skip_ffn"]}), 2)
    assert listed.options == {"layer_01": ["keep", "skip_ffn"]}
    roles = {
        "attention": ["run", "keys_only"],
        "token_ratio": [1, 0.5],
        "rest": ["skip", "ffn"],
        "evict": [False, True],
    }
    assert Parameters(space_of({"range": 1, **roles}), 2).options == {
        "layer_01.attention": ["run", "keys_only"],
        "layer_01.token_ratio": ["token_ratio 1", "token_ratio 0.5"],
        "layer_01.rest": ["rest skip", "rest ffn"],
        "layer_01.evict": ["evict nothing", "evict"],
    }
    beside = Parameters(space_of({"range": 1, "choices": ["keep", "parallel"], "ffn": ["run", "skip"]}), 2)
    assert [*beside.options] == ["layer_01", "layer_01.ffn"]


@pytest.mark.parametrize("seed", range(3))
def test_labels_of_keys_and_choices_of_layers_tell_each_other(seed):
    draw, made = (
        random.Random(seed),
        Parameters(space_of({"range": "all", "wiring": ["sequential", "parallel"], **KEYS}), 4),
    )
    for _ in range(50):
        policy = made.policy(made.random(draw))
        assert made.policy(made.encode(policy)) == policy
    assert made.policy(made.labels()) == made.policy({}) and not made.policy({}).layers
    assert (
        made.encode(made.policy({}).model_copy(update={"layers": {2: LayerChoice(ffn="skip", phase="decode")}})) is None
    )


def test_tied_layers_take_all_keys_together():
    space = space_of({"range": "all", **KEYS}).model_copy(update={"tied": [[0, 2]]})
    made = Parameters(space, 3)
    assert {name.split(".")[0] for name in made.options} == {"layer_00", "layer_01"}
    policy = made.policy({"layer_00.ffn": "skip_ffn", "layer_00.token_ratio": "token_ratio 0.5"})
    assert policy.layers[0] == policy.layers[2] == LayerChoice(ffn="skip", token_ratio=0.5) and 1 not in policy.layers


def test_removals_of_sublayers_keep_what_else_a_layer_does_where_it_may():
    made = Parameters(space_of({"range": "all", **KEYS}), 2)
    begun = {"layer_00.token_ratio": "token_ratio 0.5", "layer_01.ffn": "skip_ffn"}
    found = {move: made.policy(labels).layers for move, labels in made.deletions(begun).items()}
    assert found.keys() == {(0, "attention"), (0, "ffn"), (1, "attention")}
    assert found[0, "ffn"][0] == LayerChoice(ffn="skip", token_ratio=0.5)
    assert found[1, "attention"][1] == CHOICES["skip_layer"]
    flat = Parameters(space_of({"range": "all", "choices": ["keep", "skip_ffn", {"token_ratio": 0.5}]}), 1)
    (after,) = flat.deletions({"layer_00": "token_ratio 0.5"}).values()
    assert after["layer_00"] == "skip_ffn"


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("{range: all}", "found no choices, expected"),
        ("{range: all, choices: [keep, skip_ffn], ffn: [run, skip]}", "found ffn in choices and as a key"),
        ("{range: all, ffn: [run, skipp]}", "skip"),
        ("{range: all, ffn: skip}", "keep is missing"),
        ("{range: all, token_ratio: [0.5, 0.25]}", "keep is missing"),
        ("{range: all, ffn: []}", "ffn"),
    ],
)
def test_mistakes_in_keys_are_told(file, rule, said):
    with pytest.raises(SpaceError) as caught:
        load_space(str(file), {"layers.0": rule})
    assert said in str(caught.value) and "layers" in str(caught.value)


# The examples of spaces/README.md

SPACES_README = (ROOT / "spaces" / "README.md").read_text()
BASE = """\
schema: skipsearch/space/v1
model: {id: some/model}
layers: [{choices: [keep, skip_ffn, skip_attention, skip_layer]}]
evaluate: {accuracy: {tasks: [chartqa]}, flops: {}, latency: {}}
objectives: {accuracy: maximize, prefill_flops: minimize}
"""


def merged(base, changes):
    """A mapping with the entries of another; mappings inside are merged, everything else is replaced."""
    both = {key: merged(base[key], changes[key]) for key in base.keys() & changes.keys()
            if isinstance(base[key], dict) and isinstance(changes[key], dict)}  # fmt: skip
    return {**base, **changes, **both}


def readme_examples():
    """The YAML blocks, and the last column of every table whose header ends with `example`."""
    found = re.findall(r"^```yaml\n(.*?)^```$", SPACES_README, re.S | re.M)
    for table in re.findall(r"^\|.*\| example \|\n\|[-|]+\|\n((?:\|.*\|\n)+)", SPACES_README, re.M):
        found += [row.rpartition("| `")[2].removesuffix("` |") for row in table.splitlines()]
    return found


def test_shares_of_channels_and_their_ranking_are_parameters():
    rule = {"range": 1, "ffn": ["run", "skip"], "ffn_ratio": [1, 0.5], "tokens": ["all", "image"]}
    space = space_of(rule).model_copy(update={"width_selection": WidthOptions(ranking=["weights", "first"])})
    made = Parameters(space, 2)
    assert made.options["layer_01.ffn_ratio"] == ["ffn_ratio 1", "ffn_ratio 0.5"]
    assert made.options["ranking"] == ["weights", "first"]
    assert labels(space, 2)[1] == ["keep", "ffn_ratio 0.5", "ffn_ratio 0.5 (image)", "skip_ffn", "skip_ffn (image)"]
    # The ranking is of no effect without a share.
    assert made.size == 1 + 2 * 2 + 2
    draw = random.Random(0)
    for policy in (made.policy(made.random(draw)) for _ in range(20)):
        assert made.policy(made.encode(policy)) == policy
    listed = space_of({"range": 0, "choices": ["keep", {"choice": "skip_attention", "ffn_ratio": [0.5, 0.25]}]})
    assert labels(listed, 1)[0] == ["keep", "skip_attention, ffn_ratio 0.5", "skip_attention, ffn_ratio 0.25"]
    for key, wrong in product(("ffn_ratio", "head_ratio"), (0, 1.5, -0.5)):
        with pytest.raises(ValidationError):
            space_of({"range": 0, key: wrong})


def test_shares_of_heads_are_parameters_beside_those_of_channels():
    rule = {"range": 1, "attention": ["run", "skip"], "ffn_ratio": [1, 0.5], "head_ratio": [1, 0.5]}
    made = Parameters(space_of(rule), 2)
    assert made.options["layer_01.head_ratio"] == ["head_ratio 1", "head_ratio 0.5"]
    # A share of the heads is of no effect where the attention is skipped.
    assert labels(space_of(rule), 2)[1] == ["keep", "head_ratio 0.5", "ffn_ratio 0.5", "ffn_ratio 0.5, head_ratio 0.5",
                                            "skip_attention", "skip_attention, ffn_ratio 0.5"]  # fmt: skip


@pytest.mark.parametrize("text", readme_examples())
def test_the_examples_of_the_readme_are_valid(text, file):
    given = yaml.safe_load(text)
    if given.get("schema") == "skipsearch/policy/v1":
        file.write_text(text)
        assert validate_file(file) == "policy"
    else:
        base = yaml.safe_load(BASE)
        if "models" in given:
            del base["model"]
        file.write_text(yaml.safe_dump(merged(base, given), sort_keys=False))
        file.with_name("energy.safetensors").touch()  # the ranking of the examples
        assert all(loaded.space.domains(32) for loaded in load_spaces(str(file)))


def test_the_readme_has_an_example_of_every_key():
    given = [one for one in map(yaml.safe_load, readme_examples()) if one.get("schema") != "skipsearch/policy/v1"]
    sections = {"model": ModelSpec, "search": Search, "workers": Workers, "study": StudySettings}
    sections |= {"token_selection": SelectionOptions, "width_selection": WidthOptions}
    for section, keys in sections.items():
        shown = {key for one in given for key in one.get(section) or {}}
        assert shown == set(keys.model_fields), section
    assert {key for one in given for key in one} >= {*Space.model_fields} - {"schema_"}


def test_the_links_of_the_readme_lead_somewhere():
    headings = re.findall(r"^#+ (.+)$", SPACES_README, re.M)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)]+)\)", SPACES_README):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("http"):
            assert (ROOT / "spaces" / target.split("#")[0]).exists(), target


def test_ratios_of_one_kind_are_on_one_scale():
    keyed = {"range": "0-1", "ffn": ["run", "skip"], "token_ratio": [1, 0.5, 0.25], "head_ratio": [1, 0.5]}
    choices = ["keep", "skip_ffn", {"token_ratio": [0.5, 0]}, {"ffn": "skip", "token_ratio": 0.5}]
    scales = Parameters(space_of(keyed, {"range": "2-3", "choices": choices}), 4).scales
    assert {label: position for label, (_, position) in scales.items()} == {
        "token_ratio 0.5": 0.5, "token_ratio 0.25": 0.75, "head_ratio 0.5": 0.5, "token_ratio 0": 1.0,
        "skip_ffn + token_ratio 0.5": 0.5,
    }  # fmt: skip
    named = {label: name for label, (name, _) in scales.items()}
    assert named["token_ratio 0.5"] == named["token_ratio 0.25"] == named["token_ratio 0"]
    assert len({*named.values()}) == 3
