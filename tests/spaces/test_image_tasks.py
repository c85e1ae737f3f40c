"""The shipped image tasks, on small local data sets with the columns of those on the hub."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from datasets import Dataset, Features, Image
from datasets import Sequence as ListOf
from PIL import Image as Pictures

import tiny
from skipsearch.evaluators.accuracy.accuracy import AccuracyEvaluator, AccuracyOptions
from skipsearch.evaluators.accuracy.tasks import load_tasks, pick_metric
from skipsearch.evaluators.answer_loss import AnswerLossEvaluator, AnswerLossOptions
from skipsearch.evaluators.subject import ModelSpec, load_subject
from skipsearch.policies.apply import apply_policy
from skipsearch.policies.policy import Policy

TASKS = Path(__file__).parents[2] / "spaces" / "tasks"
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
DOCS = 12


def texts(**columns):
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def repeated(*values):
    return [values[place % len(values)] for place in range(DOCS)]


NUMBERS = [*map(str, range(DOCS))]
# By task: configuration and split on the hub, then the rows without their pictures.
HUB = {
    "pope": ("default", "test", texts(
        id=NUMBERS, question_id=NUMBERS, question=repeated("Is there a dog ?", "Is there a cat ?"),
        answer=repeated("yes", "no", "no"), image_source=repeated("a", "b", "c"),
        category=["adversarial"] * 4 + ["popular"] * 4 + ["random"] * 4)),
    "gqa": ("testdev_balanced_instructions", "testdev", texts(
        id=NUMBERS, imageId=repeated("n1", "n2", "n3"), question=repeated("What is red ?"),
        answer=repeated("car", "left"), fullAnswer=repeated("The car is red."))),
    "scienceqa_img": ("ScienceQA-IMG", "test", texts(
        question=repeated("Which is warm ?"), choices=repeated(["sun", "ice"], ["fire", "snow", "rain"]),
        answer=repeated(1, 2), hint=repeated("Look .", ""), task=repeated("closed choice"))),
    "textvqa": ("default", "validation", texts(
        image_id=NUMBERS, question_id=[*range(DOCS)], question=repeated("what BRAND is it?"),
        answers=repeated(["The Nokia"] * 4 + ["nokia."] * 4 + ["lg"] * 2), ocr_tokens=repeated(["NOKIA"]))),
    "vqav2": ("default", "validation", texts(
        question_type=repeated("how many"), image_id=[*range(DOCS)], question=repeated("How many?"),
        multiple_choice_answer=repeated("2"),
        answers=repeated([{"answer": word, "answer_confidence": "yes", "answer_id": place}
                          for place, word in enumerate(["2"] * 2 + ["two"] + ["3"] * 7)]))),
    "mmbench": ("en", "dev", texts(
        index=[place // 3 + place % 3 * 1_000_000 for place in range(DOCS)], question=repeated("Which is it?"),
        hint=repeated("nan", "nan", "nan", "See ."), answer=repeated("A", "B", "C"), A=repeated("cat", "dog"),
        B=repeated("dog", "cat"), C=repeated("cow"), D=repeated("nan"), category=repeated("coarse"))),
    "seedbench": ("default", "test", texts(
        answer=repeated("B", "D"), choice_a=repeated("one"), choice_b=repeated("two"), choice_c=repeated("three"),
        choice_d=repeated("four"), data_id=NUMBERS, data_type=repeated("image", "image", "video"),
        question=repeated("How many?"), question_id=NUMBERS, question_type_id=repeated(5))),
    "mme": ("default", "test", texts(
        question_id=[f"p{place // 2}.png" for place in range(DOCS)],
        question=repeated("Is it red? Please answer yes or no. ", "Is it blue? Please answer yes or no."),
        answer=repeated("Yes", "No"), category=["color"] * 8 + ["code_reasoning"] * 4)),
}  # fmt: skip
PROMPTS = {
    "pope": f"<image>Is there a dog ?{SHORT}",
    "gqa": f"<image>What is red ?{SHORT}",
    "scienceqa_img": f"<image>Context: Look .\nWhich is warm ?\nA. sun\nB. ice\n{LETTER}",
    "textvqa": f"<image>What brand is it?{SHORT}",
    "vqav2": f"<image>How many?{SHORT}",
    "mmbench": f"<image>Which is it? There are several options:\nA. cat\nB. dog\nC. cow\n{LETTER}",
    "seedbench": f"<image>How many?\nA. one\nB. two\nC. three\nD. four\n{LETTER}",
    "mme": f"<image>Is it red?{SHORT}",
}
TARGETS = {"pope": "yes", "gqa": "car", "scienceqa_img": "B", "textvqa": "The Nokia", "vqav2": "3", "mmbench": "A",
           "seedbench": "B", "mme": "Yes"}  # fmt: skip


def picture(seed):
    """A small picture; every other one has a palette, as many PNG files have."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Pictures.fromarray(noise).convert("P" if seed % 2 else "RGB")


def write_hub(folder: Path, name: str) -> Path:
    """A folder that `load_dataset` reads as it reads a data set on the hub."""
    config, split, rows = HUB[name]
    pictures = [picture(seed) for seed in range(DOCS)]
    tables = {config: (split, Dataset.from_list(rows))}
    if name == "gqa":
        ids = ["n3", "n1", "n2"]
        tables["testdev_balanced_images"] = (split, with_pictures(Dataset.from_dict({"id": ids}), pictures[:3]))
    elif name == "seedbench":
        tables[config] = (split, with_pictures(Dataset.from_list(rows), [[one] for one in pictures], ListOf(Image())))
    else:
        tables[config] = (split, with_pictures(Dataset.from_list(rows), pictures))
    folder = folder / name
    folder.mkdir()
    configs = []
    for table, (of_table, data) in tables.items():
        data.to_parquet(folder / f"{table}.parquet")
        configs.append({"config_name": table, "data_files": [{"split": of_table, "path": f"{table}.parquet"}]})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    return folder


def with_pictures(data: Dataset, pictures: Sequence, kind=None) -> Dataset:
    kind = kind or Image()
    return Dataset.from_dict({**data.to_dict(), "image": pictures}, Features({**data.features, "image": kind}))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patched:
        # The cache of datasets knows a folder by its last name alone, so it would give the rows of an earlier run.
        patched.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        yield made_world(folder)


def made_world(folder: Path) -> SimpleNamespace:
    """The tasks over small local data, and a tiny model."""
    files = {}
    for name in HUB:
        data = str(write_hub(folder, name))
        where = {"dataset_kwargs": {"path": data}} if name == "gqa" else {"dataset_path": data}
        files[name] = folder / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump({"include": str(TASKS / f"{name}.yaml"), **where}))
    subject = load_subject(ModelSpec(id=str(tiny.tiny_llava(folder)), dtype="float32", device="cpu"))
    return SimpleNamespace(files=files, subject=subject, tasks={})


def loaded(world, name):
    if name not in world.tasks:
        (world.tasks[name],) = load_tasks([str(world.files[name])], None, 0).values()
    return world.tasks[name]


def first_row(world, name):
    """The document that the first row has become; the data is shuffled."""
    task = loaded(world, name)
    keys = {"mmbench": "index", "mme": "question_id", "textvqa": "image_id", "vqav2": "image_id", "pope": "id",
            "seedbench": "data_id", "gqa": "id"}  # fmt: skip
    first = HUB[name][2][0]
    key = keys.get(name, "hint")
    docs = [doc for doc in task.eval_docs if doc[key] == first[key] and doc["question"] == first["question"]]
    return task, docs[0]


def test_every_task_file_is_tested():
    assert sorted(HUB) == sorted(file.stem for file in TASKS.glob("*.yaml"))


@pytest.mark.parametrize("name", HUB)
def test_a_task_asks_as_published(world, name):
    task, doc = first_row(world, name)
    assert task.doc_to_text(doc) == PROMPTS[name]
    assert task.doc_to_target(doc) == TARGETS[name]
    (shown,) = task.doc_to_image(doc)
    assert shown.mode == "RGB"


@pytest.mark.parametrize("name", HUB)
def test_a_task_is_measured_example_by_example(world, name):
    """A random model answers; both splits, a race over parts of them and the loss of the right answers must work."""
    options = {"tasks": [str(world.files[name])], "search": {"limit": 4}, "report": {"limit": 4}, "batch_size": 4}
    evaluator = AccuracyEvaluator(AccuracyOptions(**options), world.subject)
    loss = AnswerLossEvaluator(AnswerLossOptions(**options), world.subject)
    with apply_policy(world.subject.model, Policy()) as handle:
        for split in ("search", "report"):
            found = evaluator.measure(handle, split)["accuracy"]
            assert found.n == 4 and len(found.detail["per_example"]) == 4
            assert found.value == pytest.approx(fmean(found.detail["per_example"]))
            assert found.floor > 0
            assert evaluator._scores_independently(split)
            others = {*found.detail.get("other_metrics", {}).get(name, {})}
            if split == "search":
                assert not others
            elif name == "mme":
                assert {"perception", "color"} & others and not others & {"acc", "OCR"}
            else:
                main = found.detail["tasks"][name]["metric"].removesuffix(",none")
                assert others == {*loaded(world, name).aggregation()} - {main}
        assert 0 < loss.measure(handle, "search")["answer_loss"].value < 20


def scores(world, name, answers, metric):
    """A metric of answers to the documents, in their order."""
    task = loaded(world, name)
    found = [task.process_results(doc, [answer]) for doc, answer in zip(task.eval_docs, answers(task), strict=True)]
    return task.aggregation()[metric]([result[metric] for result in found if metric in result])


@pytest.mark.parametrize(
    "name, metric, said, expected",
    [
        ("pope", "acc", lambda doc: f" {doc['answer'].title()}\n", 1),
        ("pope", "acc", lambda doc: "yes", 4 / 12),
        ("pope", "f1", lambda doc: "yes", 0.5),
        ("pope", "precision", lambda doc: "yes", 4 / 12),
        ("pope", "recall", lambda doc: "yes" if doc["category"] != "popular" else "no", 3 / 4),
        ("pope", "precision", lambda doc: "yes" if doc["category"] != "popular" else "no", 3 / 8),
        ("pope", "yes_ratio", lambda doc: "Yes" if doc["category"] == "popular" else "no", 4 / 12),
        ("pope", "f1", lambda doc: "no", 0),
        ("gqa", "exact_match", lambda doc: f"{doc['answer'].title()}.", 1),
        ("gqa", "exact_match", lambda doc: "left", 0.5),
        ("scienceqa_img", "acc", lambda doc: "B", 0.5),
        ("scienceqa_img", "acc", lambda doc: "C. snow", 0.5),
        ("scienceqa_img", "acc", lambda doc: "Cold", 0),
        ("mmbench", "acc", lambda doc: f"{doc['answer']}. {doc[doc['answer']]}", 1),
        ("mmbench", "acc", lambda doc: "Animals", 0),
        ("mmbench", "circular_acc", lambda doc: doc["answer"] if doc["index"] % 1_000_000 else "A", 0.75),
        ("seedbench", "acc", lambda doc: "B. two", 0.5),
        ("mme", "acc", lambda doc: "Yes, it is.", 0.5),
        ("mme", "color", lambda doc: doc["answer"], 200),
        ("mme", "color", lambda doc: doc["answer"] if doc["question_id"] == "p0.png" else "yes", 100 * 5 / 8 + 25),
        ("mme", "perception", lambda doc: "It is not there, no.", 0),
        ("mme", "cognition", lambda doc: "n", 50),
        ("textvqa", "vqa_accuracy", lambda doc: "nokia", 1),
        ("textvqa", "vqa_accuracy", lambda doc: "LG", (2 * 1 / 3 + 8 * 2 / 3) / 10),
        ("vqav2", "vqa_accuracy", lambda doc: "Two.", (3 * 2 / 3 + 7 * 1) / 10),
        ("vqav2", "vqa_accuracy", lambda doc: "three", 1),
    ],
)
def test_answers_are_scored_as_published(world, name, metric, said, expected):
    assert scores(world, name, lambda task: map(said, task.eval_docs), metric) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text, normal",
    [
        ("The  cat, and a dog!", "cat and dog"),
        ("1,000", "1000"),
        ("Mr. 3.5", "mr 3.5"),
        ("red/blue", "red blue"),
        ("dont", "don't"),
        ("none\n", "0"),
        ('it\'s a "Nokia" phone', "it's nokia phone"),
    ],
)
def test_answers_of_people_are_compared_without_spelling(world, text, normal):
    loaded(world, "vqav2")
    module = loaded(world, "vqav2").config.process_results.__globals__
    assert module["normalised"](text) == normal


def test_a_picture_with_one_question_counts_for_accuracy_alone(world):
    score = loaded(world, "mme").aggregation()["color"]
    both = [("color", "a.png", 1.0), ("color", "a.png", 1.0)]
    assert score([*both, ("color", "b.png", 1.0)]) == score(both) == 200
    assert score([*both, ("color", "b.png", 0.0)]) == pytest.approx(100 * 2 / 3 + 100)


def test_what_belongs_together_stays_together(world):
    for name, key in (("mme", lambda doc: doc["question_id"]), ("mmbench", lambda doc: doc["index"] % 1_000_000)):
        keys = [key(doc) for doc in loaded(world, name).eval_docs]
        borders = sum(one != other for one, other in zip(keys, keys[1:], strict=False))
        assert borders == len({*keys}) - 1
    assert [doc["category"] for doc in loaded(world, "pope").eval_docs] != [row["category"] for row in HUB["pope"][2]]
    assert {doc["data_type"] for doc in loaded(world, "seedbench").eval_docs} == {"image"}


def test_the_picture_of_a_question_of_gqa_is_its_own(world):
    """The pictures lie in another order than the questions name them."""
    task = loaded(world, "gqa")
    for doc in task.eval_docs:
        (shown,) = task.doc_to_image(doc)
        assert np.array_equal(shown, picture(["n3", "n1", "n2"].index(doc["imageId"])).convert("RGB"))


@pytest.mark.parametrize("metric", ["perception", "yes_ratio"])
def test_a_metric_that_is_no_accuracy_is_not_searched_by_default(world, metric):
    name = {"perception": "mme", "yes_ratio": "pope"}[metric]
    assert pick_metric(loaded(world, name), None)[0] == "acc"
