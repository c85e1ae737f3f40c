"""What guessing comes to: the accuracy and the loss of answers that do not look at the question."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ..gold import Task, gold_choices, gold_texts, has_answers, has_choices


def guessing_accuracy(tasks: Mapping[str, Task]) -> float:
    """The better of guessing among the choices and of always giving the commonest answer; the mean over tasks.

    A task whose right answers are not known counts as 0.

    Args:
        tasks: By name, with their requests.
    """
    return statistics.fmean(by_guessing(task) for task in tasks.values()) if tasks else 0.0


def by_guessing(task: Task) -> float:
    """The same of one task, on the documents that its requests are about."""
    answers = right_answers(task)
    if not answers:
        return 0.0
    # Of several right answers each counts: any of them may be the commonest.
    commonest = max(Counter(text for _, right in answers for text in {*right}).values())
    chance = statistics.fmean(len(right) / count if count else 0.0 for count, right in answers)
    return max(chance, commonest / len(answers))


def guessing_loss(tasks: Mapping[str, Task], tokens: Callable[[str], int]) -> float:
    """The loss of guessing, in nats, the mean over tasks: 0 where the right answers of one are not known.

    Among choices it is the logarithm of their number; of answers in words it is their entropy, a token of theirs.

    Args:
        tasks: By name, with their requests.
        tokens: How many tokens a text has.
    """
    found = []
    for task in tasks.values():
        answers = right_answers(task)
        if not answers:
            return 0.0
        if has_choices(task):
            found.append(statistics.fmean(math.log(count / len(right)) for count, right in answers))
            continue
        counts = Counter(right[0] for _, right in answers)
        entropy = -sum(count / len(answers) * math.log(count / len(answers)) for count in counts.values())
        found.append(entropy / max(statistics.fmean(tokens(right[0]) for _, right in answers), 1.0))
    return statistics.fmean(found) if found else 0.0


def right_answers(task: Task) -> list[tuple[int, list[str]]]:
    """Of each document how many choices there are, 0 where it is answered freely, and its right answers in words.

    Nothing where the task does not say which answers are right, or scores a text as a whole.
    """
    if task.OUTPUT_TYPE not in ("multiple_choice", "generate_until") or not has_answers(task):
        return []
    documents: dict[Any, Any] = {request.doc_id: request.doc for request in task.instances}
    if not has_choices(task):
        return [(0, [text.strip() for text in gold_texts(task, document)]) for document in documents.values()]
    listed = [(task.doc_to_choice(document), gold_choices(task, document)) for document in documents.values()]
    return [(len(choices), [str(choices[place]) for place in right]) for choices, right in listed]
