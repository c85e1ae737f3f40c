"""Scores of single examples, and how much each counts."""

from ...evaluators.base import Measurement


def weights_of(whole: Measurement) -> list[float]:
    """What each example counts for in a figure that is the plain mean over tasks, 1 on average."""
    counts = [task["n"] for task in whole.detail.get("tasks", {"all": {"n": whole.n}}).values()]
    return [sum(counts) / (len(counts) * count) for count in counts for _ in range(count)]
