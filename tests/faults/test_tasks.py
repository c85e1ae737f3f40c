"""Tasks with a mistake: the error names the task, the document and what was found, and is no policy's."""

import pickle

import pytest
from PIL import Image

import tiny
from skipsearch.evaluators.accuracy.accuracy import AccuracyEvaluator
from skipsearch.policies.apply import apply_policy
from skipsearch.policies.errors import EvaluatorError, TaskError
from skipsearch.policies.policy import Policy

UTILS = """from datasets import Dataset
from PIL import Image
def load(**_):
    return {{"test": Dataset.from_list([{{"n": n}} for n in range(8)])}}
def image(doc): return [{image}]
def text(doc): return {text}
def target(doc): return {target}
"""
TASK = """task: broken{number}
custom_dataset: !function utils.load
test_split: test
output_type: {kind}
doc_to_image: !function utils.image
doc_to_text: !function utils.text
doc_to_target: !function utils.target
{more}
metric_list: [{{metric: {metric}, aggregation: mean, higher_is_better: true}}]
num_fewshot: 0
"""
GOOD = {"image": 'Image.new("RGB", (24, 24))', "text": '"a <image> b"', "target": '"c"'}
BAD = 'doc["n"] == 2'  # the document that is to blame
CASES = {
    "an image that is none": {"image": f'None if {BAD} else Image.new("RGB", (24, 24))'},
    "an image that is missing": {"image": f'"no/picture.png" if {BAD} else Image.new("RGB", (24, 24))'},
    "no placeholder": {"text": f'"a b" if {BAD} else "a <image> b"'},
    "two placeholders": {"text": f'"a <image> <image> b" if {BAD} else "a <image> b"'},
    "no context": {"text": f'None if {BAD} else "a <image> b"'},
    "a function that raises": {"text": f'{{}}["question"] if {BAD} else "a <image> b"'},
    "a choice out of range": {"target": f"9 if {BAD} else 0", "kind": "multiple_choice"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("world"))


def evaluator(world, folder, change):
    parts = GOOD | change
    kind = parts.get("kind", "generate_until")
    more = {
        "multiple_choice": 'doc_to_choice: ["c", "d"]',
        "generate_until": 'generation_kwargs: {until: ["<eos>"], max_gen_toks: 2}',
    }[kind]
    metric = "acc" if kind == "multiple_choice" else "exact_match"
    path = folder / "broken.yaml"
    path.write_text(TASK.format(kind=kind, metric=metric, more=more, number=abs(hash(folder))))
    (folder / "utils.py").write_text(UTILS.format(**{key: parts[key] for key in GOOD}))
    options = AccuracyEvaluator.options.model_validate(
        {"tasks": [str(path)], "search": {"limit": 4}, "report": {"limit": 4}}
    )
    return AccuracyEvaluator(options, world.llava)


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_told_with_its_document(world, tmp_path, name):
    with pytest.raises(TaskError) as told:
        made = evaluator(world, tmp_path, CASES[name])
        with apply_policy(world.llava.model, Policy()) as handle:
            made.measure(handle, "search")
    assert "task broken" in told.value.what and "document 2: " in told.value.details[0]
    again = pickle.loads(pickle.dumps(told.value))
    assert type(again) is TaskError and str(again) == str(told.value)


def test_a_sound_task_is_not_blamed_for_a_policy(world, tmp_path, monkeypatch):
    made = evaluator(world, tmp_path, {})
    monkeypatch.setattr(made, "_score_examples", lambda *_: {}["the evaluator's own"])
    with apply_policy(world.llava.model, Policy()) as handle, pytest.raises(KeyError):
        made.measure(handle, "search")


@pytest.mark.parametrize("load", ["[]", '[{"n": 1 / 0}]'])
def test_data_that_cannot_be_loaded_is_the_tasks(world, tmp_path, load):
    utils = UTILS.replace('[{{"n": n}} for n in range(8)]', load.replace("{", "{{").replace("}", "}}"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(EvaluatorError, match="broken"):
        patch.setitem(globals(), "UTILS", utils)
        evaluator(world, tmp_path, {})


def test_the_tasks_here_are_else_sound(world, tmp_path):
    made = evaluator(world, tmp_path, {"image": 'Image.new("RGB", (30, 20))'})
    assert isinstance(Image.new("RGB", (30, 20)), Image.Image)
    with apply_policy(world.llava.model, Policy()) as handle:
        assert 0 <= made.measure(handle, "search")["accuracy"].value <= 1
