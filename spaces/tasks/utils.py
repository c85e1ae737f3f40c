"""What the image tasks of this folder need beside their YAML: an order of the documents, pictures and scores.

lm-eval imports this file by its path, so it imports nothing of ours.
"""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from datasets import Dataset, load_dataset

Doc = Mapping[str, Any]
YesNo = tuple[str, str]  # what the model answered, and the right answer
PictureScore = tuple[str, str, float]  # a category, a picture, and the score of one question about it

CIRCLE = 1_000_000  # MMBench numbers the rotations of question n as n, n + 1,000,000, n + 2,000,000 ...
PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def shuffled(docs: Dataset, groups: Iterable[Hashable]) -> Dataset:
    """The documents in an order that is the same everywhere, the documents of a group side by side.

    Args:
        docs: The documents.
        groups: The group of each document.
    """
    digests = [hashlib.sha256(str(group).encode()).hexdigest() for group in groups]
    return docs.select(sorted(range(len(docs)), key=lambda place: (digests[place], place)))


def shuffle(docs: Dataset) -> Dataset:
    """Shuffle documents, because data is often sorted by kind, and a search takes the first documents."""
    return shuffled(docs, range(len(docs)))


def shuffle_pictures(docs: Dataset) -> Dataset:
    """Shuffle the pictures of MME; the two questions about a picture stay together, as accuracy+ needs both."""
    return shuffled(docs, docs["question_id"])


def shuffle_circles(docs: Dataset) -> Dataset:
    """Shuffle the questions of MMBench; the rotations of a question's options stay together."""
    return shuffled(docs, (int(index) % CIRCLE for index in docs["index"]))


def shuffle_stills(docs: Dataset) -> Dataset:
    """Shuffle the questions of SEED-Bench about single pictures; those about videos are left out."""
    return shuffle(docs.select([place for place, kind in enumerate(docs["data_type"]) if kind == "image"]))


def load_gqa(path: str, **_: Any) -> dict[str, Dataset]:
    """Load GQA, whose pictures lie in another configuration than the questions about them.

    Args:
        path: The data set on the hub, or a folder.
    """
    questions = load_dataset(path, "testdev_balanced_instructions", split="testdev")
    pictures = load_dataset(path, "testdev_balanced_images", split="testdev")
    places = {picture: place for place, picture in enumerate(pictures["id"])}

    def with_pictures(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {**batch, "image": [pictures[places[picture]]["image"] for picture in batch["imageId"]]}

    return {"testdev": questions.with_transform(with_pictures)}


def doc_to_image(doc: Doc) -> list[Any]:
    """The picture of a question in colour; SEED-Bench keeps a list of one."""
    pictures = doc["image"] if isinstance(doc["image"], list) else [doc["image"]]
    return [picture.convert("RGB") for picture in pictures]


def pope_results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Scores of one answer of POPE: right or wrong, and the pair that the other metrics are computed from."""
    pair = results[0].strip().lower(), doc["answer"].strip().lower()
    return {"acc": float(pair[0] == pair[1]), **dict.fromkeys(("f1", "precision", "recall", "yes_ratio"), pair)}


def precision(pairs: Sequence[YesNo]) -> float:
    """Share of the yes answers that are right; 0 without any."""
    return share(right == "yes" for said, right in pairs if said == "yes")


def recall(pairs: Sequence[YesNo]) -> float:
    """Share of the questions with the right answer yes that are answered so; 0 without any."""
    return share(said == "yes" for said, right in pairs if right == "yes")


def f1(pairs: Sequence[YesNo]) -> float:
    """Harmonic mean of precision and recall; 0 where both are."""
    both = precision(pairs) + recall(pairs)
    return 2 * precision(pairs) * recall(pairs) / both if both else 0.0


def yes_ratio(pairs: Sequence[YesNo]) -> float:
    """Share of the questions that are answered with yes."""
    return share(said == "yes" for said, _ in pairs)


def share(values: Iterable[bool]) -> float:
    """The share of true values; 0 without any."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


def scienceqa_results(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """1 where the answer is the right letter, alone or before a full stop."""
    said = results[0].strip()
    letter = said[:1] if said[1:2] == "." else said
    return {"acc": float(letter == chr(ord("A") + doc["answer"]))}


def seed_results(doc: Doc, results: Sequence[str]) -> dict[str, float]:
    """1 where the answer begins with the right letter."""
    return {"acc": float(results[0].strip()[:1] == doc["answer"])}


def mmbench_results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """1 where the answer begins with the right letter and no word does; and the question of which it is a rotation."""
    said = results[0].strip()
    letter = said[:1] if not said[1:2].isalpha() else ""
    score = float(letter == doc["answer"])
    return {"acc": score, "circular_acc": (int(doc["index"]) % CIRCLE, score)}


def circular_accuracy(scores: Sequence[tuple[int, float]]) -> float:
    """Share of the questions that are answered correctly in every rotation of their options (MMBench's CircularEval).

    Args:
        scores: The question of each rotation, and 1 where it was answered correctly.
    """
    return fmean(min(group) for group in grouped(scores).values())


def mme_results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """Scores of one answer of MME: right or wrong, and for the scores of its category and its group of categories."""
    score = float(yes_or_no(results[0]) == doc["answer"].strip().lower())
    item = doc["category"], doc["question_id"], score
    group = "perception" if doc["category"] in PERCEPTION else "cognition"
    return {"acc": score, group: item, doc["category"]: item}


def yes_or_no(answer: str) -> str:
    """The yes or no of an answer, among its first four letters; `other` where there is neither."""
    text = answer.strip().lower().replace(".", "")
    words = {"y": "yes", "n": "no"}
    return words.get(text) or next((word for word in words.values() if word in text[:4]), "other")


def mme_score(items: Sequence[PictureScore]) -> float:
    """MME's score, the sum over categories of 100 times accuracy plus 100 times accuracy+.

    Accuracy+ is the share of the pictures of which both questions are answered correctly; a picture of which only one
    question was asked does not count.
    """
    total = 0.0
    for scores in grouped((category, (picture, score)) for category, picture, score in items).values():
        pictures = [pair for pair in grouped(scores).values() if len(pair) == 2]
        total += 100 * fmean(score for _, score in scores) + 100 * share(min(pair) == 1 for pair in pictures)
    return total


def grouped(items: Iterable[tuple[Any, Any]]) -> dict[Any, list[Any]]:
    """The second parts of pairs by their first part."""
    groups: dict[Any, list[Any]] = defaultdict(list)
    for key, value in items:
        groups[key].append(value)
    return groups
