"""The latency evaluator: wall-clock time to the first token and between tokens, interleaved with the dense model's.

The speed of a machine drifts with heat, throttling and other load. So every repeat times the policy and the dense model
directly one after the other, in alternating order. Trials are compared by the ratio of the two medians, not by
milliseconds. With a `target`, repeats go on until the interval of that ratio is narrow enough.
"""

import gc
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from ..policies.errors import EvaluatorError
from .base import Measurement, Metric, Options, Split
from .prompts import PromptOptions, describe_input, fixed_input
from .timing.load import LOAD_METRICS, LoadOptions, LoadTimer
from .timing.modes import PLAIN_STEPS, Decoder, Mode, decoders
from .timing.ratio import RatioInterval, median_of_ratios, ratio_detail, ratio_interval, ratio_of_medians, turn_orders

if TYPE_CHECKING:
    from torch import Tensor

    from ..policies.apply import PolicyHandle
    from .subject import Subject


VISIT_REPEATS = 2  # the policy goes first in one of them, dense in the other
DENSE = 1  # the place of the dense model beside the policy
BLOCK = 4  # repeats between two looks at the interval


class LatencyOptions(PromptOptions):
    """Options of the latency evaluator.

    Attributes:
        batch_size: Number of equal prompts in the batch.
        new_tokens: Number of tokens to generate; the first ends `ttft_ms`, the others give `tpot_ms`.
        repeats: Number of timed generations of each model; the median is reported.
        target: How narrow the 95 % interval of the ratio to dense must become: half of its width, as a share of the
            ratio. Repeats go on, in a random order, until that of every time is; None stops after `repeats`.
        max_repeats: Number of repeats after which a target that was not reached is given up, which is said.
        seed: Of the random order.
        warmup: Number of generations of each model before them, which are not timed.
        threads: CPU threads of torch during the measurement; None leaves them as they are.
        mode: How the steps after the prompt run; see `timing.modes`.
        load: Measure under load too, with a small continuous batch scheduler; None does not.
    """

    batch_size: int = Field(default=1, ge=1)
    new_tokens: int = Field(default=32, ge=2)
    repeats: int = Field(default=5, ge=1)
    target: float | None = Field(default=None, gt=0, lt=1, exclude_if=lambda target: target is None)
    max_repeats: int = Field(default=60, ge=2)
    seed: int = Field(default=0, ge=0)
    warmup: int = Field(default=2, ge=0)
    threads: int | None = Field(default=None, ge=1)
    mode: Mode = Field(default="eager", exclude_if=lambda mode: mode == "eager")
    load: LoadOptions | None = Field(default=None, exclude_if=lambda load: load is None)

    @model_validator(mode="after")
    def _check_repeats(self) -> "LatencyOptions":
        if self.target is not None and self.max_repeats < self.repeats:
            raise ValueError(f"max_repeats is {self.max_repeats}, expected at least `repeats`, {self.repeats}")
        if self.mode == "captured" and self.new_tokens < PLAIN_STEPS + 4:
            raise ValueError(f"new_tokens is {self.new_tokens}, expected at least {PLAIN_STEPS + 4} in mode captured")
        if self.mode != "eager" and self.load is not None:
            raise ValueError(
                f"found mode {self.mode} beside load, which runs batches of changing shapes: leave one out"
            )
        return self


@dataclass
class Timings:
    """The times of one model's repeats, in milliseconds."""

    ttft: list[float] = field(default_factory=list)
    tpot: list[float] = field(default_factory=list)

    def add(self, ttft: float, tpot: float) -> None:
        """Add the times of one repeat."""
        self.ttft.append(ttft)
        self.tpot.append(tpot)


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
    numbered: ClassVar[Mapping[str, Metric]] = LOAD_METRICS
    cost: ClassVar[int] = 10
    exclusive: ClassVar[bool] = True
    splits: ClassVar[bool] = False

    def __init__(self, options: LatencyOptions, subject: "Subject") -> None:
        self._options = options
        self._subject = subject
        self._input: dict[str, Tensor] | None = None
        if options.mode == "captured" and subject.model.device.type != "cuda":
            found = f"the model is on {subject.model.device}, expected a CUDA device"
            hint = "write `mode: compiled` or `mode: eager`"
            raise EvaluatorError("only a GPU decodes in mode captured", [found], hint)
        self._load = None if options.load is None else load_timer(options, options.load, subject)

    @staticmethod
    def numbers(options: Mapping[str, Any]) -> list[int]:
        """The numbers of its numbered metrics: how many requests at a time; from options that may have mistakes."""
        load = options.get("load")
        found = load.get("concurrency", LoadOptions().concurrency) if isinstance(load, Mapping) else []
        return [number for number in found if isinstance(number, int)] if isinstance(found, list) else []

    def measure(self, handle: "PolicyHandle", split: Split) -> dict[str, Measurement]:
        """Time the policy and the dense model in turns; `detail` has all repeats of both."""
        found = self._timed(handle, self._options.warmup, self._options.repeats, self._options.target)
        if self._load is None:
            return found
        with stable_timing(self._options.threads):
            return found | self._load.measure(handle)

    def visit(self, handle: "PolicyHandle") -> dict[str, Measurement]:
        """Time the policy and the dense model briefly, each of them first once."""
        return self._timed(handle, min(1, self._options.warmup), VISIT_REPEATS)

    def _timed(
        self, handle: "PolicyHandle", warmup: int, repeats: int, target: float | None = None
    ) -> dict[str, Measurement]:
        options, inputs = self._options, self._fixed_input()
        policy, dense = times = Timings(), Timings()
        warm, orders = turn_orders(None), turn_orders(None if target is None else options.seed)
        mode = decoders(handle, options.mode, inputs, options.new_tokens)
        with stable_timing(options.threads), mode as pair:
            # The turns of the warm-up end before the one that the timed repeats begin with.
            self._repeat(handle, pair, islice(warm, warmup % 2, warmup % 2 + warmup), (Timings(), Timings()))
            self._repeat(handle, pair, islice(orders, repeats), times)
            while target is not None and not narrow(policy, dense, target):
                block = min(BLOCK, options.max_repeats - len(policy.ttft))
                if block <= 0:
                    break
                self._repeat(handle, pair, islice(orders, block), times)
        detail = {
            **mode_detail(*pair),
            "batch_size": options.batch_size,
            "new_tokens": options.new_tokens,
            "prompt_tokens": inputs["input_ids"].shape[1],
            "prompt": describe_input(self._subject, inputs),
        }
        return {
            "ttft_ms": summary(policy.ttft, dense.ttft, detail, target),
            "tpot_ms": summary(policy.tpot, dense.tpot, detail, target),
        }

    def _fixed_input(self) -> "dict[str, Tensor]":
        """The input, made on first use."""
        if self._input is None:
            self._input = fixed_input(self._subject, self._options.batch_size, self._options.prompt_tokens)
        return self._input

    def _repeat(
        self,
        handle: "PolicyHandle",
        pair: tuple[Decoder, Decoder],
        orders: Iterable[bool],
        times: tuple[Timings, Timings],
    ) -> None:
        """Time both models once for each entry of `orders`, the policy first where it is true.

        Args:
            handle: The model under the policy.
            pair: The decoders of the policy and of the dense model.
            orders: One entry a repeat.
            times: Of the policy and of the dense model; the new ones are added.
        """
        for policy_first in orders:
            for model, timings in enumerate(times) if policy_first else reversed([*enumerate(times)]):
                with handle.dense() if model == DENSE else nullcontext():
                    timings.add(*self._time(handle.model, pair[model], self._fixed_input()))

    def _time(self, model: Any, decoder: Decoder, inputs: dict[str, "Tensor"]) -> tuple[float, float]:
        """Milliseconds to the first token, and the median of the decode steps after it."""
        watch = Stopwatch()
        synchronize(model)
        start = time.perf_counter()
        decoder.generate(model, inputs, self._options.new_tokens, streamer=watch)
        tokens = watch.times[1:]
        steps = [later - earlier for earlier, later in zip(tokens, tokens[1:], strict=False)]
        return (tokens[0] - start) * 1e3, statistics.median(steps[decoder.untimed_steps :]) * 1e3


def load_timer(options: LatencyOptions, load: LoadOptions, subject: "Subject") -> LoadTimer:
    """What measures under load, with the prompts, the answers and the target of the latency."""
    tokens = options.prompt_tokens, options.new_tokens
    return LoadTimer(subject, load, *tokens, options.seed, options.target, synchronize)


def mode_detail(policy: Decoder, dense: Decoder) -> dict[str, Any]:
    """The mode of a measurement, with what compiling took in seconds; nothing in mode eager."""
    if policy.mode == "eager":
        return {}
    compiled = {"compile_s": policy.compile_s + dense.compile_s, "graphs": policy.graphs, "dense_graphs": dense.graphs}
    return {"mode": policy.mode, **(compiled if policy.mode == "compiled" else {})}


def narrow(policy: Timings, dense: Timings, target: float) -> bool:
    """True where the intervals of both times' ratios are narrow enough."""
    pairs = (policy.ttft, dense.ttft), (policy.tpot, dense.tpot)
    return all(ratio_interval(ours, theirs).half_width <= target for ours, theirs in pairs)


def summary(
    policy: list[float], dense: list[float], detail: Mapping[str, Any], target: float | None = None
) -> Measurement:
    """One time of both models, with the interval of its ratio and the interquartile range of the policy's times.

    Args:
        policy: The policy's times.
        dense: The dense model's, in the same order.
        detail: Further values.
        target: As in the options. With one, the policy's time is the median of the paired ratios times dense's median,
            so that it does not follow the drift of the machine.
    """
    low, _, high = statistics.quantiles(policy, n=4, method="inclusive") if len(policy) > 1 else (policy[0],) * 3
    reference = statistics.median(dense)
    interval = ratio_interval(policy, dense, ratio_of_medians if target is None else median_of_ratios)
    certainty = ratio_detail(interval, policy, dense)
    if target is not None and interval.half_width > target:
        certainty["warnings"] = {**certainty.get("warnings", {}), "target": missed(interval, target, len(policy))}
    return Measurement(
        statistics.median(policy) if target is None else interval.value * reference,
        n=len(policy),
        dense=reference,
        iqr=high - low,
        detail={**detail, **certainty, "repeats_ms": policy, "dense_repeats_ms": dense},
    )


def missed(interval: RatioInterval, target: float, repeats: int) -> str:
    """Says that an interval is wider than it should be."""
    width = f"±{100 * interval.half_width:.1f} %"
    return f"its ratio is known to {width} after {repeats} repeats (max_repeats), the target is ±{100 * target:g} %"


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
