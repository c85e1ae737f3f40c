"""Runs evaluators on a model under one policy, until a constraint is violated or the race is lost."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...evaluators.base import Evaluator, IncrementalEvaluator, Measurement, RetimingEvaluator, Split
from ..guide.guide import GUIDE_EXAMPLES
from ..space.space import Space
from ..trial.modelled_time import ExpectedTime, with_modelled_times
from ..trial.outcome import Outcome
from ..trial.violations import surely_violates
from .early_stopping import Race, rung_fractions

if TYPE_CHECKING:
    from ...policies.apply import PolicyHandle

EXAMPLE_DETAILS = ("places", "total", "per_example", "divergences")  # what a measurement keeps of single examples


@dataclass(frozen=True)
class PolicyRun:
    """The measurement of one policy.

    Attributes:
        space: The search space.
        split: The examples.
        dense: The dense model's measurements, which constraints refer to; None checks no constraint.
        race: The race against the front; None measures all examples.
        previous: What was measured of the policy before; partial measurements are continued.
        max_examples: How many examples are enough for now; None measures all.
        times: The policy's expected times by metric, which smooth the measured ones.
        guide: The evaluator of the guide's loss; None where there is none.
    """

    space: Space
    split: Split
    dense: Mapping[str, Measurement] | None
    race: Race | None
    previous: Mapping[str, Measurement]
    max_examples: int | None
    times: Mapping[str, ExpectedTime]
    guide: Evaluator | None

    def measure(
        self,
        evaluators: Iterable[Evaluator],
        handle: "PolicyHandle",
        seconds: dict[str, float],
        on_start: Callable[[str], None],
    ) -> Outcome:
        """Run evaluators in turn.

        Args:
            evaluators: The evaluators, cheap ones first.
            handle: The model under the policy.
            seconds: Gets the wall-clock seconds of each evaluator, also of those that ran before a failure.
            on_start: Called with the name of each evaluator before it runs.
        """
        measurements: dict[str, Measurement] = {}
        estimates: dict[str, Measurement] = {}
        for evaluator in evaluators:
            so_far = with_modelled_times(measurements, self.times)
            if self.dense and surely_violates(self.space.constraints, so_far, self.dense):
                break
            on_start(evaluator.name)
            started = time.perf_counter()
            known = with_modelled_times({**self.previous, **measurements}, self.times)
            found, reason = self._run(evaluator, handle, known)
            seconds[evaluator.name] = time.perf_counter() - started
            measurements |= {name: entry for name, entry in found.items() if not entry.is_partial}
            estimates |= {name: entry for name, entry in found.items() if entry.is_partial}
            if reason is not None:
                return Outcome(measurements, early_stopped=reason, estimates=estimates)
        return Outcome(measurements, estimates=estimates)

    def _run(
        self, evaluator: Evaluator, handle: "PolicyHandle", known: Mapping[str, Measurement]
    ) -> tuple[dict[str, Measurement], str | None]:
        """Run one evaluator, as far as the race or `max_examples` allows.

        Args:
            evaluator: The evaluator.
            handle: The model under the policy.
            known: All that is measured of the policy so far.

        Returns:
            The measurements, and why the policy stops early; None where it does not.
        """
        if self.split == "report" and isinstance(evaluator, RetimingEvaluator):
            return evaluator.visit(handle), None
        if self.split != "search" or not isinstance(evaluator, IncrementalEvaluator):
            return evaluator.measure(handle, self.split), None
        if evaluator is self.guide and evaluator.name not in self.space.evaluate:
            return self._measure_guide(evaluator, handle), None
        found: dict[str, Measurement] = {}
        partial = {name: entry for name, entry in known.items() if entry.is_partial}
        # The rungs are the same with and without racing, so that batches, and with them rounding, are identical.
        fractions = rung_fractions(self.space.search.racing)
        with closing(evaluator.rungs(handle, self.split, fractions, partial)) as rungs:
            for found in rungs:
                reason = self.race.reason_to_stop(known, found) if self.race else None
                if reason:
                    return found, reason
                if self.max_examples is not None and all(entry.n >= self.max_examples for entry in found.values()):
                    break
        return found, None

    def _measure_guide(self, evaluator: IncrementalEvaluator, handle: "PolicyHandle") -> dict[str, Measurement]:
        """The guide's loss on the first `GUIDE_EXAMPLES` examples, without the details of single examples."""
        with closing(evaluator.rungs(handle, "search", rung_fractions(self.space.search.racing))) as rungs:
            found = next(
                rung
                for rung in rungs
                if all(not entry.is_partial or entry.n >= GUIDE_EXAMPLES for entry in rung.values())
            )
        # Without these details the loss counts as measured in full, so it is neither raced nor promoted.
        return {
            name: replace(
                entry, detail={key: value for key, value in entry.detail.items() if key not in EXAMPLE_DETAILS}
            )
            for name, entry in found.items()
        }


@contextmanager
def forward_clock(model: Any) -> Iterator[list[float]]:
    """Measure the seconds of a model's forward passes while the context is open.

    On a GPU, where passes run after the host has submitted them, the time between two events in the GPU's own queue is
    measured, which delays nothing.

    Yields:
        A list that gets one entry, the sum of the seconds, when the context closes.
    """
    import torch

    on_gpu = model.device.type == "cuda"
    seconds: list[float] = []
    marks: list[Any] = []

    def mark(*_: Any) -> None:
        marks.append(torch.cuda.Event(enable_timing=True) if on_gpu else time.perf_counter())
        if on_gpu:
            marks[-1].record()

    hooks = [model.register_forward_pre_hook(mark), model.register_forward_hook(mark)]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()
        # A pass that raised has a start without an end.
        pairs = zip(marks[::2], marks[1::2], strict=False)
        if on_gpu:
            torch.cuda.synchronize(model.device)
            seconds.append(sum(start.elapsed_time(end) for start, end in pairs) / 1e3)
        else:
            seconds.append(sum(end - start for start, end in pairs))
