"""The latency evaluator: wall-clock time to the first token and between tokens, interleaved with the dense model's.

The speed of a machine drifts with heat, throttling and other load. So every repeat times the policy and the dense model
directly one after the other, in alternating order. Trials are compared by the ratio of the two medians, not by
milliseconds.
"""

import gc
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from .base import Measurement, Metric, Options, Split
from .prompts import PromptOptions, describe_input, fixed_input, generate

if TYPE_CHECKING:
    from torch import Tensor

    from ..policies.apply import PolicyHandle
    from .subject import Subject


VISIT_REPEATS = 2  # the policy goes first in one of them, dense in the other


class LatencyOptions(PromptOptions):
    """Options of the latency evaluator.

    Attributes:
        batch_size: Number of equal prompts in the batch.
        new_tokens: Number of tokens to generate; the first ends `ttft_ms`, the others give `tpot_ms`.
        repeats: Number of timed generations of each model; the median is reported.
        warmup: Number of generations of each model before them, which are not timed.
        threads: CPU threads of torch during the measurement; None leaves them as they are.
    """

    batch_size: int = Field(default=1, ge=1)
    new_tokens: int = Field(default=32, ge=2)
    repeats: int = Field(default=5, ge=1)
    warmup: int = Field(default=2, ge=0)
    threads: int | None = Field(default=None, ge=1)


@dataclass
class Timings:
    """The times of one model's repeats, in milliseconds."""

    ttft: list[float] = field(default_factory=list)
    tpot: list[float] = field(default_factory=list)


class Stopwatch:
    """A streamer that records when each token is on the CPU; transformers passes it the prompt first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """Record the time, in seconds."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Do nothing at the end of a generation."""


class LatencyEvaluator:
    """Times greedy generation from one fixed prompt, images included."""

    name: ClassVar[str] = "latency"
    options: ClassVar[type[Options]] = LatencyOptions
    metrics: ClassVar[Mapping[str, Metric]] = {
        "ttft_ms": Metric("ms", "minimize", "Request to first token, vision tower included; median of the repeats"),
        "tpot_ms": Metric("ms", "minimize", "Median decode step of a generation; median of the repeats"),
    }
    cost: ClassVar[int] = 10
    exclusive: ClassVar[bool] = True
    splits: ClassVar[bool] = False

    def __init__(self, options: LatencyOptions, subject: "Subject") -> None:
        self._options = options
        self._subject = subject
        self._input: dict[str, Tensor] | None = None

    def measure(self, handle: "PolicyHandle", split: Split) -> dict[str, Measurement]:
        """Time the policy and the dense model in turns; `detail` has all repeats of both."""
        return self._timed(handle, self._options.warmup, self._options.repeats)

    def visit(self, handle: "PolicyHandle") -> dict[str, Measurement]:
        """Time the policy and the dense model briefly, each of them first once."""
        return self._timed(handle, min(1, self._options.warmup), VISIT_REPEATS)

    def _timed(self, handle: "PolicyHandle", warmup: int, repeats: int) -> dict[str, Measurement]:
        options = self._options
        if self._input is None:
            self._input = fixed_input(self._subject, options.batch_size, options.prompt_tokens)
        policy, dense = Timings(), Timings()
        with stable_timing(options.threads):
            for turn in range(-warmup, repeats):
                for timings in (policy, dense) if turn % 2 == 0 else (dense, policy):
                    with handle.dense() if timings is dense else nullcontext():
                        ttft, tpot = self._time(handle.model, self._input)
                    if turn >= 0:
                        timings.ttft.append(ttft)
                        timings.tpot.append(tpot)
        detail = {
            "batch_size": options.batch_size,
            "new_tokens": options.new_tokens,
            "prompt_tokens": self._input["input_ids"].shape[1],
            "prompt": describe_input(self._subject, self._input),
        }
        return {
            "ttft_ms": summary(policy.ttft, dense.ttft, detail),
            "tpot_ms": summary(policy.tpot, dense.tpot, detail),
        }

    def _time(self, model: Any, inputs: dict[str, "Tensor"]) -> tuple[float, float]:
        """Milliseconds to the first token, and the median of the decode steps after it."""
        watch = Stopwatch()
        synchronize(model)
        start = time.perf_counter()
        generate(model, inputs, self._options.new_tokens, streamer=watch)
        tokens = watch.times[1:]
        steps = [later - earlier for earlier, later in zip(tokens, tokens[1:], strict=False)]
        return (tokens[0] - start) * 1e3, statistics.median(steps) * 1e3


def summary(policy: list[float], dense: list[float], detail: Mapping[str, Any]) -> Measurement:
    """The medians of both models, and the interquartile range of the policy's times."""
    low, _, high = statistics.quantiles(policy, n=4, method="inclusive") if len(policy) > 1 else (policy[0],) * 3
    return Measurement(
        statistics.median(policy),
        n=len(policy),
        dense=statistics.median(dense),
        iqr=high - low,
        detail={**detail, "repeats_ms": policy, "dense_repeats_ms": dense},
    )


def synchronize(model: Any) -> None:
    """Wait until a GPU has finished its queue."""
    import torch

    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


@contextmanager
def stable_timing(threads: int | None) -> Iterator[None]:
    """Set the number of threads, and disable garbage collection, whose pauses would be timed."""
    import torch

    before, collecting = torch.get_num_threads(), gc.isenabled()
    gc.collect()
    gc.disable()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if collecting:
            gc.enable()
