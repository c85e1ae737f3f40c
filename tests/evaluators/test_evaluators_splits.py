"""Which examples accuracy takes for search and report, and what it says where it cannot."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import tiny
from skipsearch.evaluators.accuracy import tasks as accuracy_tasks
from skipsearch.evaluators.accuracy.accuracy import AccuracyEvaluator, AccuracyOptions
from skipsearch.policies.errors import EvaluatorError


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("tiny"))


def evaluator(subject, *tasks, **options):
    return AccuracyEvaluator(AccuracyOptions(tasks=list(tasks), **options), subject)


def documents(measured, split):
    return {request.doc_id for task in measured._tasks(split).values() for request in task.instances}


@pytest.mark.parametrize(
    ("search", "report", "expected"),
    [
        ({}, {}, (range(12), range(12, 24))),
        ({"limit": 5}, {}, (range(5), range(5, 24))),
        ({"limit": 5}, {"limit": 3}, (range(5), range(5, 8))),
    ],
)
def test_splits_never_share_a_document(world, search, report, expected):
    measured = evaluator(world.llama, world.tasks["text_mc"], search=search, report=report)
    assert (documents(measured, "search"), documents(measured, "report")) == tuple(map(set, expected))


def test_splits_never_share_a_document_through_another_task_on_the_same_data(world):
    own = {"tasks": [world.tasks["text_gen"]]}
    measured = evaluator(world.llama, world.tasks["text_mc"], search={"limit": 5}, report=own)
    assert documents(measured, "report") == set(range(5, 24))


def test_splits_of_different_data_take_all_of_it(world):
    own = {"tasks": [world.tasks["image_gen"]]}
    measured = evaluator(world.llava, world.tasks["text_mc"], report=own)
    assert documents(measured, "search") == set(range(24))
    assert documents(measured, "report") == set(range(12))


def test_prompts_for_the_cost_evaluators_are_real_ones(world):
    evaluator(world.llava, world.tasks["image_gen"])
    prompt = world.llava.prompts[0]
    assert prompt["pixel_values"].shape == (1, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    assert (prompt["input_ids"] == tiny.SPECIAL.index("<image>")).sum() == 9
    lengths = [prompt["input_ids"].shape[1] for prompt in world.llava.prompts]
    assert abs(lengths[-1] - lengths[0]) == max(abs(length - lengths[0]) for length in lengths)


def edited(world, task, name, **changes):
    config = {**yaml.safe_load(Path(world.tasks[task]).read_text()), "task": name, **changes}
    path = world.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_tasks_that_pick_common_examples_from_the_same_data_are_refused(world):
    (world.folder / "pick.py").write_text("def some(docs):\n    return docs.select(range(20, 24))\n")
    path = Path(edited(world, "text_mc", "picked"))
    path.write_text(path.read_text() + "process_docs: !function pick.some\n")
    own = {"tasks": [str(path)]}
    measured = evaluator(world.llama, world.tasks["text_mc"], search={"limit": 20}, report=own)
    assert documents(measured, "report") == set(range(4))
    message = r"tasks text_mc \(search\) and picked \(report\) overlap\n  found 1 examples in both"
    with pytest.raises(EvaluatorError, match=message):
        evaluator(world.llama, world.tasks["text_mc"], search={"limit": 21}, report=own)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search": {"limit": 25}}, "text_mc has too few documents\n  found 24, the search wants 25 after the first 0"),
        ({"search": {"limit": 24}}, "text_mc has too few documents\n  found 24, the report wants 1 after the first 24"),
        ({"search": {"limit": 9}, "report": {"limit": 16}}, "found 24, the report wants 16 after the first 9"),
        ({"metric": "f7"}, "task text_mc has no metric 'f7' of which higher is better\n  known: acc, acc_norm"),
        ({"metric": "acc,strict"}, "task text_mc has no filter 'strict'\n  known: none"),
        ({"report": {"tasks": ["nowhere.yaml"]}}, "task file nowhere.yaml does not exist"),
    ],
)
def test_mistakes_are_told(world, options, message):
    with pytest.raises(EvaluatorError) as caught:
        evaluator(world.llama, world.tasks["text_mc"], **options)
    assert message in str(caught.value)


def test_an_unknown_task_name_is_told(world, monkeypatch):
    # lm-eval's own index takes seconds to read.
    manager = SimpleNamespace(task_index={"chartqa": 1}, all_tasks=["chartqa"])
    monkeypatch.setattr(accuracy_tasks, "task_manager", lambda every_task: manager)
    with pytest.raises(EvaluatorError, match="lm-eval has no task 'chartq'\n  the nearest known ones are chartqa"):
        evaluator(world.llama, "chartq")


def test_missing_data_is_told(world):
    path = edited(world, "text_mc", "lost", dataset_kwargs={"data_files": {"test": "/nowhere/x.jsonl"}})
    with pytest.raises(EvaluatorError, match="cannot load the tasks"):
        evaluator(world.llama, path)


def test_a_metric_that_is_no_fraction_is_told(world):
    metric = [{"metric": "bleu", "aggregation": "bleu", "higher_is_better": True}]
    path = edited(world, "text_gen", "in_percent", metric_list=metric, doc_to_target="{{question}} {{question}}")
    measured = evaluator(world.llama, path, search={"limit": 3})
    (task,) = measured._tasks("search").values()
    for request in task.instances:
        request.filtered_resps = {"none": task.doc_to_target(request.doc)}
    with pytest.raises(
        EvaluatorError, match="the metric bleu of task in_percent is no accuracy\n  found 100, expected"
    ):
        accuracy_tasks.aggregate(
            task, "bleu", "none", list(accuracy_tasks.score_documents(task, "bleu", "none").values())
        )


@pytest.mark.parametrize(
    ("kind", "task", "options", "reason"),
    [
        ("llama", "image_mc", {}, "has images, which this model does not take"),
        ("llava", "image_mc", {"num_fewshot": 1}, "has images, so num_fewshot must be 0"),
        ("llama", "text_gen", {"unsafe_code": True}, "runs code that the model writes"),
        ("llama", "text_gen", {"doc_to_audio": "question"}, "has sound"),
    ],
)
def test_tasks_that_cannot_be_used_are_told(world, kind, task, options, reason):
    path = edited(world, task, "unusable", **options)
    with pytest.raises(EvaluatorError, match=f"task unusable cannot be used\n  {reason}"):
        evaluator(getattr(world, kind), path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "found no tasks for the search and the report split"),
        ({"search": {"tasks": ["a"]}}, "found no tasks for the report split"),
        ({"tasks": ["a"], "limit": 3}, "Extra inputs are not permitted"),
        ({"tasks": ["a"], "search": {"limit": 0}}, "greater than or equal to 1"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        AccuracyOptions(**options)
