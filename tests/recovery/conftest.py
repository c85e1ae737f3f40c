"""Tiny models with their processors, for training."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import tiny
from skipsearch.evaluators.subject import ModelSpec, load_subject
from skipsearch.recovery.examples import Example


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"llama": tiny.tiny_llama(folder), "llava": tiny.tiny_llava(folder)}


@pytest.fixture
def subject_of(folders):
    """Loads a tiny model; each test has its own."""
    return lambda name, **spec: load_subject(ModelSpec(id=str(folders[name]), device="cpu", **spec))


@pytest.fixture(scope="session")
def examples():
    """The same for every test: of one picture each, and without one; answers are of one to three words."""

    def made(name, count=24):
        found, draw = [], np.random.default_rng(0)
        for number in range(count):
            picture = Image.fromarray(draw.integers(0, 256, (14, 12, 3), dtype=np.uint8))
            prompt, answer = tiny.words(draw, 3, 9), f" {tiny.words(draw, 1, 4)}"
            sees = name == "llava" and number % 3
            found.append(Example(f"w1 <image> {prompt}" if sees else prompt, answer, (picture,) if sees else ()))
        return found

    return made
