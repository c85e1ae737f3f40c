"""The Ray actor that holds a loaded model, and the jobs that it is given."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from ...evaluators.base import Measurement, Split
from ...policies.policy import Policy
from ..baselines.dense_stats import DenseStats
from ..space.space import Space
from ..trial.modelled_time import ExpectedTime
from ..trial.outcome import Outcome
from .dense_probe import probe_dense
from .devices import machine_id
from .early_stopping import Rival
from .evaluate import PolicyEvaluator
from .ranking import make_ranking, take_ranking
from .shared_values import RayStore
from .training import Training, require

NAMESPACE = b"skipsearch"  # of the keys in Ray's key-value store


class Worker:
    """Measures policies on one model, which it loads when it is first needed.

    Args:
        space: The search space as plain data.
        threads: The threads that torch may use; None leaves that to torch.
        ranking: The content of the search's ranking of channels; None where it has none yet.
    """

    def __init__(self, space: dict[str, Any], threads: int | None, ranking: bytes | None = None) -> None:
        self._space = Space.model_validate(space)
        self._threads, self._ranking = threads, ranking
        self._evaluator: PolicyEvaluator | None = None
        self._training: Training | None = None
        self._key = ray.get_runtime_context().get_actor_id() or ""

    def _loaded(self) -> PolicyEvaluator:
        if self._evaluator is None:
            store = RayStore(self._space.model.model_dump_json())
            self._evaluator = PolicyEvaluator(self._space, self._threads, self._store_running, store)
            if self._ranking is not None:
                take_ranking(self._evaluator, self._ranking)
        return self._evaluator

    def _store_running(self, evaluator: str) -> None:
        """Store in the cluster which evaluator runs, so that the driver can name it if this process dies."""
        _internal_kv_put(self._key, evaluator, namespace=NAMESPACE)

    def place(self) -> dict[str, str]:
        """The node and the machine of this process; unlike `describe`, this loads no model."""
        return {"node": ray.get_runtime_context().get_node_id(), "machine": machine_id()}

    def describe(self) -> dict[str, Any]:
        """Load the model, and describe it, its device, this process and its node."""
        return {**self._loaded().describe(), "pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()}

    def probe_dense(self) -> DenseStats:
        """Measure the statistics of the dense model that the space's baselines need; see `probe_dense`."""
        return probe_dense(self._loaded(), self._space.search.baselines)

    def rank_widths(self) -> bytes:
        """Rank channels and heads of the model by energy; see `make_ranking`."""
        return make_ranking(self._loaded())

    def take_ranking(self, content: bytes) -> None:
        """Let policies have a ranking here; see `ranking.take_ranking`."""
        take_ranking(self._loaded(), content)

    def memory(self) -> dict[str, float]:
        """The memory of this process, in bytes; see `PolicyEvaluator.memory`."""
        return self._loaded().memory()

    def measure(
        self, policy: dict[str, Any], names: list[str], split: Split, folder: Path | None = None, **options: Any
    ) -> Outcome:
        """Measure one policy, whose trained weights lie in a folder; see `PolicyEvaluator.measure`."""
        found = Policy.model_validate(policy)
        return self._loaded().measure(found if folder is None else found.beside(folder), names, split, **options)

    def _trainings(self) -> Training:
        if self._training is None:
            self._training = Training(self._loaded(), require(self._space.search.recover))
        return self._training

    def step_seconds(self, study: Path | None) -> float:
        """Measure a step of `search.recover`; see `Training.step_seconds`."""
        return self._trainings().step_seconds(study)

    def recover(self, policy: dict[str, Any], names: list[str], folder: Path, steps: int) -> Outcome:
        """Train the model under a policy and measure that; see `Training.recover`."""
        return self._trainings().recover(Policy.model_validate(policy), names, folder, steps)


def running_evaluator(actor: Any) -> str | None:
    """The evaluator that a worker runs, or ran when it died; None where it applied a policy, or nothing is known."""
    try:
        name = _internal_kv_get(actor._actor_id.hex(), namespace=NAMESPACE)
    except (ray.exceptions.RayError, RuntimeError):
        return None
    return name.decode() if name else None


@dataclass
class Job:
    """One policy to be measured.

    Attributes:
        policy: The policy.
        names: The evaluators that measure it.
        split: The examples.
        dense: The dense model's measurements, which constraints refer to; None checks none.
        rivals: The front so far, to race against; None measures all examples.
        previous: What was measured of the policy before, on all or on some of the examples.
        max_examples: How many examples are enough for now; None measures all.
        times: The policy's expected times by metric.
        seconds: The time limit; None sets none.
        recover_to: The folder for the weights of a model that is trained under the policy first; None trains none.
        steps: The steps of that training.
        tag: The driver's reference to what it submitted.
        lost_workers: How many workers died or broke while they measured it.
        out_of_memory: True where its device was too small once.
        avoid: The worker that failed on it last.
    """

    policy: Policy
    names: Sequence[str]
    split: Split = "search"
    dense: Mapping[str, Measurement] | None = None
    rivals: Sequence[Rival] | None = None
    previous: Mapping[str, Measurement] = field(default_factory=dict)
    max_examples: int | None = None
    times: Mapping[str, ExpectedTime] = field(default_factory=dict)
    seconds: float | None = None
    recover_to: Path | None = None
    steps: int = 0
    tag: Any = None
    lost_workers: int = 0
    out_of_memory: bool = False
    avoid: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `PolicyEvaluator.measure`, beside the policy, the evaluators and the split."""
        return {name: getattr(self, name) for name in ("dense", "rivals", "previous", "max_examples", "times")}
