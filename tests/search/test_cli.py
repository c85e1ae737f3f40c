"""The command line: what each verb prints where, how it ends, and what it must not load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from skipsearch import Policy, __version__
from skipsearch.policies.errors import RunError
from skipsearch.search.cli import main
from skipsearch.search.places import shipped_spaces
from skipsearch.search.space.load import load_space
from skipsearch.search.study.study import SearchStudy
from skipsearch.search.workers.evaluate import PolicyEvaluator

POLICY = """\
schema: skipsearch/policy/v1
model: {id: some/model, num_layers: 4}
layers: {1: {ffn: skip}, 2: {token_ratio: 0.5}}
"""
SPACE = """\
schema: skipsearch/space/v1
model: {id: ./llava}
layers: [{range: all, choices: [keep, skip_ffn, {token_ratio: 0.5}]}]
evaluate: {accuracy: {tasks: [./image_mc.yaml], search: {limit: 5}, report: {limit: 6}}, flops: , memory: }
objectives: {accuracy: maximize, prefill_flops: minimize}
search: {trials: 7}
"""
STUDIES = "STUDIES"  # stands for a folder that holds one
HEAVY = ["torch", "transformers", "optuna", "sqlalchemy", "ray", "lm_eval", "datasets", "plotly", "matplotlib"]
FLAGS = {
    "run": ["SPACE", "--json", "--set KEY=VALUE", "--out FOLDER", "--name NAME", "--resume", "--trials N", "--seed N",
            "--sampler NAME", "--address ADDRESS", "--trust-task-code", "--quiet"],
    "validate": ["FILE", "--json"],
    "show": ["POLICY", "--json", "--num-layers N"],
    "eval": ["POLICY", "--json", "--space SPACE", "--split {search,report}", "--set KEY=VALUE",
             "--trust-task-code"],
    "report": ["STUDY", "--json", "--out FOLDER", "--constraint BOUND", "--pick BOUND", "--unmeasured",
               "--salvage"],
    "ls": ["--json", "--out FOLDER"],
    "init": ["MODEL", "--json", "--output FILE", "--tasks TASKS", "--keep SHARE", "--minimize METRICS", "--trials N",
             "--limit N", "--revision REVISION", "--dtype {auto,float32,bfloat16,float16}", "--trust-remote-code"],
}  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("policy.yaml").write_text(POLICY)
    return tmp_path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A space over a tiny model, with a study that has only begun."""
    folder = tmp_path_factory.mktemp("world")
    tiny.tiny_llava(folder)
    tiny.image_tasks(folder)
    (folder / "space.yaml").write_text(SPACE)
    space = load_space(str(folder / "space.yaml")).space
    SearchStudy(folder / "begun" / "study.db", "begun", space, tiny.LAYERS)
    (folder / "begun" / "policies").mkdir()
    (folder / "begun" / "policies" / "mine.yaml").write_text(POLICY)
    return folder


def run(*arguments, **options):
    """The real command, in a process of its own."""
    command = [sys.executable, "-m", "skipsearch", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def helped(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--help"])
    assert left.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_tells_the_verbs(capsys):
    text = helped(capsys)
    assert [verb for verb in FLAGS if f" {verb} " in text] == list(FLAGS)


@pytest.mark.parametrize("verb", FLAGS)
def test_help_of_a_verb_tells_its_flags(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = helped(capsys, verb)
    assert [flag for flag in FLAGS[verb] if flag not in text] == []
    told = {word.strip("[],.;()") for word in text.split() if word.strip("[(").startswith("--")}
    known = {flag.split()[0] for flag in FLAGS[verb]} | {"--help", "--set", "--out"}
    assert told <= known


def test_version(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"skipsearch {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["validate", *map(str, shipped_spaces().values()), "policy.yaml"],
     ["show", "policy.yaml"], ["ls"], ["ls", "--out", STUDIES], ["run", "digits", "--trials", "0"]],
    ids=lambda part: " ".join(map(str, part))[:20],
)  # fmt: skip
def test_what_is_light_stays_light(arguments, world, here):
    arguments = [str(world) if word == STUDIES else word for word in arguments]
    watch = f"import sys\nfrom skipsearch.search.cli import main\ntry: main({arguments!r})\nexcept SystemExit: pass\n"
    watch += f"print('loaded:', *[name for name in {HEAVY!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", watch], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1].split()[1:] == []
    assert STUDIES not in arguments and (arguments[0] != "ls" or "spaces" in ran.stdout)


def test_show_draws_plain_text_where_it_is_piped(here):
    ran = run("show", "policy.yaml", env=os.environ | {"PYTHONIOENCODING": "utf-8"})
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "\x1b" not in ran.stdout
    assert "some/model" in ran.stdout
    assert "2 of 4 layers changed" in ran.stdout
    assert "skip_ffn: 1 layer" in ran.stdout


def test_show_without_unicode(here):
    ran = run("show", "policy.yaml", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (ran.returncode, ran.stderr) == (0, "")


def test_show_as_json_is_the_policy(here, capsys):
    assert main(["show", "policy.yaml", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert Policy.model_validate(shown) == Policy.load("policy.yaml").canonical()


@pytest.mark.parametrize(("count", "told"), [(None, "1 of 3 layers"), ("6", "1 of 6 layers")])
def test_show_takes_the_number_of_layers_where_the_policy_has_none(count, told, here, capsys):
    Path("p.yaml").write_text("schema: skipsearch/policy/v1\nlayers: {2: {attention: skip}}\n")
    assert main(["show", "p.yaml", *([] if count is None else ["--num-layers", count])]) == 0
    assert told in capsys.readouterr().out


def test_validate_goes_on_after_a_bad_file(here, capsys):
    Path("bad.yaml").write_text("schema: skipsearch/policy/v1\nlayers: {1: {fnn: skip}}\n")
    digits = str(shipped_spaces()["digits"])
    assert main(["validate", "bad.yaml", "policy.yaml", "gone.yaml", digits]) == 2
    out, err = capsys.readouterr()
    assert out == f"ok: policy.yaml is a policy\nok: {digits} is a space\n"
    assert err == (
        "error: bad.yaml has a problem\n"
        "  bad.yaml:2:14  layers[1].fnn: unknown key; the nearest known one is 'ffn'\n"
        "error: gone.yaml does not exist\n"
        "hint: check the path; `skipsearch ls` lists what there is\n"
    )
    assert main(["validate", "policy.yaml", digits]) == 0


def test_validate_as_json(here, capsys):
    Path("bad.yaml").write_text("schema: skipsearch/policy/v1\nlayers: {1: {fnn: skip}}\n")
    assert main(["validate", "bad.yaml", "policy.yaml", "--json"]) == 2
    out, err = capsys.readouterr()
    problem = "bad.yaml:2:14  layers[1].fnn: unknown key; the nearest known one is 'ffn'"
    assert json.loads(out) == {"bad.yaml": ["bad.yaml has a problem", problem], "policy.yaml": []}
    assert err == ""


def test_ls(world, here, capsys):
    assert main(["ls"]) == 0
    out = capsys.readouterr().out
    assert "none under results" in out
    assert all(f"  {name} " in out for name in shipped_spaces())
    assert main(["ls", "--out", str(world), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["studies"] == {str(world / "begun"): "0 of 7 trials"}
    assert data["spaces"] == {name: load_space(name).space.model.id for name in shipped_spaces()}


@pytest.mark.parametrize("split", ["search", "report"])
def test_eval_prints_what_the_evaluators_measure(split, world, here, capsys):
    command = ["eval", "policy.yaml", "--space", str(world / "space.yaml"), "--split", split, "--json"]
    assert main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["split"] == split

    bench = PolicyEvaluator(load_space(str(world / "space.yaml")).space)
    names = ["accuracy", "flops", "memory"]
    found, dense = (
        bench.measure(policy, names, split).measurements for policy in (Policy.load("policy.yaml"), Policy())
    )
    assert set(printed["measured"]) == set(found)
    for name, entry in found.items():
        told = {"value": entry.value, "dense": dense[name].value, "stderr": entry.stderr, "n": entry.n}
        assert printed["measured"][name] == told
    assert printed["measured"]["accuracy"]["n"] == {"search": 5, "report": 6}[split]
    flops = printed["measured"]["prefill_flops"]
    assert flops["value"] < flops["dense"]


def test_eval_measures_on_the_space_of_the_study_that_a_policy_lies_in(world, here, capsys):
    assert main(["eval", str(world / "begun" / "policies" / "mine.yaml")]) == 0
    out = capsys.readouterr().out
    assert "accuracy on the report split" in out
    assert [name for name in ("accuracy", "prefill_flops", "kv_cache_bytes") if name not in out] == []


def test_eval_changes_a_space(world, here, capsys):
    space = str(world / "space.yaml")
    assert main(["eval", "policy.yaml", "--space", space, "--set", "evaluate={flops: }", "--set", "constraints={}",
                 "--set", "objectives={prefill_flops: minimize}", "--json"]) == 0  # fmt: skip
    assert set(json.loads(capsys.readouterr().out)["measured"]) == {"vision_flops", "prefill_flops", "decode_flops"}


def interrupting(*_, **__):
    raise KeyboardInterrupt


def failing(*_, **__):
    raise RunError("the cluster went away", ["after 3 trials"], "start it again")


def unwritable(*_, **__):
    raise PermissionError(13, "Permission denied", "results/digits/space.yaml")


@pytest.mark.parametrize("given", [[], ["--resume"]])
def test_an_interrupted_run_tells_the_command_that_goes_on(given, here, capsys, monkeypatch):
    monkeypatch.setattr("skipsearch.search.run.run_study", interrupting)
    command = [
        "run",
        "digits",
        "--trials",
        "9",
        "--set",
        "constraints={accuracy: '>= 1'}",
        "--out",
        "some where",
        *given,
    ]
    assert main(command) == 130
    out, err = capsys.readouterr()
    quoted = "'constraints={accuracy: '\"'\"'>= 1'\"'\"'}'"
    hint = f"hint: go on with `skipsearch run digits --trials 9 --set {quoted} --out 'some where' --resume`"
    assert err.splitlines() == ["", "interrupted; finished trials are kept in some where/digits", hint]
    assert out == ""


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (failing, "error: the cluster went away\n  after 3 trials\nhint: start it again\n"),
        (unwritable, "error: results/digits/space.yaml: Permission denied\n"),
    ],
)
def test_a_run_that_fails_ends_with_1(how, message, here, capsys, monkeypatch):
    monkeypatch.setattr("skipsearch.search.run.run_study", how)
    assert main(["run", "digits"]) == 1
    assert capsys.readouterr() == ("", message)


@pytest.mark.parametrize("command", [["--help"], ["show", "policy.yaml"], ["show", "policy.yaml", "--json"], ["ls"]])
def test_a_reader_that_goes_away_is_no_error(command, here):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        whole = [sys.executable, "-m", "skipsearch", *command]
        buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
        ran = subprocess.run(whole, stdout=gone, stderr=subprocess.PIPE, text=True, check=False, env=buffered)
    assert (ran.returncode, ran.stderr) == (0, "")
