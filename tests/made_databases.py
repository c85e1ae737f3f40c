"""Studies in their databases without a model: real searches over made-up measurements, for reports and comparisons."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

from skipsearch.evaluators.base import Measurement
from skipsearch.policies.policy import Policy
from skipsearch.search.analysis.load_study import read_record
from skipsearch.search.driver.proposals import Proposals
from skipsearch.search.report.folder import POLICIES, write_policies
from skipsearch.search.space.load import load_space
from skipsearch.search.study.study import SearchStudy
from skipsearch.search.trial.outcome import Outcome

LAYERS = 6
TASKS = ("arc_easy", "piqa")
SPACE = """
schema: skipsearch/space/v1
model: {id: some/model}
layers: [{range: 1-last, choices: [keep, skip_ffn, skip_attention, skip_layer]}]
evaluate:
  accuracy: {tasks: [arc_easy, piqa], search: {limit: 40}, report: {limit: 60}}
  flops:
  latency:
objectives: {accuracy: maximize, prefill_flops: minimize, ttft_ms: minimize}
search: {trials: 14, seed: 3, sampler: random, racing: none, start: none, guide: none}
"""
ENVIRONMENT = {
    "system": "Linux x86_64", "processor": "Tiny CPU", "cores": 2, "packages": {"torch": "2.13.0"},
    "workers": [{"device": "cpu", "threads": 1, "parameters": 1000, "dtype": "float32"}],
}  # fmt: skip


def cost(policy: Policy) -> float:
    """The share of the work that is left."""
    choices = policy.choices(LAYERS)
    return sum(0.4 * (one.attention == "run") + 0.6 * (one.ffn == "run") for one in choices) / LAYERS


def accuracy(policy: Policy, per_task: int, scale: float = 1.0) -> Measurement:
    """Examples of two tasks, each right as long as enough of the work is left; fewer of a smaller model."""
    draw = random.Random(policy.fingerprint)
    scores = [float((place * 7 % per_task) / per_task < 0.9 * scale**0.2 * cost(policy) + draw.uniform(-0.1, 0.1))
              for place in range(per_task)]  # fmt: skip
    both = [*scores, *reversed(scores)]
    value = sum(scores) / per_task
    tasks = {task: {"metric": "acc,none", "value": value, "stderr": 0.05, "n": per_task} for task in TASKS}
    return Measurement(value, len(both), stderr=0.04, detail={"tasks": tasks, "per_example": both, "floor": 0.25})


def outcome(policy: Policy, scale: float = 1.0) -> Outcome:
    """What the search measures of a policy of a model of some scale; those that skip the last layer fail."""
    if policy.choices(LAYERS)[-1].skips_layer:
        return Outcome(failure="out of <memory>", traceback="Traceback\nMemoryError: out of <memory>")
    share = cost(policy)
    measured = {
        "accuracy": accuracy(policy, 40, scale),
        "prefill_flops": Measurement(2e9 * scale * share, detail={"prompt": "a prompt of 61 tokens"}),
        "ttft_ms": Measurement(100 * scale * share, n=5, dense=100.0 * scale, iqr=1.0),
    }
    return Outcome(measured, {"total": 0.1, "forward": 0.09})


def begin(folder: Path, overrides: dict | None = None, name: str | None = None) -> SearchStudy:
    """A study that has not measured anything, in a folder as a search makes it."""
    folder.mkdir(parents=True)
    (folder / "space.yaml").write_text(SPACE)
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    space = load_space(str(folder / "space.yaml"), overrides or {}).space
    return SearchStudy(folder / "study.db", name or folder.name, space, LAYERS)


def spend(study: SearchStudy, trials: int | None = None, scale: float = 1.0) -> None:
    """Measure some trials, or all of the budget."""
    proposals, count = Proposals(study), 0
    while (trials is None or count < trials) and (proposal := proposals.next()) is not None:
        proposals.finish(proposal, outcome(proposal.policy, scale))
        count += 1


def made_study(
    folder: Path,
    overrides: dict | None = None,
    environment: dict | None = None,
    name: str | None = None,
    scale: float = 1.0,
) -> Path:
    """A finished study whose front is confirmed and has its files."""
    study = begin(folder, overrides, name)
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT | (environment or {})))
    spend(study, scale=scale)
    record = read_record(folder)
    for number in record.front:
        policy = record.trial(number).policy
        study.confirm(policy.fingerprint, {"accuracy": accuracy(policy, 60, scale)})
    write_policies(read_record(folder), folder / POLICIES)
    return folder


def jobs(*entries: tuple) -> SimpleNamespace:
    """A pool that measures these jobs: worker, job and seconds."""
    return SimpleNamespace(jobs=list(entries))
