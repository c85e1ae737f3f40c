"""A space over a tiny random LLaVA, for tests that search."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

import tiny
from skipsearch.search.cluster import start_local
from skipsearch.search.reading import load_space
from skipsearch.search.space import LoadedSpace

SPACE = """
schema: skipsearch/space/v1
model: {id: ./llava}
layers:
  - {range: 0, choices: [keep, skip_ffn]}
  - range: 1-last
    choices: [keep, skip_ffn, skip_attention, skip_layer, parallel, {token_ratio: [0.5, 0.25]}]
evaluate:
  accuracy: {tasks: [./image_gen.yaml], search: {limit: 8}, report: {limit: 8}}
  flops:
objectives: {accuracy: maximize, prefill_flops: minimize}
search: {trials: 12, seed: 3}
workers: {count: 1}
"""


def tiny_space(folder: Path) -> Path:
    """Write a model, a task and a space; gives the space's path."""
    folder.mkdir(exist_ok=True)
    tiny.tiny_llava(folder)
    tiny.image_tasks(folder, 16)
    path = folder / "tiny.yaml"
    path.write_text(SPACE)
    return path


def loaded(path: Path, **overrides: object) -> LoadedSpace:
    """The space with some keys changed, `search__trials=5` standing for `search.trials: 5`."""
    return load_space(str(path), {key.replace("__", "."): str(value) for key, value in overrides.items()})


@contextmanager
def cluster() -> Iterator[None]:
    """A local Ray of its own, for the searches of one test file."""
    start_local(num_cpus=2)
    try:
        yield
    finally:
        ray.shutdown()
