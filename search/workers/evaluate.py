"""The measuring bench: one loaded model, its evaluators, and policies that come and go on it."""

import gc
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import permutations
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ...evaluators.base import Evaluator, IncrementalEvaluator, Measurement, RetimingEvaluator, Split, evaluator_class
from ...evaluators.examples import ExampleEvaluator
from ...policies.errors import EvaluatorError, SkipsearchError, TaskError
from ...policies.policy import Policy
from ..guide.guide import EXAMPLES, FEWEST
from ..space.guide_metrics import ANSWER_LOSS, DIVERGENCE, QUALITY
from ..space.space import Space
from ..trial.failures import Fault, fault_of
from ..trial.modelled_time import ExpectedTime, at_best, with_times
from ..trial.outcome import Outcome
from ..trial.pareto import objective_value
from .early_stopping import Race, Rival, shares

if TYPE_CHECKING:
    from ...evaluators.subject import Subject
    from ...policies.apply import PolicyHandle


class PolicyEvaluator:
    """Loads a space's model and evaluators once, and measures policies on them.

    Args:
        space: The search space.
        threads: Threads that torch may use; None leaves that to torch.
        doing: Called with the name of each evaluator before it measures, and with '' before a policy is applied.

    Raises:
        ModelError: the model cannot be loaded.
        EvaluatorError: an evaluator cannot be set up.
    """

    def __init__(
        self, space: Space, threads: int | None = None, doing: Callable[[str], None] = lambda name: None
    ) -> None:
        import torch

        from ...evaluators.subject import load_subject
        from ...policies.families.layers import decoder_layers

        if threads is not None:
            torch.set_num_threads(threads)
        self.space, self._doing = space, doing
        self.subject: Subject = load_subject(space.model)
        self.num_layers = len(decoder_layers(self.subject.model))
        kinds = [(evaluator_class(name), options) for name, options in space.evaluate.items()]
        # Those with examples come first: the others take their input from them.
        kinds.sort(key=lambda pair: not pair[0].splits)
        made = [kind(kind.options.model_validate(options), self.subject) for kind, options in kinds]
        for one, other in permutations((kind for kind in made if isinstance(kind, ExampleEvaluator)), 2):
            one.refuse_overlap(other)
        self.guide = self._guide(made)
        made += [self.guide] if self.guide is not None and self.guide.name not in space.evaluate else []
        self.evaluators: list[Evaluator] = sorted(made, key=lambda evaluator: evaluator.cost)
        self._metrics = {name: metric for evaluator in made for name, metric in evaluator.metrics.items()}

    def _guide(self, made: Sequence[Evaluator]) -> Evaluator | None:
        """What measures the loss that guides the search: of the right answers, or else from the dense model's own.

        Raises:
            EvaluatorError: it cannot be set up.
        """
        accuracy = next((one for one in made if one.name == QUALITY and isinstance(one, ExampleEvaluator)), None)
        if not self.space.may_be_guided or accuracy is None or accuracy.examples("search") < FEWEST:
            return None
        options = self.space.guide_options()
        for name in (ANSWER_LOSS, DIVERGENCE):
            known = next((one for one in made if one.name == name), None)
            kind = evaluator_class(name)
            try:
                return known or kind(kind.options.model_validate(options[name]), self.subject)
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
        known: Mapping[str, Measurement] = MappingProxyType({}),
        max_examples: int | None = None,
        times: Mapping[str, ExpectedTime] = MappingProxyType({}),
    ) -> Outcome:
        """Measure a policy, cheap evaluators first, until one breaks a constraint or the race is lost.

        Args:
            policy: What to measure.
            names: Which evaluators.
            split: The examples to measure accuracy on.
            dense: What the dense model measured, for the constraints; None where they are not to be checked.
            rivals: The front so far, to race against; None measures everything in full.
            known: What was measured of the policy before; what was on a part of the examples is gone on with.
            max_examples: How many examples are enough for now; None measures all.
            times: What is expected of the policy's times, by which those that are measured are judged.

        Returns:
            What was measured. Whatever goes wrong becomes the outcome's failure, so that one bad policy costs no other.

        Raises:
            TaskError: a task has a mistake, which no other policy would mend.
        """
        found: dict[str, Measurement] = {}
        seconds: dict[str, float] = {}
        started = time.perf_counter()
        failure = early_stopped = None
        fault: Fault = "policy"
        trace: str | None = None
        estimates: dict[str, Measurement] = {}
        race = Race(self.space, self._metrics, dense, rivals) if dense and rivals is not None else None
        try:
            self._doing("")
            with self.applied(policy) as handle, forward_clock(self.subject.model) as clock:
                seconds["apply"] = time.perf_counter() - started
                for evaluator in (one for one in self.evaluators if one.name in names):
                    assess = with_times({**known, **found}, times)
                    if early_stopped or (dense and self._breaks(with_times(found, times), dense)):
                        break
                    self._doing(evaluator.name)
                    begin = time.perf_counter()
                    measured, early_stopped = self._raced(evaluator, handle, split, race, assess, max_examples)
                    seconds[evaluator.name] = time.perf_counter() - begin
                    found |= {name: entry for name, entry in measured.items() if not entry.is_partial}
                    estimates |= {name: entry for name, entry in measured.items() if entry.is_partial}
            seconds["forward"] = clock[0]
            failure = not_finite({**found, **estimates})
        except TaskError:
            raise
        except SkipsearchError as cause:
            failure, fault = "; ".join([cause.what, *cause.details]), fault_of(cause)
        except Exception as cause:
            # The worker boundary: any fault of one policy is that trial's result, told in one line, kept in full.
            said = str(cause).strip().splitlines()
            failure, fault = f"{type(cause).__name__}: {said[0] if said else ''}", fault_of(cause)
            trace = traceback.format_exc()
        seconds["total"] = time.perf_counter() - started
        if failure:
            if fault == "memory":
                self._give_memory_back()
            return Outcome(seconds=seconds, failure=failure, fault=fault, traceback=trace)
        return Outcome(found, seconds, early_stopped=early_stopped, estimates=estimates)

    def _give_memory_back(self) -> None:
        """Return what torch holds for later to the device, which was too small for the last policy."""
        import torch

        gc.collect()
        if self.subject.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _raced(
        self,
        evaluator: Evaluator,
        handle: "PolicyHandle",
        split: Split,
        race: Race | None,
        known: Mapping[str, Measurement],
        max_examples: int | None,
    ) -> tuple[dict[str, Measurement], str | None]:
        """What an evaluator measures, and why the policy is out; None where it is not, or not yet."""
        if split == "report" and isinstance(evaluator, RetimingEvaluator):
            return evaluator.visit(handle), None
        if split != "search" or not isinstance(evaluator, IncrementalEvaluator):
            return evaluator.measure(handle, split), None
        if evaluator is self.guide and evaluator.name not in self.space.evaluate:
            return self._guided(evaluator, handle), None
        # Same batches with and without racing, so that rounding is identical.
        measured: dict[str, Measurement] = {}
        before = {name: entry for name, entry in known.items() if entry.is_partial}
        with closing(evaluator.rungs(handle, split, shares(self.space.search.racing), before)) as rungs:
            for measured in rungs:
                reason = race.reason_to_stop(known, measured) if race else None
                if reason:
                    return measured, reason
                if max_examples is not None and all(entry.n >= max_examples for entry in measured.values()):
                    break
        return measured, None

    def _guided(self, evaluator: IncrementalEvaluator, handle: "PolicyHandle") -> dict[str, Measurement]:
        """The loss that guides, on the first few dozen examples: that is all that is asked of it."""
        with closing(evaluator.rungs(handle, "search", shares(self.space.search.racing))) as rungs:
            found = next(
                one for one in rungs if all(not part.is_partial or part.n >= EXAMPLES for part in one.values())
            )
        kept = ("places", "total", "per_example", "divergences")
        return {
            name: replace(entry, detail={key: value for key, value in entry.detail.items() if key not in kept})
            for name, entry in found.items()
        }

    @contextmanager
    def applied(self, policy: Policy) -> Iterator[Any]:
        """A handle on the model while it runs under a policy."""
        import torch

        from ...policies.apply import apply_policy

        torch.manual_seed(self.space.search.seed)
        with torch.inference_mode(), apply_policy(self.subject.model, policy) as handle:
            yield handle

    def _breaks(self, found: Mapping[str, Measurement], dense: Mapping[str, Measurement]) -> bool:
        bounds = self.space.constraints.items()
        return any(
            bound.excess(
                objective_value(name, at_best(found[name], bound), dense[name]), dense[name].value, dense[name].floor
            )
            > 0
            for name, bound in bounds
            if name in found and name in dense
        )

    def describe(self) -> dict[str, Any]:
        """What the study needs to know of the model and the device."""
        import torch

        device = self.subject.model.device
        return {
            "num_layers": self.num_layers,
            "guide": None if self.guide is None else self.guide.name,
            "commit": getattr(self.subject.model.config, "_commit_hash", None),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "dtype": str(self.subject.model.dtype).removeprefix("torch."),
            "attention": self.subject.model.config._attn_implementation,
            "parameters": sum(weight.numel() for weight in self.subject.model.parameters()),
        }


@contextmanager
def forward_clock(model: Any) -> Iterator[list[float]]:
    """Seconds that a model's forward passes take while the context is open, in a list of one that is filled at its end.

    A GPU works after its commands: there the time stands between two events in its own queue, which disturb nothing.
    """
    import torch

    on_gpu = model.device.type == "cuda"
    spent: list[float] = []
    marks: list[Any] = []

    def mark(*_: Any) -> None:
        marks.append(torch.cuda.Event(enable_timing=True) if on_gpu else time.perf_counter())
        if on_gpu:
            marks[-1].record()

    hooks = [model.register_forward_pre_hook(mark), model.register_forward_hook(mark)]
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()
        pairs = zip(marks[::2], marks[1::2], strict=False)
        if on_gpu:
            torch.cuda.synchronize(model.device)
            spent.append(sum(begin.elapsed_time(end) for begin, end in pairs) / 1e3)
        else:
            spent.append(sum(end - begin for begin, end in pairs))


def not_finite(found: Mapping[str, Measurement]) -> str | None:
    """The reason to fail a trial whose measurement is no number."""
    bad = [f"{name} is {entry.value}" for name, entry in found.items() if not math.isfinite(entry.value)]
    return ", ".join(bad) or None
