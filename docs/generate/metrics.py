"""The table of metrics, from what each evaluator declares."""

from tables import table

from skipsearch.evaluators.base import BUILT_IN, Evaluator, evaluator_class


def metrics() -> str:
    """A section for each evaluator, in the order in which they run."""
    evaluators = sorted((evaluator_class(name) for name in BUILT_IN), key=lambda evaluator: evaluator.cost)
    return "\n".join(_section(evaluator) for evaluator in evaluators)


def _section(evaluator: type[Evaluator]) -> str:
    text = (evaluator.__doc__ or "").split("\n\n")[0]
    better = {"maximize": "higher", "minimize": "lower"}
    numbered = {f"{name}N": metric for name, metric in getattr(evaluator, "numbered", {}).items()}
    rows = [
        (f"`{name}`", f"{one.text}<br><small>{one.unit}; {better[one.direction]} is better</small>")
        for name, one in {**evaluator.metrics, **numbered}.items()
    ]
    return f"## `{evaluator.name}`\n\n{' '.join(text.split())}\n\n{table(('metric', 'what is counted'), rows)}"
