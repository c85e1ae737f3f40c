"""`skipsearch recover`: the folder that it writes, the figures before and after, and `eval` on that folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

import tiny
from skipsearch import Policy
from skipsearch.search.cli import main


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model with a task that has a training split, a space, a policy, and a file of prompts and answers."""
    folder = tmp_path_factory.mktemp("recover")
    tiny.tiny_llama(folder)
    rows = tiny.rows(48, seed=1)
    for name, part in {"train": rows[:24], "test": rows[24:]}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    task = tiny.write_task(folder, "trained", folder / "test.jsonl", **tiny.CHOICES)
    config = yaml.safe_load(task.read_text())
    config |= {"training_split": "train"}
    config["dataset_kwargs"]["data_files"]["train"] = str(folder / "train.jsonl")
    task.write_text(yaml.safe_dump(config))
    space = {
        "schema": "skipsearch/space/v1",
        "model": {"id": "llama", "device": "cpu"},
        "layers": [{"range": "all", "choices": ["keep", "skip_ffn"]}],
        "evaluate": {
            "accuracy": {"tasks": ["trained.yaml"], "search": {"limit": 4}, "report": {"limit": 20}},
            "flops": {},
        },
        "objectives": {"accuracy": "maximize", "prefill_flops": "minimize"},
    }
    (folder / "space.yaml").write_text(yaml.safe_dump(space))
    layers = {1: {"ffn": "skip"}, 2: {"attention": "skip"}, 3: {"ffn_ratio": 0.5, "head_ratio": 0.5}}
    Policy(layers=layers).save(folder / "policy.yaml")
    draw = np.random.default_rng(4)
    lines = [{"prompt": tiny.words(draw, 2, 6), "answer": " w3 w4"} for _ in range(16)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def command(world, *arguments, out="out", data="data.jsonl", method="lora"):
    given = ["recover", world / "policy.yaml", "--data", world / data, "--method", method, "--out", world / out]
    options = ["--steps", "4", "--batch-size", "4", "--learning-rate", "1e-2"]
    return main([*map(str, given), *options, *map(str, arguments)])


def test_a_folder_has_the_figures_before_and_after_and_eval_finds_them_again(world, capsys):
    assert command(world, "--space", world / "space.yaml", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "lora" and len(found["curve"]) == 4 and found["data"]["examples"] == 16
    figures = found["figures"]
    assert {state: entry["n"] for state, entry in figures["accuracy"].items()} == dict.fromkeys(
        ("dense", "before", "after"), 20
    )
    flops = figures["prefill_flops"]
    assert flops["before"]["value"] == flops["after"]["value"] < flops["dense"]["value"]
    assert main(["eval", str(world / "out"), "--space", str(world / "space.yaml"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["measured"]
    assert again["accuracy"]["value"] == figures["accuracy"]["after"]["value"]
    assert again["accuracy"]["dense"] == figures["accuracy"]["dense"]["value"]
    assert again["prefill_flops"]["value"] == flops["after"]["value"]
    policy = Policy.load(world / "out")
    assert policy.measured["accuracy"].value == pytest.approx(figures["accuracy"]["after"]["value"])
    card = (world / "out" / "README.md").read_text()
    assert found["data"]["sha256"] in card and "| metric | dense | before | after |" in card
    assert sorted(path.name for path in (world / "out").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "policy.yaml", "recovery.json",
    ]  # fmt: skip


def test_adapters_have_the_figures_of_the_skipped_attentions_before(world, capsys):
    arguments = ("--space", world / "space.yaml", "--freeze", "--adapter-rank", "4", "--json")
    assert command(world, *arguments, out="adapted", method="adapter") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["adapter_rank"] == 4 and found["settings"]["freeze"]
    flops = found["figures"]["prefill_flops"]
    assert flops["before"]["value"] == flops["after"]["value"] < flops["dense"]["value"]
    assert Policy.load(world / "adapted").layers[2].attention == "adapter"
    assert main(["show", str(world / "adapted")]) == 0
    assert "adapter in place of the attention: 1 layer" in capsys.readouterr().out


def test_a_task_trains_on_its_training_split_alone(world, capsys):
    assert command(world, "--model", world / "llama", out="task", data="trained.yaml", method="full") == 0
    printed = capsys.readouterr()
    assert "training by full on 16 examples" in printed.err and "trained" in printed.out
    card = (world / "task" / "README.md").read_text()
    assert "None: no space was given" in card
    config = yaml.safe_load((world / "trained.yaml").read_text())
    (world / "same.yaml").write_text(yaml.safe_dump({**config, "task": "same", "training_split": "test"}))
    assert command(world, "--model", world / "llama", out="same", data="same.yaml") == 2
    assert "trains on what it is evaluated on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "data", "message"),
    [
        (["--steps", "0"], "data.jsonl", "--steps: found '0'"),
        (["--space", "digits"], "data.jsonl", "--model takes the place of --space"),
        ([], "none.jsonl", "there is no file"),
        ([], "none.yaml", "there is no file"),
    ],
)
def test_a_wrong_command_is_refused_before_training(world, arguments, data, message, capsys):
    assert command(world, "--model", world / "llama", *arguments, out="wrong", data=data) == 2
    assert message in capsys.readouterr().err
    assert not (world / "wrong").exists()


def test_a_folder_that_is_used_is_refused(world, capsys):
    (world / "used").mkdir()
    (world / "used" / "file").write_text("")
    assert command(world, "--model", world / "llama", out="used") == 2
    assert "is not empty" in capsys.readouterr().err
