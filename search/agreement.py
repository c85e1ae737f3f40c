"""How well the divergence ranks policies by accuracy, in the trials that measured both."""

import numpy as np

from .record import Estimate, StudyRecord, TrialRecord

LEAST = 8  # trials below which a rank correlation says nothing
DRAWS = 1000
LEVELS = (2.5, 97.5)
PAIR = ("divergence", "accuracy")


def ranked(record: StudyRecord) -> list[TrialRecord]:
    """The trials that measured both on all examples, each policy once."""
    return [
        trial
        for trial in record.trials
        if trial.state == "complete"
        and trial.shared_from is None
        and all(name in trial.search and not trial.search[name].is_part for name in PAIR)
    ]


def agreement(record: StudyRecord) -> Estimate | None:
    """Kendall's tau-b of small divergence and high accuracy; None after too few trials."""
    figures = [[trial.search[name].value for name in PAIR] for trial in ranked(record)]
    if len(figures) < LEAST:
        return None
    divergences, accuracies = np.array(figures).T
    return kendall(-divergences, accuracies)


def agreement_line(record: StudyRecord) -> str:
    """The same in a sentence; empty where it is not known."""
    found = record.verdict.agreement
    if found is None or found.low is None or found.high is None:
        return ""
    ends = f"95 % interval {found.low:.2f} to {found.high:.2f}"
    return f"Divergence ranks accuracy: Kendall tau {found.value:.2f} ({ends}), {len(ranked(record))} trials."


def kendall(one: np.ndarray, other: np.ndarray, seed: int = 0) -> Estimate | None:
    """Kendall's tau-b of two figures, with a 95 % interval.

    Of all pairs that neither figure ties, the share that both order alike less the share that they do not; ties of one
    figure alone count against it (Kendall, The treatment of ties in ranking problems, 1945). The interval is a
    percentile bootstrap over trials; a trial that is drawn twice ties with itself in both.

    Args:
        one: The figure of each trial, shape (n,).
        other: The other figure, shape (n,).
        seed: Of the bootstrap.

    Returns:
        None where a figure is the same for all.
    """
    signs = [np.sign(figure[:, None] - figure[None, :]).astype(np.float32) for figure in (one, other)]
    count = len(one)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    weights = np.concatenate([np.ones((1, count)), draws]).astype(np.float32)

    def pairs(matrix: np.ndarray) -> np.ndarray:
        return np.einsum("di,di->d", weights @ matrix, weights, dtype=np.float64)

    ordered = np.sqrt(pairs(np.abs(signs[0])) * pairs(np.abs(signs[1])))
    if not ordered[0]:
        return None
    known = ordered > 0
    value, *again = pairs(signs[0] * signs[1])[known] / ordered[known]
    low, high = np.percentile(again, LEVELS)
    return Estimate(float(value), float(low), float(high))
