"""The metrics of a task beside the one that is searched, such as F1 or a score by category, for the report."""

import math
from collections import defaultdict
from typing import Any

from lm_eval.api.task import Task

from .task_mistakes import DATA_ERRORS
from .tasks import document_results


def other_metrics(task: Task, metric: str, filter_name: str) -> dict[str, float]:
    """The other metrics of the answers in a task's requests, by name, as lm-eval aggregates them.

    A metric whose aggregation fails on these documents, or gives no finite number, is left out.

    Args:
        task: The task, with answers to all its requests.
        metric: The metric that is searched.
        filter_name: Its filter.
    """
    items: dict[str, list[Any]] = defaultdict(list)
    for results in document_results(task, filter_name).values():
        for name, value in results.items():
            items[name].append(value)
    aggregations = task.aggregation()
    found = {}
    for name in items.keys() & aggregations.keys() - {metric}:
        try:
            found[name] = float(aggregations[name](items[name]))
        except DATA_ERRORS:
            continue
    return {name: found[name] for name in aggregations if math.isfinite(found.get(name, math.nan))}
