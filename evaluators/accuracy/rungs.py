"""Few examples first: the order in which the examples of a split are drawn, and tasks that hold only some of them."""

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

# Of fewer examples a part fills no batch, and hardly ever tells enough.
FEWEST = 64

# What has an entry an example in the detail of a measurement.
SCORES = ("per_example", "divergences")

Example = tuple[str, Hashable]  # a task's name and the document's id


@dataclass(frozen=True)
class Rung:
    """So many examples of a split, in the order in which they were drawn.

    Attributes:
        new: The tasks with only the examples that the rung before had not.
        known: By task the examples of this rung and of those before, in the order of documents.
        places: The numbers of these examples, counted over tasks and documents, in the order drawn.
        total: How many examples the split has.
    """

    new: Tasks
    known: Mapping[str, Sequence[Example]]
    places: list[int]
    total: int

    def told(self, measured: Measurement) -> Measurement:
        """What was measured on these examples; of a part, what has an entry an example stands in the order drawn.

        `detail` then has the `places` of the examples too, and how many there are in all (`total`).
        """
        if len(self.places) == self.total:
            return measured
        drawn = {name: self._drawn(measured.detail[name]) for name in SCORES if name in measured.detail}
        return replace(measured, detail={**measured.detail, **drawn, "places": self.places, "total": self.total})

    def _drawn(self, scores: Sequence[float]) -> list[float]:
        """Scores in the order drawn; none where a task gave none to some documents: then whose are they?"""
        if len(scores) != len(self.places):
            return []
        known = dict(zip(sorted(self.places), scores, strict=True))
        return [known[place] for place in self.places]


def draw(tasks: Tasks, shares: Sequence[float], least: int, seed: int) -> list[Rung]:
    """Draw the examples of a split in an order that is the same for every policy.

    Every beginning of it is a simple random sample of the examples of all tasks together.

    Args:
        tasks: The tasks with their requests.
        shares: What share of the examples each rung has, ascending, the last 1.
        least: How many examples a rung adds at least, or it is left out.
        seed: Of the order.

    Returns:
        The rungs; a single one of a small split.
    """
    numbers = numbered(tasks)
    order = random.Random(seed).sample(list(numbers), len(numbers))
    sizes = [round(share * len(order)) for share in shares] if len(order) >= FEWEST else [len(order)]
    rungs, before = [], 0
    for size in sizes:
        if size - before < least and size < len(order):
            continue
        places = [numbers[example] for example in order[:size]]
        known = defaultdict(list)
        for example in sorted(order[:size], key=numbers.__getitem__):
            known[example[0]].append(example)
        whole = before == 0 and size == len(order)
        rungs.append(Rung(tasks if whole else cut(tasks, order[before:size]), known, places, len(order)))
        before = size
    return rungs


def numbered(tasks: Tasks) -> dict[Example, int]:
    """The number of each example, counted over tasks and documents."""
    examples = dict.fromkeys((name, request.doc_id) for name, task in tasks.items() for request in task.instances)
    return {example: number for number, example in enumerate(examples)}


def cut(tasks: Tasks, examples: Sequence[Example]) -> Tasks:
    """The tasks with only the requests of some examples; a task that has none of them is left out."""
    wanted = {*examples}
    found: dict[str, Task] = {}
    for name, task in tasks.items():
        requests = [request for request in task.instances if (name, request.doc_id) in wanted]
        if requests:
            found[name] = copy.copy(task)
            found[name]._instances = requests
    return found


def by_example(task: Task, metric: str, chosen: str) -> bool:
    """True where a task's figure is a plain mean over documents, each answered and scored whatever the others are.

    Not so are corpus metrics, filters of the task's own, which see all documents at once, and sampled answers, which
    depend on what was drawn for those before.

    Args:
        task: The task with its requests.
        metric: Its metric.
        chosen: Its filter.
    """
    asked = [request.args[1] for request in task.instances if request.request_type == "generate_until"]
    sampled = any(options.get("do_sample", bool(options.get("temperature"))) for options in asked)
    filters = [getattr(part, "func", part) for pipe in task._filters if pipe.name == chosen for part in pipe.filters]
    alone = all(kind.__module__.startswith("lm_eval.filters.") and kind is not CustomFilter for kind in filters)
    return task.aggregation()[metric] is mean and alone and not sampled
