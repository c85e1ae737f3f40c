"""Spaces over tiny random models, for tests that search, and a pool without Ray."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import ray

import tiny
from skipsearch.evaluators.accuracy.accuracy import AccuracyEvaluator, AccuracyOptions
from skipsearch.evaluators.subject import ModelSpec, load_subject
from skipsearch.policies.apply import apply_policy
from skipsearch.policies.policy import Policy
from skipsearch.search.space.load import load_space
from skipsearch.search.space.space import LoadedSpace
from skipsearch.search.workers.cluster import start_local
from skipsearch.testing.pool import LocalPool

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


EXAMPLES, LAYERS = 96, 4

LIKELY = """
schema: skipsearch/space/v1
model: {id: ./llama, device: cpu}
layers:
  - {range: all, choices: [keep, skip_ffn, skip_attention, skip_layer, parallel]}
evaluate:
  accuracy: {tasks: [./likely.yaml], search: {limit: 96}, report: {limit: 8}}
  flops:
objectives: {accuracy: maximize, prefill_flops: minimize}
search: {trials: 30, seed: 3, sampler: random}
workers: {count: 1}
"""


def likely_space(folder: Path) -> Path:
    """A space whose right answers are those of the dense model, so that policies differ."""
    model = tiny.tiny_llama(folder)
    tasks = tiny.text_tasks(folder, EXAMPLES + 8)
    subject = load_subject(ModelSpec(id=str(model), device="cpu"))
    options = AccuracyOptions(tasks=[str(tasks["text_mc"])], search={"limit": EXAMPLES + 7})
    measured = AccuracyEvaluator(options, subject)
    with apply_policy(subject.model, Policy()) as handle:
        measured.measure(handle, "search")
        measured.measure(handle, "report")
    rows = [json.loads(line) for line in (folder / "text.jsonl").read_text().splitlines()]
    for split in ("search", "report"):
        for request in measured._tasks(split)["text_mc"].instances:
            rows[request.doc_id].setdefault("found", []).append(request.resps[0][0])
    for row in rows:
        row["label"] = int(np.argmax(row.pop("found")))
    (folder / "likely.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tiny.write_task(folder, "likely", folder / "likely.jsonl", **tiny.CHOICES)
    (folder / "tiny.yaml").write_text(LIKELY)
    return folder / "tiny.yaml"


class AlonePool(LocalPool):
    """Notes whether latency was ever measured beside another job."""

    alone = True

    def submit(self, job):
        super().submit(job)
        crowded = len(self.running) > 1 and any("latency" in one.names for one in self.running)
        self.alone = self.alone and not crowded
