"""lm-eval's model `skipsearch`: the numbers of `skipsearch eval`, by lm-eval's own functions and its command line."""

from __future__ import annotations

import json
from functools import partial
from importlib.metadata import entry_points

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

import tiny
from skipsearch.evaluators.accuracy.accuracy import AccuracyEvaluator, AccuracyOptions
from skipsearch.evaluators.accuracy.harness import PolicyModel
from skipsearch.policies.apply import apply_policy
from skipsearch.policies.choice import LayerChoice
from skipsearch.policies.errors import EvaluatorError, PolicyError
from skipsearch.policies.policy import Policy
from skipsearch.search.cli import main

SKIP = Policy(layers={0: LayerChoice(ffn="skip", phase="decode"), 2: LayerChoice(attention="skip", ffn="skip")})
IMAGE = Policy(layers={1: LayerChoice(token_ratio=0.4), 3: LayerChoice(wiring="parallel")})
TASKS = [("llama", "text_mc", SKIP), ("llama", "text_gen", SKIP), ("llava", "text_mc", SKIP),
         ("llava", "image_mc", IMAGE), ("llava", "image_gen", IMAGE)]  # fmt: skip
DOCS, BATCH = 6, 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tiny.world(tmp_path_factory.mktemp("tiny"))
    SKIP.save(world.folder / "skip.yaml")
    IMAGE.save(world.folder / "image.yaml")
    return world


@pytest.fixture(autouse=True)
def no_environment_report(monkeypatch):
    # simple_evaluate runs pip in a subprocess to describe the machine.
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


@pytest.fixture
def no_index(monkeypatch):
    # lm-eval's command reads all of its own tasks, which takes seconds.
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))


def arguments(world, kind, policy):
    file = world.folder / ("image.yaml" if policy is IMAGE else "skip.yaml")
    return {"pretrained": getattr(world, kind).spec.id, "policy": str(file), "dtype": "float32"}


def measured(world, kind, task, policy):
    """The result by our own evaluator: accuracy, standard error, scores and answers of the documents."""
    subject = getattr(world, kind)
    options = AccuracyOptions(tasks=[world.tasks[task]], batch_size=BATCH, search={"limit": DOCS})
    with apply_policy(subject.model, policy) as handle:
        evaluator = AccuracyEvaluator(options, subject)
        # In a search, the answers to a prompt share its forward, which rounds differently.
        evaluator.exact_splits = ("search",)
        found = evaluator.measure(handle, "search")["accuracy"]
    answers = {}
    for request in evaluator._tasks("search")[task].instances:
        answers.setdefault(request.doc_id, []).append(request.resps)
    return found.value, found.stderr, found.detail["per_example"], list(answers.values())


@pytest.mark.parametrize(("kind", "task", "policy"), TASKS, ids=[f"{kind}-{task}" for kind, task, _ in TASKS])
def test_simple_evaluate_gives_the_numbers_of_our_evaluator(world, kind, task, policy):
    results = lm_eval.simple_evaluate(
        "skipsearch",
        model_args=arguments(world, kind, policy),
        tasks=[world.tasks[task]],
        task_manager=TaskManager(include_defaults=False),
        batch_size=BATCH,
        device="cpu",
        limit=DOCS,
        bootstrap_iters=10,
    )
    metric = "acc" if task.endswith("mc") else "exact_match"
    found, samples = results["results"][task], results["samples"][task]
    items, answers = [sample[metric] for sample in samples], [sample["resps"] for sample in samples]
    ours, dense = measured(world, kind, task, policy), measured(world, kind, task, Policy())
    assert (found[f"{metric},none"], found[f"{metric}_stderr,none"], items, answers) == ours
    assert answers != dense[-1]


def test_the_entry_point_gives_the_model():
    (entry,) = entry_points(group="lm_eval.models", name="skipsearch")
    assert entry.load() is PolicyModel
    assert lm_eval.api.registry.get_model("skipsearch") is PolicyModel


def test_lm_evals_command_line(world, no_index, capsys):
    told = ",".join(f"{name}={value}" for name, value in arguments(world, "llama", SKIP).items())
    command = ["lm-eval", "--model", "skipsearch", "--model_args", f"{told},max_length=200", "--tasks",
               world.tasks["text_mc"], "--limit", str(DOCS), "--batch_size", str(BATCH),
               "--output_path", str(world.folder / "results.json")]  # fmt: skip
    assert main(command) == 0
    assert "text_mc" in capsys.readouterr().out
    (file,) = world.folder.glob("results_*.json")
    found = json.loads(file.read_text())["results"]["text_mc"]["acc,none"]
    assert found == measured(world, "llama", "text_mc", SKIP)[0]


def test_help_is_lm_evals_own(capsys):
    with pytest.raises(SystemExit) as left:
        main(["lm-eval", "--help"])
    assert left.value.code == 0
    assert "Language Model Evaluation Harness" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [({"policy": "none.yaml"}, PolicyError, "none.yaml does not exist"),
     ({"policy": None}, EvaluatorError, "needs policy"),
     ({"pretrained": None}, EvaluatorError, "needs pretrained"),
     ({"batch_size": "auto"}, EvaluatorError, "found 'auto', expected a number"),
     ({"peft": "some/adapter"}, EvaluatorError, "found peft"),
     ({"dtype": "float8"}, EvaluatorError, "dtype: .* found 'float8'")],
    ids=lambda part: next(iter(part)) if isinstance(part, dict) else "",
)  # fmt: skip
def test_wrong_arguments(world, changed, error, message):
    with pytest.raises(error, match=message):
        PolicyModel(**{**arguments(world, "llama", SKIP), **changed})


def test_a_wrong_policy_exits_with_2_and_lm_evals_errors_stay_its_own(world, no_index, tmp_path, capsys):
    (tmp_path / "wrong.yaml").write_text("schema: skipsearch/policy/v1\nlayers: {1: {ffn: skipp}}\n")
    command = ["lm-eval", "--model", "skipsearch", "--tasks", world.tasks["text_mc"], "--limit", "2", "--model_args"]
    assert main([*command, f"pretrained={world.llama.spec.id},policy={tmp_path / 'wrong.yaml'}"]) == 2
    assert "wrong.yaml:2:" in capsys.readouterr().err
    assert main([*command, "pretrained=a,policy=b", "--tasks", "no_such_task"]) == 1
    assert "Tasks not found: no_such_task" in capsys.readouterr().err
