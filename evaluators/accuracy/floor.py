"""Chance level: the accuracy and the loss of answers that ignore the question."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ..gold import Task, gold_choices, gold_texts, has_answers, has_choices


def guessing_accuracy(tasks: Mapping[str, Task]) -> float:
    """The accuracy of guessing, mean over tasks: a random choice or always the most common answer, if that is better.

    A task without known right answers counts as 0.

    Args:
        tasks: The tasks by name, with their requests.
    """
    return statistics.fmean(task_chance(task) for task in tasks.values()) if tasks else 0.0


def task_chance(task: Task) -> float:
    """The accuracy of guessing on the documents of one task's requests."""
    answers = right_answers(task)
    if not answers:
        return 0.0
    # Of several right answers each counts, because any of them may be the most common.
    most_common = max(Counter(text for _, right in answers for text in {*right}).values())
    chance = statistics.fmean(len(right) / count if count else 0.0 for count, right in answers)
    return max(chance, most_common / len(answers))


def guessing_loss(tasks: Mapping[str, Task], tokens: Callable[[str], int]) -> float:
    """The loss of guessing in nats, mean over tasks; 0 where a task has no known right answers.

    With choices it is the logarithm of their number. With free answers it is the entropy of the right answers, divided
    by their mean number of tokens.

    Args:
        tasks: The tasks by name, with their requests.
        tokens: Counts the tokens of a text.
    """
    losses = []
    for task in tasks.values():
        answers = right_answers(task)
        if not answers:
            return 0.0
        if has_choices(task):
            losses.append(statistics.fmean(math.log(count / len(right)) for count, right in answers))
            continue
        counts = Counter(right[0] for _, right in answers)
        entropy = -sum(count / len(answers) * math.log(count / len(answers)) for count in counts.values())
        losses.append(entropy / max(statistics.fmean(tokens(right[0]) for _, right in answers), 1.0))
    return statistics.fmean(losses) if losses else 0.0


def right_answers(task: Task) -> list[tuple[int, list[str]]]:
    """The number of choices of each document (0 for a free answer), and its right answers as texts.

    Empty where the task has no known right answers, or scores a text as a whole.
    """
    if task.OUTPUT_TYPE not in ("multiple_choice", "generate_until") or not has_answers(task):
        return []
    documents: dict[Any, Any] = {request.doc_id: request.doc for request in task.instances}
    if not has_choices(task):
        return [(0, [text.strip() for text in gold_texts(task, document)]) for document in documents.values()]
    listed = [(task.doc_to_choice(document), gold_choices(task, document)) for document in documents.values()]
    return [(len(choices), [str(choices[place]) for place in right]) for choices, right in listed]
