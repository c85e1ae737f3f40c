"""One seed, one worker, no time among the objectives: the same proposals, whatever the process did before."""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from skipsearch.evaluators.base import Measurement
from skipsearch.search.driver.driver import Driver
from skipsearch.search.driver.progress import Progress
from skipsearch.search.space.load import load_space
from skipsearch.search.study.study import SearchStudy
from skipsearch.search.trial.outcome import Outcome
from skipsearch.search.workers.early_stopping import Race
from skipsearch.testing.pool import LocalPool

LAYERS, EXAMPLES, STEP, TRIALS = 4, 200, 10, 24
SAMPLERS = ["auto", "nsga2", "tpe"]
CHANGES = {
    "layers": "[{range: all, ffn: [run, skip], token_ratio: [1, 0.5, 0.25]}]",
    "evaluate": "{accuracy: {tasks: [none]}, flops: }",
    "objectives": "{accuracy: maximize, prefill_flops: minimize}",
    "constraints": '{accuracy: ">= 0.3 * dense"}',
    "search.guide": "none",
    "search.trials": str(TRIALS),
}


class Planted:
    """Answers for a model: an example is right until a policy has left out what the example can bear.

    Args:
        space: The space.
    """

    def __init__(self, space):
        self._space = space
        draw = np.random.default_rng(0)
        self._bears, self._layers = draw.uniform(0.0, 1.5, EXAMPLES), draw.uniform(0.1, 1.9, (LAYERS, EXAMPLES))
        self._order = draw.permutation(EXAMPLES).tolist()

    def measure(self, policy, names, split, dense=None, rivals=None, previous=None, max_examples=None, **given):
        found = {}
        shares = np.array([self._share(choice) for choice in policy.choices(LAYERS)])
        if "flops" in names:
            found["prefill_flops"] = Measurement(1e9 * float(shares.mean()))
        if "accuracy" not in names:
            return Outcome(found, {"total": 0.1})
        scores = ((1 - shares) ** 2 @ self._layers < self._bears).astype(float)
        race = Race(self._space, self._space.metrics(), dense, rivals) if dense and rivals is not None else None
        before = (previous or {}).get("accuracy")
        for count in range(STEP + (before.n if before and before.is_partial else 0), EXAMPLES, STEP):
            part = {"accuracy": self._part(scores, count)}
            reason = race.reason_to_stop({**(previous or {}), **found}, part) if race else None
            if reason or (max_examples is not None and count >= max_examples):
                return Outcome(found, {"total": 0.1}, early_stopped=reason, estimates=part)
        detail = {"per_example": scores.tolist()}
        found["accuracy"] = Measurement(float(scores.mean()), EXAMPLES, stderr=0.03, detail=detail)
        return Outcome(found, {"total": 0.1})

    def _part(self, scores, count):
        places = self._order[:count]
        detail = {"places": places, "per_example": scores[places].tolist(), "total": EXAMPLES}
        return Measurement(float(scores[places].mean()), count, stderr=0.1, detail=detail)

    @staticmethod
    def _share(choice):
        tokens = 1.0 if choice.token_ratio is None else 0.3 + 0.7 * choice.token_ratio
        return (0.4 * (choice.attention == "run") + 0.6 * (choice.ffn == "run")) * tokens


def proposals(sampler):
    """Every trial of a search: its policy as parameters, where it comes from, and how far it was measured."""
    space = load_space("digits", {**CHANGES, "search.sampler": sampler}).space
    with tempfile.TemporaryDirectory() as folder:
        study = SearchStudy(Path(folder) / "study.db", "same", space, LAYERS)
        Driver(study, LocalPool(Planted(space)), Progress(TRIALS, space.objectives, shown=False)).search()
        return [
            [trial.state.name, trial.params, *(trial.user_attrs.get(key) for key in ("rule", "continues", "dropped"))]
            for trial in study.study.trials
        ]


def main():
    """Print the trials of a search with each sampler."""
    print(json.dumps({sampler: proposals(sampler) for sampler in SAMPLERS}))


@pytest.fixture(scope="module")
def elsewhere():
    """By sampler, the trials of searches in another process, with another order of sets and more threads."""
    code = f"import sys; sys.path[:0] = {sys.path!r}; import test_same_proposals; test_same_proposals.main()"
    threads = {"OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "3"}
    env = {**os.environ, **threads, "PYTHONHASHSEED": "12345", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_decides_every_proposal(sampler, elsewhere):
    first = proposals(sampler)
    states = random.getstate(), np.random.get_state()
    random.seed(7)
    np.random.seed(7)
    with threadpool_limits(2, "blas"):
        again = proposals(sampler)
    assert random.random() == random.Random(7).random(), "the search draws from the generator of the process"
    random.setstate(states[0])
    np.random.set_state(states[1])
    assert first == again == elsewhere[sampler]
    assert {"COMPLETE", "PRUNED"} <= {state for state, *_ in first}
    assert sampler != "auto" or any(continued is not None for *_, continued, _ in first), "nothing was promoted"
