"""Loads a model and its evaluators once, and measures one policy after the other on them."""

import gc
import math
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import permutations
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ...evaluators.base import Evaluator, Measurement, Options, Split, evaluator_class, metrics_of
from ...evaluators.examples import ExampleEvaluator
from ...evaluators.memory import MemoryEvaluator
from ...evaluators.patches.kept_patches import KeptPatchesEvaluator
from ...evaluators.prompts import PromptOptions
from ...policies.errors import EvaluatorError, SkipsearchError, TaskError
from ...policies.policy import Policy
from ..guide.guide import MIN_EXAMPLES_TO_GUIDE
from ..space.guide_metrics import ANSWER_LOSS, DIVERGENCE, QUALITY
from ..space.space import Space
from ..trial.failures import fault_of
from ..trial.modelled_time import ExpectedTime
from ..trial.outcome import Outcome
from .devices import describe_device
from .early_stopping import Race, Rival
from .policy_run import PolicyRun, forward_clock

if TYPE_CHECKING:
    from ...evaluators.engine.shared import SharedStore
    from ...evaluators.subject import Subject

RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of `ru_maxrss`, in bytes


class PolicyEvaluator:
    """Loads a space's model and evaluators once, and measures policies on them.

    Args:
        space: The search space.
        threads: The threads that torch may use; None leaves that to torch.
        on_start: Called with the name of each evaluator before it runs, and with '' before a policy is applied.
        store: Where the processes of the machine keep pixels and image features once; None keeps them here.

    Raises:
        ModelError: the model cannot be loaded.
        EvaluatorError: an evaluator cannot be set up.

    Attributes:
        subject: The model with its tokenizer or processor.
        num_layers: The number of the model's decoder layers.
        guide: The evaluator of the guide's loss; None where no loss guides the search.
        evaluators: All evaluators, cheap ones first.
    """

    def __init__(
        self,
        space: Space,
        threads: int | None = None,
        on_start: Callable[[str], None] = lambda name: None,
        store: "SharedStore | None" = None,
    ) -> None:
        import torch

        from ...evaluators.subject import load_subject
        from ...policies.families.layers import decoder_layers

        if threads is not None:
            torch.set_num_threads(threads)
        self.space, self._on_start = space, on_start
        self.subject: Subject = load_subject(space.model)
        self.subject.store = store
        self.num_layers = len(decoder_layers(self.subject.model))
        classes = [(evaluator_class(name), options) for name, options in space.evaluate.items()]
        # Evaluators with examples are set up first, because the others take their prompts from them.
        classes.sort(key=lambda pair: not pair[0].splits)
        evaluators = [made(made.options.model_validate(options), self.subject) for made, options in classes]
        for one, other in permutations((one for one in evaluators if isinstance(one, ExampleEvaluator)), 2):
            one.refuse_overlap(other)
        self.guide = self._find_guide(evaluators)
        if self.guide is not None and self.guide.name not in space.evaluate:
            evaluators.append(self.guide)
        examples = next((one for one in evaluators if isinstance(one, ExampleEvaluator)), None)
        # It is asked for by name once the search has ended, and is no part of a trial.
        self._drawing = [KeptPatchesEvaluator(Options(), self.subject, examples)] if examples is not None else []
        self.evaluators: list[Evaluator] = sorted(evaluators, key=lambda evaluator: evaluator.cost)
        self._metrics = {
            name: metric
            for evaluator in evaluators
            for name, metric in metrics_of(evaluator.name, space.evaluate.get(evaluator.name)).items()
        }

    def _find_guide(self, evaluators: Sequence[Evaluator]) -> Evaluator | None:
        """The evaluator of the guide's loss: of the right answers, or where tasks have none, the divergence from dense.

        Returns:
            The space's own evaluator or a new one; None where the space is not guided or has few examples.

        Raises:
            EvaluatorError: neither can be set up.
        """
        accuracy = next((one for one in evaluators if one.name == QUALITY and isinstance(one, ExampleEvaluator)), None)
        if not self.space.may_be_guided or accuracy is None or accuracy.num_examples("search") < MIN_EXAMPLES_TO_GUIDE:
            return None
        options = self.space.guide_options()
        for name in (ANSWER_LOSS, DIVERGENCE):
            own = next((one for one in evaluators if one.name == name), None)
            made = evaluator_class(name)
            try:
                return own or made(made.options.model_validate(options[name]), self.subject)
            except EvaluatorError:
                if name == DIVERGENCE:
                    raise
        return None

    def measure(
        self,
        policy: Policy,
        names: Sequence[str],
        split: Split = "search",
        dense: Mapping[str, Measurement] | None = None,
        rivals: Sequence[Rival] | None = None,
        previous: Mapping[str, Measurement] = MappingProxyType({}),
        max_examples: int | None = None,
        times: Mapping[str, ExpectedTime] = MappingProxyType({}),
    ) -> Outcome:
        """Measure a policy, cheap evaluators first, until it violates a constraint or loses the race.

        Args:
            policy: The policy.
            names: The evaluators to run.
            split: The examples.
            dense: The dense model's measurements, which constraints refer to; None checks no constraint.
            rivals: The front so far, to race against; None measures all examples.
            previous: What was measured of the policy before; partial measurements are continued.
            max_examples: How many examples are enough for now; None measures all.
            times: The policy's expected times by metric, which smooth the measured ones.

        Returns:
            The measurements. An error becomes the outcome's failure, so that one bad policy does not end the search.

        Raises:
            TaskError: a task is wrong in a way that makes every policy fail.
        """
        started = time.perf_counter()
        seconds: dict[str, float] = {}
        race = Race(self.space, self._metrics, dense, rivals) if dense and rivals is not None else None
        run = PolicyRun(self.space, split, dense, race, previous, max_examples, times, self.guide)
        try:
            self._on_start("")
            with self.applied(policy) as handle, forward_clock(self.subject.model) as clock:
                seconds["apply"] = time.perf_counter() - started
                chosen = (one for one in (*self.evaluators, *self._drawing) if one.name in names)
                outcome = run.measure(chosen, handle, seconds, self._on_start)
            seconds["forward"] = clock[0]
            if failure := not_finite({**outcome.measurements, **outcome.estimates}):
                outcome = Outcome(failure=failure)
        except TaskError:
            raise
        except Exception as cause:  # Whatever a policy does to a model or an evaluator is the result of its trial.
            outcome = failed(cause)
        seconds["total"] = time.perf_counter() - started
        # Only here, where the exception and the tensors that its frames refer to are gone.
        if outcome.failure and outcome.fault == "memory":
            self.free_memory()
        return replace(outcome, seconds=seconds)

    def free_memory(self) -> None:
        """Free the memory that torch caches on the device, which was too small for a policy."""
        import torch

        gc.collect()
        if self.subject.model.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def applied(self, policy: Policy) -> Iterator[Any]:
        """Apply a policy to the model while the context is open; yields its handle."""
        import torch

        from ...policies.apply import apply_policy

        torch.manual_seed(self.space.search.seed)
        with torch.inference_mode(), apply_policy(self.subject.model, policy) as handle:
            yield handle

    def memory(self) -> dict[str, float]:
        """What the model and its caches take, in bytes: the peak so far, weights, caches and the limits of these.

        `batch_cache_bytes` are the keys and values of the dense model for the largest batch that an evaluator asks
        for, of prompts of median length; it is missing where the model's cache cannot be read.
        """
        import torch

        from ...policies.quantized.tensors import stored_bytes

        weights = [*self.subject.model.parameters(), *self.subject.model.buffers()]
        device = self.subject.model.device
        shared = [*self.subject.examples.values()]
        return {
            "peak_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT),
            **({"gpu_peak_bytes": float(torch.cuda.max_memory_allocated(device))} if device.type == "cuda" else {}),
            "weights_bytes": float(sum(map(stored_bytes, weights))),
            **self._batch_cache(),
            "prepared_bytes": float(sum(one.memo.used_bytes for one in shared)),
            "states_bytes": float(sum(one.states.used_bytes for one in shared)),
            "caches_limit_bytes": float(sum(one.memo.budget_bytes + one.states.max_bytes for one in shared)),
        }

    def _batch_cache(self) -> dict[str, float]:
        given = [evaluator_class(name).options.model_validate(one) for name, one in self.space.evaluate.items()]
        rows = max([getattr(options, "batch_size", 1) for options in given], default=1)
        measured = MemoryEvaluator(PromptOptions(), self.subject)
        try:
            with self.applied(Policy()) as handle:
                return {"batch_cache_bytes": rows * measured.measure(handle, "search")["kv_cache_bytes"].value}
        except EvaluatorError:
            return {}

    def describe(self) -> dict[str, Any]:
        """Describe the model and the device, for the study and its report."""
        import torch

        from ...policies.quantized.weights import quantized_share

        device = self.subject.model.device
        return {
            "num_layers": self.num_layers,
            "guide": None if self.guide is None else self.guide.name,
            "commit": self.subject.commit,
            **describe_device(device),
            "threads": torch.get_num_threads(),
            "dtype": str(self.subject.model.dtype).removeprefix("torch."),
            "attention": self.subject.model.config._attn_implementation,
            "quantized_share": quantized_share(self.subject.model),
            "parameters": sum(weight.numel() for weight in self.subject.model.parameters()),
            "examples": self._num_examples(),
        }

    def _num_examples(self) -> dict[str, dict[str, int]]:
        """By evaluator of the space that measures on examples, the number of examples of each split."""
        named = [
            one for one in self.evaluators if isinstance(one, ExampleEvaluator) and one.name in self.space.evaluate
        ]
        return {one.name: {split: one.num_examples(split) for split in one.loaded_splits} for one in named}


def failed(cause: Exception) -> Outcome:
    """The outcome of a policy whose measurement raised an exception; to be called while it is handled."""
    if isinstance(cause, SkipsearchError):
        return Outcome(failure="; ".join([cause.what, *cause.details]), fault=fault_of(cause))
    lines = str(cause).strip().splitlines()
    failure = f"{type(cause).__name__}: {lines[0] if lines else ''}"
    return Outcome(failure=failure, fault=fault_of(cause), traceback=traceback.format_exc())


def not_finite(measurements: Mapping[str, Measurement]) -> str | None:
    """Why a trial fails whose measurements are NaN or infinite; None where all are finite."""
    found = [f"{name} is {entry.value}" for name, entry in measurements.items() if not math.isfinite(entry.value)]
    return ", ".join(found) or None
