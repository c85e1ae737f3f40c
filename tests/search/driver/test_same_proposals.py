"""One seed, one worker, no time among the objectives: the same proposals, whatever the process did before."""

import json
import os
import random
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from skipsearch.evaluators.base import Measurement
from skipsearch.search.driver.proposals import Proposals
from skipsearch.search.space.load import load_space
from skipsearch.search.study.study import SearchStudy
from skipsearch.search.trial.outcome import Outcome
from skipsearch.search.workers.early_stopping import Race

LAYERS, EXAMPLES, STEP, TRIALS = 4, 200, 10, 16
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


def found_by(search, sampler):
    """Every trial of a search: its policy as parameters, where it comes from, and how far it was measured."""
    space = load_space("digits", {**CHANGES, "search.sampler": sampler}).space
    with tempfile.TemporaryDirectory() as folder:
        study = SearchStudy(Path(folder) / "study.db", "same", space, LAYERS)
        search(study, Planted(space))
        return [
            [trial.state.name, trial.params, *(trial.user_attrs.get(key) for key in ("rule", "continues", "dropped"))]
            for trial in study.study.trials
        ]


def measured_in_full(study, model):
    proposals = Proposals(study)
    while (proposal := proposals.next()) is not None:
        proposals.finish(proposal, model.measure(proposal.policy, ("flops", "accuracy"), "search"))


def raced(study, model):
    # Imported here, because the other process needs neither Ray nor torch.
    from skipsearch.search.driver.driver import Driver
    from skipsearch.search.driver.progress import Progress
    from skipsearch.testing.pool import LocalPool

    Driver(study, LocalPool(model), Progress(TRIALS, study.space.objectives, shown=False)).search()


@contextmanager
def disturbed():
    """Generators of the process in other states, and more threads; none of the generators may be drawn from."""
    states = random.getstate(), np.random.get_state()
    random.seed(7)
    np.random.seed(7)
    with threadpool_limits(2, "blas"):
        yield
    drawn = random.random(), np.random.random()
    random.setstate(states[0])
    np.random.set_state(states[1])
    assert drawn == (random.Random(7).random(), np.random.RandomState(7).random())


ELSEWHERE = """
import sys, json
sys.path[:0] = {path!r}
from test_same_proposals import SAMPLERS, found_by, measured_in_full
print(json.dumps({{sampler: found_by(measured_in_full, sampler) for sampler in SAMPLERS}}))
"""


@pytest.fixture(scope="module")
def elsewhere():
    """By sampler, the trials of searches in another process, with another order of sets and more threads."""
    threads = {"OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "3"}
    env = {**os.environ, **threads, "PYTHONHASHSEED": "12345", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", ELSEWHERE.format(path=sys.path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_decides_every_proposal(sampler, elsewhere):
    first = found_by(measured_in_full, sampler)
    with disturbed():
        again = found_by(measured_in_full, sampler)
    assert first == again == elsewhere[sampler] and len(first) >= TRIALS


def test_a_seed_decides_every_promotion():
    first = found_by(raced, "auto")
    with disturbed():
        again = found_by(raced, "auto")
    assert first == again and {"COMPLETE", "PRUNED"} == {state for state, *_ in first}
    assert any(continued is not None for *_, continued, _ in first), "nothing was promoted"
