"""One worker: the Ray actor that holds a loaded model, its place in the pool, and the jobs that it is given."""

import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_put

from ...evaluators.base import Measurement, Split
from ...policies.policy import Policy
from ..baselines.dense_stats import DenseStats
from ..space.space import Space
from ..trial.modelled_time import ExpectedTime
from ..trial.outcome import Outcome
from .dense_probe import probe_dense
from .early_stopping import Rival
from .evaluate import PolicyEvaluator
from .prefix_affinity import RECENT, Steps

NOTES = b"skipsearch"  # where workers note in the cluster which evaluator is at work


class Worker:
    """Measures policies on one model, which it loads when it is first needed."""

    def __init__(self, space: dict[str, Any], threads: int | None) -> None:
        self._space = Space.model_validate(space)
        self._threads = threads
        self._bench: PolicyEvaluator | None = None
        self._key = ray.get_runtime_context().get_actor_id() or ""

    def _loaded(self) -> PolicyEvaluator:
        if self._bench is None:
            self._bench = PolicyEvaluator(self._space, self._threads, self._note)
        return self._bench

    def _note(self, evaluator: str) -> None:
        """Leave word of what runs, for the message in case that this process does not come back from it."""
        _internal_kv_put(self._key, evaluator, namespace=NOTES)

    def describe(self) -> dict[str, Any]:
        """Load the model, and say what it is and where."""
        return {**self._loaded().describe(), "pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()}

    def probe_dense(self) -> DenseStats:
        """Find out what the baselines of the space need to know of the dense model; see `probe_dense`."""
        return probe_dense(self._loaded(), self._space.search.baselines)

    def measure(self, policy: dict[str, Any], names: list[str], split: Split, **more: Any) -> Outcome:
        """Measure one policy; see `PolicyEvaluator.measure`."""
        return self._loaded().measure(Policy.model_validate(policy), names, split, **more)


@dataclass
class Job:
    """One policy to be measured.

    Attributes:
        policy: The policy.
        names: Which evaluators.
        split: The examples.
        dense: The dense model's figures, for the constraints.
        rivals: The front so far, to race against; None measures everything in full.
        known: What was measured of the policy before, on all or on some of the examples.
        max_examples: How many examples are enough for now; None measures all.
        times: What is expected of its times, by metric.
        seconds: How long it may take; None sets no limit.
        tag: Whatever the driver wants to know it by.
        losses: Workers that were lost over it.
        small: How often its device was too small.
        avoid: The worker that was lost over it last.
    """

    policy: Policy
    names: Sequence[str]
    split: Split = "search"
    dense: Mapping[str, Measurement] | None = None
    rivals: Sequence[Rival] | None = None
    known: Mapping[str, Measurement] = field(default_factory=dict)
    max_examples: int | None = None
    times: Mapping[str, ExpectedTime] = field(default_factory=dict)
    seconds: float | None = None
    tag: Any = None
    losses: int = 0
    small: int = 0
    avoid: int | None = None


@dataclass(eq=False)
class Seat:
    """The place of one worker, which has one process after the other.

    Attributes:
        index: Its number.
        actor: The process; None where the worker was given up.
        since: When it began to load its model, or its job.
        struck: Over which policies, and loads of the model, the machine failed since it last measured something.
        reason: The last of them.
        measured: The policies that it measured lately.
        described: Its model and device.
    """

    index: int
    actor: Any = None
    since: float = 0.0
    struck: set[str] = field(default_factory=set)
    reason: str = ""
    measured: deque[Steps] = field(default_factory=lambda: deque(maxlen=RECENT))
    described: dict[str, Any] = field(default_factory=dict)

    @property
    def strikes(self) -> int:
        """How often in a row the machine failed."""
        return len(self.struck)
