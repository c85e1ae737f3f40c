"""Scores of image tokens, written once more from their definitions: one row, one token at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from skipsearch.policies.scores.token_selection import TokenSelection

RECORDED = ("attention", "change", "key_norm")
STEPS = 2**16  # distances are multiples of one over this


def chosen(
    x: Tensor, candidates: list[int], text: list[int], wanted: int, selection: TokenSelection, record: dict[int, float]
) -> set[int]:
    """The candidates that a layer keeps."""
    kind, count = selection.score, len(candidates)
    if not wanted:
        return set()
    if kind == "uniform" or (kind in RECORDED and not record):
        return {i for n, i in enumerate(candidates) if (n + 1) * wanted // count > n * wanted // count}
    if kind == "diverse":
        return set(spread(x, candidates, wanted, [0.0] * count, 1.0))
    if kind == "relevance" and selection.diversity:
        relevant = relevance(x, candidates, text)
        low, high = min(relevant), max(relevant)
        scaled = [(one - low) / max(high - low, 1 / STEPS) for one in relevant]
        bonus = [(1 - selection.diversity) * one for one in scaled]
        return set(spread(x, candidates, wanted, bonus, selection.diversity))
    if kind == "relevance":
        value = dict(zip(candidates, relevance(x, candidates, text), strict=True))
    elif kind == "random":
        value = {i: hashed(n) for n, i in enumerate(candidates, 1)}
    else:
        value = {i: float(x[i].norm()) if kind == "norm" else record.get(i, 0.0) for i in candidates}
    return set(sorted(candidates, key=lambda i: -value[i])[:wanted])


def cosine(one: Tensor, other: Tensor) -> float:
    """The cosine between two states; 0 for a state of zeros."""
    lengths = float(one.double().norm() * other.double().norm())
    return float(one.double() @ other.double()) / lengths if lengths else 0.0


def distance(one: Tensor, other: Tensor) -> float:
    return round((1 - cosine(one, other)) * STEPS) / STEPS


def relevance(x: Tensor, candidates: list[int], text: list[int]) -> list[float]:
    """The cosine to the mean direction of the text."""
    mean = sum((torch.nn.functional.normalize(x[i].double(), dim=0) for i in text), torch.zeros(x.shape[1]).double())
    return [round(cosine(x[i], mean) * STEPS) / STEPS for i in candidates]


def spread(x: Tensor, candidates: list[int], wanted: int, bonus: list[float], weight: float) -> list[int]:
    """Greedy max-min: first the one whose nearest other is farthest, then the one whose nearest chosen is."""
    extra = dict(zip(candidates, bonus, strict=True))
    found: list[int] = []
    while len(found) < wanted:
        rest = [i for i in candidates if i not in found]
        value = {
            i: extra[i] + weight * min((distance(x[i], x[j]) for j in (found or candidates) if j != i), default=9.0)
            for i in rest
        }
        found.append(max(rest, key=lambda i: value[i]))
    return found


def sixteen_bits(value: float) -> float:
    """A number rounded to 16 significant bits."""
    fraction, exponent = math.frexp(value)
    return round(fraction * STEPS) / STEPS * 2.0**exponent


def hashed(number: int) -> float:
    """The pseudo-random score of the n-th candidate, counted from 1."""
    bits = (number + 0x9E3779B9) % 2**32
    bits = (bits ^ bits >> 16) * 0x7FEB352D % 2**32
    bits = (bits ^ bits >> 15) * 0x846CA68B % 2**32
    return ((bits ^ bits >> 16) >> 8) / 2**24
