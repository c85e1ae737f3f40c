"""Rungs: growing random samples of a split's examples, and tasks that hold only the examples of one rung."""

import copy
import random
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from lm_eval.api.metrics import mean
from lm_eval.api.task import Task
from lm_eval.filters.custom import CustomFilter

from ..base import Measurement
from .splits import Tasks

# A smaller split has one rung: a part of it fills no batch and is hardly ever conclusive.
MIN_EXAMPLES = 64

# The entries of a measurement's detail that are lists with one value for each example.
PER_EXAMPLE_KEYS = ("per_example", "divergences")

Example = tuple[str, Hashable]  # a task's name and the document's id


@dataclass(frozen=True)
class Rung:
    """A sample of a split's examples, which includes the samples of all earlier rungs.

    Attributes:
        new: The tasks with only the examples that the rung before lacks.
        examples: By task, all examples of the rung in the order of documents.
        places: The numbers of all examples of the rung, counted over tasks and documents, in the order drawn.
        total: The number of examples of the split.
    """

    new: Tasks
    examples: Mapping[str, Sequence[Example]]
    places: list[int]
    total: int

    def with_places(self, measured: Measurement) -> Measurement:
        """A measurement on this rung; a partial one gets the `places` of its examples and their `total` number.

        Its lists with one value for each example are put into the order drawn.
        """
        if len(self.places) == self.total:
            return measured
        drawn = {
            name: self._in_order_drawn(measured.detail[name]) for name in PER_EXAMPLE_KEYS if name in measured.detail
        }
        return replace(measured, detail={**measured.detail, **drawn, "places": self.places, "total": self.total})

    def _in_order_drawn(self, scores: Sequence[float]) -> list[float]:
        """Scores in the order drawn; empty where some documents have no score, so that scores have no known place."""
        if len(scores) != len(self.places):
            return []
        by_place = dict(zip(sorted(self.places), scores, strict=True))
        return [by_place[place] for place in self.places]


def draw(tasks: Tasks, fractions: Sequence[float], min_new: int, seed: int) -> list[Rung]:
    """Draw the rungs of a split, the same for every policy.

    Each rung is a simple random sample of the examples of all tasks together.

    Args:
        tasks: The tasks with their requests.
        fractions: The fraction of the examples at each rung, ascending, the last 1.
        min_new: A rung that adds fewer examples is left out.
        seed: The seed of the order.

    Returns:
        The rungs; a single one for a small split.
    """
    numbers = numbered(tasks)
    order = random.Random(seed).sample(list(numbers), len(numbers))
    sizes = [round(fraction * len(order)) for fraction in fractions] if len(order) >= MIN_EXAMPLES else [len(order)]
    rungs, before = [], 0
    for size in sizes:
        if size - before < min_new and size < len(order):
            continue
        places = [numbers[example] for example in order[:size]]
        examples = defaultdict(list)
        for example in sorted(order[:size], key=numbers.__getitem__):
            examples[example[0]].append(example)
        is_whole = before == 0 and size == len(order)
        new = tasks if is_whole else with_examples(tasks, order[before:size])
        rungs.append(Rung(new, examples, places, len(order)))
        before = size
    return rungs


def numbered(tasks: Tasks) -> dict[Example, int]:
    """The number of each example, counted over tasks and documents."""
    examples = dict.fromkeys((name, request.doc_id) for name, task in tasks.items() for request in task.instances)
    return {example: number for number, example in enumerate(examples)}


def with_examples(tasks: Tasks, examples: Sequence[Example]) -> Tasks:
    """The tasks with only the requests of some examples; a task without any of them is left out."""
    wanted = {*examples}
    found: dict[str, Task] = {}
    for name, task in tasks.items():
        requests = [request for request in task.instances if (name, request.doc_id) in wanted]
        if requests:
            found[name] = copy.copy(task)
            found[name]._instances = requests
    return found


def scores_independently(task: Task, metric: str, filter_name: str) -> bool:
    """True where a task's result is a plain mean over documents that are answered and scored independently.

    Exceptions are corpus metrics; custom filters, which see all documents at once; and sampled answers, which depend on
    the random numbers drawn for earlier answers.

    Args:
        task: The task with its requests.
        metric: Its metric.
        filter_name: Its filter.
    """
    options_of_requests = [request.args[1] for request in task.instances if request.request_type == "generate_until"]
    sampled = any(options.get("do_sample", bool(options.get("temperature"))) for options in options_of_requests)
    filters = [
        getattr(part, "func", part) for pipe in task._filters if pipe.name == filter_name for part in pipe.filters
    ]
    independent = all(kind.__module__.startswith("lm_eval.filters.") and kind is not CustomFilter for kind in filters)
    return task.aggregation()[metric] is mean and independent and not sampled
