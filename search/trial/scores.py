"""Weights of the per-example scores of a metric that is the unweighted mean over tasks."""

from collections.abc import Mapping, Sequence

import numpy as np

from ...evaluators.base import Measurement
from .arrays import Floats


def task_sizes(entry: Measurement) -> list[int]:
    """Examples per task, in their order; a single task where none is named."""
    tasks: Mapping[str, Mapping[str, int]] = entry.detail.get("tasks", {})
    sizes = [int(task["n"]) for task in tasks.values()]
    return sizes if sizes and sum(sizes) == entry.n else [entry.n]


def example_weights(sizes: Sequence[int]) -> Floats:
    """(n,): the weight of each example for tasks of these sizes; 1 on average."""
    return np.concatenate([np.full(size, sum(sizes) / (len(sizes) * size)) for size in sizes])
