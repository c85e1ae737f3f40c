"""An evaluator beside accuracy has its examples unless it names others, and none may see what another reports."""

import pytest
import searching
import yaml

from skipsearch.policies.errors import EvaluatorError, SpaceError
from skipsearch.search.space.evaluator_defaults import with_accuracy_defaults
from skipsearch.search.space.load import load_space
from skipsearch.search.space.space import Space
from skipsearch.search.workers.evaluate import PolicyEvaluator

ACCURACY = {
    "tasks": ["a"],
    "search": {"limit": 4},
    "report": {"limit": 3, "tasks": ["b"]},
    "batch_size": 2,
    "metric": "acc",
    "apply_chat_template": True,
}


@pytest.mark.parametrize("options", [None, {}])
def test_all_that_is_left_out_is_accuracys(options):
    found = with_accuracy_defaults({"accuracy": ACCURACY, "divergence": options})["divergence"]
    assert found == {key: value for key, value in ACCURACY.items() if key != "metric"}


def test_what_accuracy_has_beyond_the_examples_is_taken_where_it_is_known():
    assert with_accuracy_defaults({"accuracy": ACCURACY, "answer_loss": None})["answer_loss"] == ACCURACY


def test_an_evaluator_with_tasks_of_its_own_takes_no_examples_from_accuracy():
    found = with_accuracy_defaults({"accuracy": ACCURACY, "divergence": {"tasks": ["c"], "batch_size": 9}})[
        "divergence"
    ]
    assert found == {"tasks": ["c"], "batch_size": 9, "apply_chat_template": True}


def test_others_and_what_is_no_mapping_are_left_alone():
    evaluate = {"accuracy": ACCURACY, "flops": {}, "memory": None, "unknown": {}, "latency": 3}
    assert with_accuracy_defaults(evaluate) == evaluate
    assert with_accuracy_defaults({"divergence": {}}) == {"divergence": {}}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return searching.tiny_space(tmp_path_factory.mktemp("sharing"))


def space_with(path, **divergence):
    data = {**yaml.safe_load(path.read_text()), "objectives": {"divergence": "minimize", "prefill_flops": "minimize"}}
    data["evaluate"]["divergence"] = divergence or None
    changed = path.parent / "changed.yaml"
    changed.write_text(yaml.safe_dump(data))
    return load_space(str(changed)).space


def test_a_space_says_what_its_divergence_measures(path):
    space = space_with(path)
    assert space.evaluate["divergence"] == space.evaluate["accuracy"]
    assert Space.model_validate(space.model_dump(by_alias=True)) == space


def test_without_accuracy_the_tasks_are_missed(path):
    data = {**yaml.safe_load(path.read_text()), "objectives": {"prefill_flops": "minimize"}}
    data["evaluate"] = {"divergence": {}, "flops": {}}
    (path.parent / "alone.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(SpaceError, match="found no tasks for the search and the report split"):
        load_space(str(path.parent / "alone.yaml"))


@pytest.mark.parametrize("limit", [6, 10])
def test_no_evaluator_searches_with_what_another_reports(path, limit):
    options = {"tasks": ["./image_gen.yaml"], "search": {"limit": limit}, "report": {"limit": 2}}
    with pytest.raises(EvaluatorError, match="image_gen.*overlap\n  found 2 examples in both") as caught:
        PolicyEvaluator(space_with(path, **options))
    assert "the same tasks and limits" in caught.value.hint


def test_other_examples_that_are_apart_are_fine(path):
    PolicyEvaluator(space_with(path, tasks=["./image_gen.yaml"], search={"limit": 8}, report={"limit": 2}))
