"""Examples from the training split of lm-eval tasks: prompts as in the tasks' own evaluation, with a right answer."""

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..policies.errors import TaskError, TrainingDataError
from .accuracy.task_mistakes import DATA_ERRORS, task_error
from .accuracy.tasks import load_tasks
from .gold import Task, delimiter, gold_choices, gold_texts
from .loaded_examples import LoadedExamples

MAX_LISTED = 5


class TaskExample(NamedTuple):
    """One document of a task.

    Attributes:
        prompt: The prompt without few-shot examples, with `<image>` for each image.
        answer: A right answer, with what the task puts between a prompt and its answer.
        images: The images.
    """

    prompt: str
    answer: str
    images: tuple[Any, ...]


def training_examples(names: Sequence[str], count: int, seed: int) -> list[TaskExample]:
    """Examples of the training splits of tasks, in an order that the seed draws.

    Args:
        names: lm-eval's names of tasks, groups or tags, or paths of YAML files.
        count: How many examples to take at most, of all tasks together.
        seed: The seed.

    Raises:
        EvaluatorError: a task is unknown or malformed.
        TaskError: a task has no training split of its own, or a document without a right answer.
    """
    tasks = load_tasks(names, 0, seed)
    for name, task in tasks.items():
        refuse_without_training(name, task)
    places = [(name, place) for name, task in tasks.items() for place in range(len(task.training_docs()))]
    random.Random(seed).shuffle(places)
    return [example for name, place in places[:count] for example in of_document(name, tasks[name], place)]


def refuse_without_training(name: str, task: Task) -> None:
    """Refuse a task that cannot be trained on.

    Raises:
        TaskError: it has no training split, or the one that it is evaluated on, or no answers.
    """
    own, tested = task.config.training_split, task.config.test_split or task.config.validation_split
    hint = "name a task whose YAML has `training_split`, or a file of prompts and answers"
    if not task.has_training_docs():
        raise TaskError(f"task {name} has no training split", hint=hint)
    if own == tested:
        raise TaskError(f"task {name} trains on what it is evaluated on", [f"both are its split {own!r}"], hint)
    if task.OUTPUT_TYPE not in ("multiple_choice", "generate_until"):
        raise TaskError(f"task {name} has no answers to train on", [f"found output_type {task.OUTPUT_TYPE}"], hint)


def of_document(name: str, task: Task, place: int) -> Iterator[TaskExample]:
    """The example of one document.

    Raises:
        TaskError: the document has no right answer, or lacks a field.
    """
    document = task.training_docs()[place]
    try:
        prompt = task.doc_to_text(document)
        answers = right_texts(task, document)
        images = images_of(task, document)
    except DATA_ERRORS as cause:
        raise task_error(name, f"{place} of the training split", "cannot be made a prompt", cause) from cause
    if not answers or not isinstance(prompt, str):
        found = f"training document {place}: found {task.doc_to_target(document)!r} as its target"
        raise TaskError(
            f"task {name} has documents without a right answer", [found], "leave them out in `process_docs`"
        )
    yield TaskExample(prompt, delimiter(task, False) + answers[0], images)


def right_texts(task: Task, document: Any) -> list[str]:
    """The right answers to a document."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return gold_texts(task, document)
    choices = task.doc_to_choice(document)
    return [choices[place] for place in gold_choices(task, document)]


def refuse_measured(
    examples: Iterable[tuple[str, Sequence[Any]]], loaded: Iterable[LoadedExamples], placeholder: str | None
) -> None:
    """Refuse training examples that are measured too, in whatever split: the same prompt with the same images.

    Args:
        examples: The prompt and the images, as pictures or paths, of each training example.
        loaded: The examples that are measured.
        placeholder: What stands for an image in a training prompt; None for a model without images.

    Raises:
        TrainingDataError: naming some of them.
    """
    trained: defaultdict[str, list[Sequence[Any]]] = defaultdict(list)
    for prompt, images in examples:
        trained[bare(prompt, placeholder)].append(images)
    seen: dict[str, set[str]] = {}  # by prompt, the digests of its images; made for prompts that are measured alone
    found = []
    for split, name, place, task in measured_documents(loaded):
        document = task.eval_docs[place]
        text = bare(str(task.doc_to_text(document)), placeholder)
        if text not in trained:
            continue
        if text not in seen:
            seen[text] = {digest_of(images) for images in trained[text]}
        if digest_of(images_of(task, document)) in seen[text]:
            found.append(f"{name}, document {place} of the {split} split: {text[:60]!r}")
    if found:
        more = [f"and {len(found) - MAX_LISTED} more"] if len(found) > MAX_LISTED else []
        count = "1 example" if len(found) == 1 else f"{len(found)} examples"
        what = f"the training data has {count} that a split measures"
        hint = "leave these out of the training data: what is trained on proves nothing"
        raise TrainingDataError(what, [*found[:MAX_LISTED], *more], hint)


def measured_documents(loaded: Iterable[LoadedExamples]) -> Iterator[tuple[str, str, int, Task]]:
    """Each document that is measured: its split, the name of its task, its place in the data, and the task."""
    for one in loaded:
        for split, ranges in one.ranges.items():
            for name, places in ranges.items():
                yield from ((split, name, place, one.loaded[split][name]) for place in places)


def bare(prompt: str, placeholder: str | None) -> str:
    """A prompt without placeholders of images, each run of white space as one space."""
    for one in filter(None, (placeholder, "<image>")):
        prompt = prompt.replace(one, " ")
    return " ".join(prompt.split())


def images_of(task: Task, document: Mapping[str, Any]) -> tuple[Any, ...]:
    """The images of a document."""
    return tuple(task.doc_to_image(document) or ()) if task.get_config("doc_to_image") is not None else ()


def digest_of(images: Sequence[Any]) -> str:
    """A digest of the pixels of images, which may be paths."""
    digest = hashlib.sha256()
    for image in images:
        picture = Image.open(image) if isinstance(image, str | Path) else image
        digest.update(repr(picture.size).encode() + picture.convert("RGB").tobytes())
    return digest.hexdigest()
