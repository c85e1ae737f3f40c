"""Scenes of four real handwritten digits, and questions about them.

The digits are the UCI "Optical Recognition of Handwritten Digits" images that scikit-learn ships (1,797 images of
8x8 grey levels). They are dealt once into three pools that share no image: training, search and report.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

PLACES = ("top left", "top right", "bottom left", "bottom right")
CELL = 28
IMAGE_SIZE = 2 * CELL
HELD_OUT_PER_CLASS = {"report": 25, "search": 15}
POOL_SEED = 20


@dataclass(frozen=True)
class DigitPool:
    """Source images of one split: `images` is (n, 8, 8) in 0..1, `by_label[d]` the rows that show digit d."""

    images: torch.Tensor
    by_label: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Question:
    """One question about one scene, with its short answer."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Drill:
    """An exercise without a question: what is to be said after each word (None: nothing)."""

    kind: str
    words: tuple[str, ...]
    targets: tuple[str | None, ...]


def digit_pools() -> dict[str, DigitPool]:
    """Deal the digits into the disjoint pools `train`, `search` and `report`, every class in equal shares.

    The deal has a seed of its own, so that no training seed can move a test digit into the training pool.
    """
    digits = load_digits()
    rng = np.random.default_rng(POOL_SEED)
    rows: dict[str, list[np.ndarray]] = {"report": [], "search": [], "train": []}
    for label in range(10):
        order = rng.permutation(np.flatnonzero(digits.target == label))
        start = 0
        for name, count in HELD_OUT_PER_CLASS.items():
            rows[name].append(order[start : start + count])
            start += count
        rows["train"].append(order[start:])
    return {name: _pool(digits, np.concatenate(parts)) for name, parts in rows.items()}


def _pool(digits: Bunch, rows: np.ndarray) -> DigitPool:
    labels = digits.target[rows]
    by_label = tuple(np.flatnonzero(labels == label) for label in range(10))
    return DigitPool(torch.tensor(digits.images[rows] / 16.0, dtype=torch.float32), by_label)


def draw_labels(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw the four digits of each scene, (count, 4); half of the scenes repeat digits, so that counting matters."""
    labels = rng.integers(0, 10, (count, 4))
    for row in range(0, count, 2):
        palette = rng.choice(10, size=rng.integers(2, 4), replace=False)
        labels[row] = rng.choice(palette, size=4)
    return labels


def render(pool: DigitPool, labels: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> torch.Tensor:
    """Draw scenes as uint8 RGB images.

    Args:
        pool: Where the source digits are taken from.
        labels: The digits of each scene, (n, 4), in the order of `PLACES`.
        rng: Source of every random choice.
        strength: How far digits are turned, sheared and thickened; 1 for test scenes, more to augment training.

    Returns:
        Images of shape (n, IMAGE_SIZE, IMAGE_SIZE, 3).
    """
    count = len(labels)
    rows = np.array([rng.choice(pool.by_label[label]) for label in labels.ravel()])
    masks = _place_digits(pool.images[rows], rng, strength).view(count, 2, 2, CELL, CELL)
    masks = masks.permute(0, 1, 3, 2, 4).reshape(count, 1, IMAGE_SIZE, IMAGE_SIZE)
    paper = _uniform(rng, 0.0, 0.35, (count, 3, 1, 1))
    ink = _uniform(rng, 0.6, 1.0, (count, 3, 2, 2))
    ink = ink.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)
    noise = torch.tensor(rng.standard_normal((count, 1, IMAGE_SIZE, IMAGE_SIZE)), dtype=torch.float32)
    scenes = paper + masks * (ink - paper) + noise * _uniform(rng, 0.0, 0.05, (count, 1, 1, 1))
    return (scenes.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _place_digits(digits: torch.Tensor, rng: np.random.Generator, strength: float) -> torch.Tensor:
    """Put every 8x8 digit somewhere into a cell of its own: size, place, slant, angle and stroke vary."""
    count = len(digits)
    size = _uniform(rng, 16.0, 22.0, (count,))
    angle = _uniform(rng, -1.0, 1.0, (count,)) * math.radians(7.0 * strength)
    slant = _uniform(rng, -1.0, 1.0, (count,)) * 0.08 * strength
    room = (CELL - size) / CELL
    shift_x = _uniform(rng, -1.0, 1.0, (count,)) * room
    shift_y = _uniform(rng, -1.0, 1.0, (count,)) * room
    # grid_sample asks for the way back, from a place in the cell to a place in the 8x8 digit.
    zoom = CELL / size
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    row_x = torch.stack([cos, -sin + zoom * slant, -(cos * shift_x + (zoom * slant - sin) * shift_y)], 1)
    row_y = torch.stack([sin, cos, -(sin * shift_x + cos * shift_y)], 1)
    grid = F.affine_grid(torch.stack([row_x, row_y], 1), [count, 1, CELL, CELL], align_corners=False)
    placed = F.grid_sample(digits[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    stroke = (_uniform(rng, -0.3, 0.3, (count, 1, 1, 1)) * strength).exp()
    return placed.clamp(min=0.0) ** stroke


def _uniform(rng: np.random.Generator, low: float, high: float, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor(rng.uniform(low, high, shape), dtype=torch.float32)


def _which(labels: np.ndarray, rng: np.random.Generator, coin: bool) -> Question:
    place = rng.integers(4)
    return Question("which", f"Which digit is at the {PLACES[place]}?", str(labels[place]))


def _count(labels: np.ndarray, rng: np.random.Generator, coin: bool) -> Question:
    # Choose among the counts that the scene offers, not among the digits: nearly all of those would be absent.
    times = np.bincount(labels, minlength=10)
    wanted = rng.choice(np.unique(times))
    digit = rng.choice(np.flatnonzero(times == wanted))
    return Question("count", f"How many {digit} are there?", str(wanted))


def _exists(labels: np.ndarray, rng: np.random.Generator, coin: bool) -> Question:
    present = np.isin(np.arange(10), labels)
    digit = rng.choice(np.flatnonzero(present == coin))
    return Question("exists", f"Is there a {digit}?", "yes" if coin else "no")


def _sum(labels: np.ndarray, rng: np.random.Generator, coin: bool) -> Question:
    one, two = rng.choice(4, size=2, replace=False)
    return Question("sum", f"What is {PLACES[one]} plus {PLACES[two]}?", str(labels[one] + labels[two]))


def _compare(labels: np.ndarray, rng: np.random.Generator, coin: bool) -> Question:
    pairs = [(a, b) for a in range(4) for b in range(4) if a != b and (labels[a] > labels[b]) == coin]
    if not pairs:  # four equal digits: nothing is larger
        pairs, coin = [(0, 3)], False
    one, two = pairs[rng.integers(len(pairs))]
    return Question("compare", f"Is {PLACES[one]} larger than {PLACES[two]}?", "yes" if coin else "no")


KINDS: dict[str, Callable[[np.ndarray, np.random.Generator, bool], Question]] = {
    "which": _which,
    "count": _count,
    "exists": _exists,
    "sum": _sum,
    "compare": _compare,
}


def ask(kind: str, labels: np.ndarray, rng: np.random.Generator, coin: bool | None = None) -> Question:
    """Ask one question of a kind about a scene.

    Args:
        kind: A key of `KINDS`.
        labels: The four digits of the scene.
        rng: Source of every random choice.
        coin: For yes/no kinds, whether the answer shall be yes; tossed when not given.
    """
    return KINDS[kind](labels, rng, bool(rng.integers(2)) if coin is None else coin)


def caption(labels: np.ndarray) -> Question:
    """Ask for all four digits in reading order: what the decoder learns first."""
    return Question("caption", "Read all digits.", " ".join(str(label) for label in labels))


def tally(labels: np.ndarray, rng: np.random.Generator) -> Drill:
    """Say after each of ten digits how often the scene shows it; half of those named are there.

    `count` and `exists` give one bit for ten words, and take very long to be found from that alone.
    """
    absent = np.setdiff1d(np.arange(10), labels)
    digits = rng.permutation(np.concatenate([rng.choice(labels, 5), rng.choice(absent, 5)]))
    times = np.bincount(labels, minlength=10)
    words = ("many", *(str(digit) for digit in digits))
    return Drill("tally", words, (None, *(str(times[digit]) for digit in digits)))


def margin(labels: np.ndarray, rng: np.random.Generator) -> Question:
    """Ask by how much one digit is larger, 0 if it is not: `compare` with more to learn from every answer."""
    one, two = rng.choice(4, size=2, replace=False)
    if labels[one] < labels[two] and rng.random() < 0.5:
        one, two = two, one
    answer = str(max(0, labels[one] - labels[two]))
    return Question("margin", f"How {PLACES[one]} larger than {PLACES[two]}?", answer)


def ladder(labels: np.ndarray, rng: np.random.Generator, margins: bool = False) -> Drill:
    """Say after each of five places whether the digit at the place named before it is larger, or by how much."""
    places = [int(rng.integers(4))]
    while len(places) < 5:
        places.append(int(rng.choice([place for place in range(4) if place != places[-1]])))
    words: list[str] = ["many" if margins else "larger"]
    targets: list[str | None] = [None]
    for index, place in enumerate(places):
        words += PLACES[place].split()
        lead = labels[places[index - 1]] - labels[place]
        said = str(max(0, lead)) if margins else "yes" if lead > 0 else "no"
        targets += [None, said if index else None]
    return Drill("margins" if margins else "ladder", tuple(words), tuple(targets))
