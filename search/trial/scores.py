"""Weights of the per-example scores."""

from ...evaluators.base import Measurement


def example_weights(whole: Measurement) -> list[float]:
    """Weight of each example in a metric that is the unweighted mean over tasks; 1 on average.

    Args:
        whole: The metric measured on all examples.
    """
    counts = [task["n"] for task in whole.detail.get("tasks", {"all": {"n": whole.n}}).values()]
    return [sum(counts) / (len(counts) * count) for count in counts for _ in range(count)]
