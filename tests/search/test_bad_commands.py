"""Broken commands: flags, overrides, models, tasks and studies that are not there or do not fit."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from skipsearch.search.cli import main
from skipsearch.search.space.load import load_space
from skipsearch.search.study.study import SearchStudy

POLICY = "schema: skipsearch/policy/v1\n"
SPACE = """\
schema: skipsearch/space/v1
model: {id: ./llava}
layers: [{range: all, choices: [keep, skip_ffn]}]
evaluate: {accuracy: {tasks: [./image_mc.yaml], search: {limit: 4}, report: {limit: 4}}, flops: }
objectives: {accuracy: maximize, prefill_flops: minimize}
"""
SET_HINT = "hint: name a key and a value as in --set search.trials=20"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with two models, tasks, and what is none."""
    folder = tmp_path_factory.mktemp("world")
    tiny.tiny_llava(folder)
    tiny.tiny_llama(folder)
    tiny.image_tasks(folder)
    tiny.text_tasks(folder)
    (folder / "space.yaml").write_text(SPACE)
    (folder / "text.yaml").write_text(SPACE.replace("llava", "llama").replace("image_mc", "text_mc"))
    for name, text in {
        "policy": "layers: {1: {ffn: skip}}",
        "five": "model: {id: a/b, num_layers: 5}\nlayers: {1: {ffn: skip}}",
        "ninth": "layers: {9: {ffn: skip}}",
        "half": "layers: {1: {token_ratio: 0.5}}",
    }.items():
        (folder / f"{name}.yaml").write_text(f"{POLICY}{text}\n")
    (folder / "bare").mkdir()
    for name, text in {"garbage": "not a database" * 100, "nothing": ""}.items():
        (folder / name).mkdir()
        (folder / name / "study.db").write_text(text)
    loaded = load_space(str(folder / "space.yaml"))
    SearchStudy(folder / "begun" / "study.db", "begun", loaded.space, tiny.LAYERS)
    return folder


def refused(arguments, capsys):
    """Standard error of a command that must exit with 2; progress that a terminal would overwrite is left out."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err[err.index("error:") :].strip().splitlines()


COMMANDS = {
    "": ["error: the following arguments are required: COMMAND", "hint: `skipsearch --help` lists its arguments"],
    "run": ["error: the following arguments are required: SPACE", "hint: `skipsearch run --help` lists its arguments"],
    "run space.yaml --frob": ["error: unrecognized arguments: --frob", "hint: `skipsearch --help` lists its arguments"],
    "run digitz": [
        "error: no space is called 'digitz'",
        "  the nearest known one is 'digits'",
        "hint: give a path to a YAML file, or one of the shipped names; `skipsearch ls` lists them",
    ],
    "run nowhere.yaml": [
        "error: nowhere.yaml does not exist",
        "hint: check the path; `skipsearch ls` lists what there is",
    ],
    "run bare": ["error: bare is a folder", "  expected a YAML file"],
    "run policy.yaml": [
        "error: policy.yaml has a problem",
        "  policy.yaml:1:1  schema: found 'skipsearch/policy/v1', expected 'skipsearch/space/v1'",
    ],
    "show space.yaml": [
        "error: space.yaml has a problem",
        "  space.yaml:1:1  schema: found 'skipsearch/space/v1', expected 'skipsearch/policy/v1'",
    ],
    "run space.yaml --set search.trials": [
        "error: --set needs a key and a value",
        "  found 'search.trials'",
        "hint: write both, as in --set search.trials=20",
    ],
    "run space.yaml --set search.trials=many --set search.trails=5": [
        "error: space.yaml has 2 problems",
        "  --set search.trials=many  search.trials: found 'many', expected a whole number",
        "  --set search.trails=5  search.trails: unknown key; the nearest known one is 'trials'",
    ],
    "run space.yaml --set evaluate.flops.prompt_tokens=0": [
        "error: space.yaml has a problem",
        "  --set evaluate.flops.prompt_tokens=0  evaluate.flops.prompt_tokens: found 0, expected 1 or more",
    ],
    "run space.yaml --set layers.0.range=5-2": [
        "error: space.yaml has a problem",
        "  --set layers.0.range=5-2  layers[0].range: found 5-2, expected the lower layer first",
    ],
    "run space.yaml --set layers.1.range=5": ["error: --set layers.1.range=5: layers has no key '1'", SET_HINT],
    "run space.yaml --set =5": ["error: --set =5: the space has no key ''", SET_HINT],
    "run space.yaml --set search.trials=[1": [
        "error: --set search.trials=[1: expected one YAML value",
        "  expected ',' or ']', but got the end of the file",
        SET_HINT,
    ],
    "run space.yaml --set search.trials=1\nmodel:": [
        "error: --set search.trials=1 model:: expected one YAML value",
        "  found several",
        SET_HINT,
    ],
    "run space.yaml --trials 0 --seed -1 --sampler luck": [
        "error: space.yaml has 3 problems",
        "  --set search.trials=0  search.trials: found 0, expected 1 or more",
        "  --set search.seed=-1  search.seed: found -1, expected 0 or more",
        "  --set search.sampler=luck  search.sampler: found 'luck', "
        "expected 'auto', 'nsga2', 'nsga3', 'tpe' or 'random'",
    ],
    "run space.yaml --name ../begun": [
        "error: --name takes one folder's name",
        "  found '../begun'",
        "hint: use --out for the folder above it",
    ],
    "run space.yaml --out policy.yaml/deep": [
        "error: policy.yaml is a file",
        "  expected a folder, for policy.yaml/deep/space",
        "hint: give another one with --out",
    ],
    "run space.yaml --out . --name begun": [
        "error: begun already holds a study",
        "hint: go on with it with `--resume`, or give the new one another name with `--name`",
    ],
    "run space.yaml --resume": [
        "error: results/space holds no study to resume",
        "  expected results/space/study.db",
        "hint: leave out `--resume`",
    ],
    "report nowhere": [
        "error: results/nowhere holds no study",
        "  expected results/nowhere/study.db",
        "hint: `skipsearch ls` lists the studies",
    ],
    "report begun": [
        "error: begun has no dense trial yet",
        "hint: go on with the search: `skipsearch run … --resume`",
    ],
    "show policy.yaml --num-layers 0": [
        "error: argument --num-layers: found '0', expected a whole number of 1 or more",
        "hint: `skipsearch show --help` lists its arguments",
    ],
    "show five.yaml --num-layers 4": [
        "error: policy was made for 5 layers, model has 4",
        "  policy for a/b, model of 4 layers",
        "hint: use the model named in the policy, or search again for this one with `skipsearch run`",
    ],
    "eval policy.yaml": [
        "error: no space to measure on is given",
        "  policy.yaml is in no study's folder",
        "hint: name a space, as in `skipsearch eval policy.yaml --space digits`",
    ],
    "eval policy.yaml --set search.trials=3": [
        "error: --set changes a space, and none is given",
        "hint: name the space with --space",
    ],
    "eval five.yaml --space space.yaml": [
        "error: policy was made for 5 layers, model has 4",
        "  policy for a/b, model LlavaForConditionalGeneration",
        "hint: use the model named in the policy, or search again for this one with `skipsearch run`",
    ],
    "eval ninth.yaml --space space.yaml": [
        "error: policy has a choice for layer 9, model has layers 0 to 3",
        "  model LlavaForConditionalGeneration",
        "hint: remove that layer from the policy, or use the model it was made for",
    ],
    "eval half.yaml --space text.yaml": [
        "error: LlamaForCausalLM has no image tokens, so no choice can be about them",
        "  layer 1 has token_ratio 0.5",
        "hint: leave token_ratio, window and `tokens: image` out of policies and spaces for this model",
    ],
    "eval policy.yaml --space space.yaml --set model.id=/nowhere/model": [
        "error: model folder /nowhere/model does not exist",
        "hint: give a hub id such as llava-hf/llava-1.5-7b-hf, or a folder that save_pretrained wrote",
    ],
    "eval policy.yaml --space space.yaml --set evaluate.accuracy.search.limit=400": [
        "error: task image_mc has too few documents",
        "  found 12, the search wants 400 after the first 0",
        "hint: lower accuracy.search.limit or accuracy.report.limit, or give the report tasks of its own",
    ],
    "eval policy.yaml --space space.yaml --set evaluate.accuracy.report.limit=9": [
        "error: task image_mc has too few documents",
        "  found 12, the report wants 9 after the first 4",
        "hint: lower accuracy.search.limit or accuracy.report.limit, or give the report tasks of its own",
    ],
    "eval policy.yaml --space space.yaml --set evaluate.accuracy.metric=luck": [
        "error: task image_mc has no metric 'luck' of which higher is better",
        "  known: acc, acc_norm",
    ],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_message(command, here, capsys):
    assert refused(command.split(" ") if command else [], capsys) == COMMANDS[command]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.id=./nowhere", "  --set model.id=./nowhere  model.id: there is no folder {here}/nowhere"),
        ("model.id=bare", "error: model {here}/bare cannot be loaded"),
        ("model.id=nobody/nothing", "error: model nobody/nothing cannot be loaded from the hub"),
        ("evaluate.accuracy.tasks=[./gone.yaml]", "error: task file {here}/gone.yaml does not exist"),
    ],
)
def test_message_with_a_path(change, message, here, capsys):
    command = ["eval", "policy.yaml", "--space", "space.yaml", "--set", change]
    assert message.format(here=here) in refused(command, capsys)


@pytest.mark.parametrize(
    ("name", "message"),
    [("garbage", "is not a study's database"), ("nothing", "holds no search that skipsearch began")],
)
def test_a_file_that_is_no_study(name, message, here, capsys):
    shutil.copytree(here / name, here / "copy", dirs_exist_ok=True)
    assert refused(["report", "copy"], capsys)[0] == f"error: copy/study.db {message}"


def test_overlapping_examples(here, capsys):
    """The report reads the search's data by another way, so that examples can only be compared one by one."""
    other = (here / "text_mc.yaml").read_text().replace("text_mc", "text_turned")
    (here / "turned.py").write_text("def turned(docs):\n    return docs.select(range(len(docs) - 1, -1, -1))\n")
    (here / "text_turned.yaml").write_text(f"{other}process_docs: !function turned.turned\n")
    tasks = "{search: {tasks: [./text_mc.yaml], limit: 20}, report: {tasks: [./text_turned.yaml], limit: 20}}"
    command = ["eval", "policy.yaml", "--space", "text.yaml", "--set", f"evaluate.accuracy={tasks}"]
    assert refused(command, capsys)[1] == f"  {here / 'text_turned.yaml'}: turned.turned"
    assert refused([*command, "--trust-task-code"], capsys) == [
        "error: tasks text_mc (search) and text_turned (report) overlap",
        "  found 16 examples in both, expected none",
        "hint: give the report data of its own, or the same `process_docs` as the search",
    ]


class LoadedPool:
    """Workers that have the tiny model loaded, without Ray."""

    def __init__(self, space: object, kind: object = None, note: object = None) -> None:
        pass

    def describe(self):
        return [{"num_layers": tiny.LAYERS, "node": "here", "guide": None}]

    def close(self):
        pass


@pytest.mark.parametrize(
    "change", ["search.seed=1", "evaluate.accuracy.batch_size=3", "layers.0.choices=[keep, parallel]"]
)
def test_resume_with_another_space(change, here, capsys, monkeypatch):
    monkeypatch.setattr("skipsearch.search.workers.ray_pool.Pool", LoadedPool)
    command = ["run", "space.yaml", "--out", ".", "--name", "begun", "--resume", "--set", change]
    told = [re.sub("[0-9a-f]{16}", "…", line) for line in refused(command, capsys)]
    assert told == [
        "error: the study was made for another space, model or task",
        "  begun/study.db: fingerprint … with 4 layers",
        "  the space now: fingerprint … with 4 layers",
        "hint: resume with the space file and the `--set` it was begun with, or give the new study another `--name`",
    ]


def test_a_layer_beyond_the_model(here, capsys, monkeypatch):
    monkeypatch.setattr("skipsearch.search.workers.ray_pool.Pool", LoadedPool)
    assert refused(["run", "space.yaml", "--set", "layers.0.range=2-4"], capsys) == [
        "error: the space names layer 4, the model has layers 0 to 3",
        f"  range 2-4, model {here}/llava",
        "hint: use `last` for the last layer, as in `range: 2-last`",
    ]
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "garbage"], "error: garbage/study.db is not a study's database\n"),
        (["run", "space.yaml", "--set", "search.trials"], "error: --set needs a key and a value\n"),
        (["frob"], "error: argument COMMAND: invalid choice: 'frob'"),
    ],
)
def test_the_real_command_shows_no_traceback(arguments, message, here):
    command = [sys.executable, "-m", "skipsearch", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.startswith(message)
    assert "Traceback" not in ran.stderr
