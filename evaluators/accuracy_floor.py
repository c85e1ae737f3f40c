"""The accuracy of guessing: what a task gives to answers that do not look at the question."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.task import Task


def floor_of(tasks: Mapping[str, Task]) -> float:
    """The better of guessing among the choices and of always giving the commonest answer; the mean over tasks.

    A task whose right answers are not known, or are no words, counts as 0.

    Args:
        tasks: By name, with their requests.
    """
    return statistics.fmean(guessing(task) for task in tasks.values()) if tasks else 0.0


def guessing(task: Task) -> float:
    """The same of one task, on the documents that its requests are about."""
    docs = list({request.doc_id: request.doc for request in task.instances}.values())
    chances, answers = [], Counter[str]()
    for doc in docs:
        choices, right = right_answers(task, doc)
        if not right:
            return 0.0
        chances.append(len(right) / len(choices) if choices else 0.0)
        # Of several right answers each counts: any of them may be the commonest.
        answers.update({*right})
    return max(statistics.fmean(chances), max(answers.values()) / len(docs)) if docs else 0.0


def right_answers(task: Task, doc: Any) -> tuple[Sequence[str], list[str]]:
    """The choices of a document, none where it has to be answered freely, and its right answers in words."""
    try:
        target = task.doc_to_target(doc)
        choices = task.doc_to_choice(doc) if task.OUTPUT_TYPE == "multiple_choice" else []
    except (AttributeError, TypeError, ValueError, KeyError, IndexError):
        return [], []
    right = target if isinstance(target, list) else [target]
    places = [one for one in right if isinstance(one, int) and not isinstance(one, bool)]
    if choices:
        words = [str(choices[place]) for place in places if 0 <= place < len(choices)]
        return choices, words or [str(one) for one in right if one in choices]
    return [], [str(one).strip() for one in right if isinstance(one, str | int | float)]
