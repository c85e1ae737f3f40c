"""Times under load: a policy and the dense model answer the same requests, so many at a time, in turns.

One stream does not show what a server sees: prefills of new requests delay the running ones, and a step of a large
batch costs little more than one of a small batch. So a policy that halves the tokens of a prompt can do less for a
loaded server than for one request, or more.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ...policies.errors import EvaluatorError
from ..base import Measurement, Metric
from ..prompts import fixed_input
from .ratio import RatioInterval, ratio_detail, turn_orders
from .scheduler import Request, Scheduler, answered_alone

if TYPE_CHECKING:
    import numpy as np

    from ...policies.apply import PolicyHandle
    from ..subject import Subject

DRAWS, LEVELS = 1000, (2.5, 97.5)
SYNTHETIC_PROMPTS = 8  # where no examples have prompts
CHECKED, CHECKED_TOKENS = 3, 4  # requests, and tokens of each, that are answered alone too
# By dtype, how far logits may be from those of a request alone, in standard deviations of the logits.
TOLERANCE = {"torch.float32": 0.01}
ROUNDED = 0.3  # of other dtypes, in which batches of other sizes round differently
# What a model raises that has its positions, masks or caches in another way than the scheduler gives them.
UNFIT = (AttributeError, TypeError, ValueError, KeyError, IndexError)

LOAD_METRICS: Mapping[str, Metric] = {
    "ttft_ms_c": Metric("ms", "minimize", "Median time from a request's arrival to its first token, N at a time"),
    "ttft_p95_ms_c": Metric("ms", "minimize", "95th percentile of that time, N requests at a time"),
    "tpot_ms_c": Metric("ms", "minimize", "Median over requests of the mean time for a further token, N at a time"),
    "tpot_p95_ms_c": Metric("ms", "minimize", "95th percentile of that mean, N requests at a time"),
    "throughput_c": Metric("tokens/s", "maximize", "Tokens of answers a second, N requests at a time", "time"),
}


def distinct(values: list[int]) -> list[int]:
    """Refuse a number that is listed twice."""
    if len({*values}) < len(values):
        raise ValueError("found a number twice, expected each once")
    return values


class LoadOptions(BaseModel):
    """How a model is loaded.

    Attributes:
        concurrency: How many requests are in the system at a time: when one ends, the next arrives. Each number is
            measured by itself.
        requests: How many requests count in one run, and at least as many as are in the system. Before them the system
            fills, and after them it drains, which does not count.
        repeats: Runs of each model, in turns.
        max_repeats: Runs after which a `target` of the latency is given up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    concurrency: Annotated[
        list[Annotated[int, Field(ge=1, le=1024, strict=True)]], Field(min_length=1), AfterValidator(distinct)
    ] = [1, 8, 32]
    requests: int = Field(default=16, ge=4)
    repeats: int = Field(default=3, ge=2)
    max_repeats: int = Field(default=12, ge=2)


# What one run measured, by metric without its number: a value for each request that counts, or one in all.
Run = dict[str, list[float]]


class LoadTimer:
    """Measures a policy and the dense model under load.

    Args:
        subject: The model with its prompts.
        options: How it is loaded.
        prompt_tokens: Text tokens of a synthetic prompt.
        new_tokens: Tokens of an answer, on average.
        seed: Of the answers' lengths and of the order.
        target: See `LatencyOptions`.
        synchronize: Waits for the device of a model.
    """

    def __init__(
        self, subject: "Subject", options: LoadOptions, prompt_tokens: int, new_tokens: int, seed: int,
        target: float | None, synchronize: Callable[[Any], None],
    ) -> None:  # fmt: skip
        self._options, self._new_tokens, self._seed, self._target = options, new_tokens, seed, target
        self._synchronize = synchronize
        count = len(subject.prompts) or SYNTHETIC_PROMPTS
        self._prompts = [fixed_input(subject, 1, prompt_tokens, number) for number in range(count)]
        self._checked = False

    def measure(self, handle: "PolicyHandle") -> dict[str, Measurement]:
        """Measure every concurrency.

        Raises:
            EvaluatorError: requests of the model cannot be batched, or would be answered otherwise.
        """
        if not self._checked:
            with handle.dense():
                self._check_answers(handle.model)
            self._checked = True
        self._check_answers(handle.model)
        found: dict[str, Measurement] = {}
        for concurrency in self._options.concurrency:
            found |= self._measured(handle, concurrency)
        return found

    def _measured(self, handle: "PolicyHandle", concurrency: int) -> dict[str, Measurement]:
        """Run both models in turns until the repeats are done, or the intervals are narrow enough."""
        options, orders = self._options, turn_orders(self._seed)
        runs: tuple[list[Run], list[Run]] = ([], [])
        self._repeat(handle, concurrency, islice(orders, options.repeats), runs)
        while self._target is not None and len(runs[0]) < options.max_repeats:
            if all(interval_of(name, *runs).half_width <= self._target for name in ("ttft_ms_c", "throughput_c")):
                break
            self._repeat(handle, concurrency, islice(orders, 1), runs)
        detail = {"concurrency": concurrency, "requests": len(runs[0][0]["ttft_ms_c"]), "new_tokens": self._new_tokens}
        return {f"{name}{concurrency}": summary(name, *runs, detail) for name in LOAD_METRICS}

    def _repeat(
        self, handle: "PolicyHandle", concurrency: int, orders: Iterable[bool], runs: tuple[list[Run], list[Run]]
    ) -> None:
        for policy_first in orders:
            for is_dense in (False, True) if policy_first else (True, False):
                with handle.dense() if is_dense else nullcontext():
                    runs[is_dense].append(self._run(handle.model, concurrency))

    def _run(self, model: Any, concurrency: int) -> Run:
        """Answer the requests of one run, and measure those that count."""
        counted = max(self._options.requests, concurrency)
        requests = [*self.requests(concurrency, counted)]
        Scheduler(model, concurrency, lambda: self._now(model)).run(requests)
        measured = requests[concurrency : concurrency + counted]
        begin, end = measured[0].arrived, requests[concurrency + counted].arrived
        tokens = sum(begin < moment <= end for request in requests for moment in request.times)
        ttft = [(request.times[0] - request.arrived) * 1e3 for request in measured]
        tpot = [(one.times[-1] - one.times[0]) / (one.new_tokens - 1) * 1e3 for one in measured]
        speed = [tokens / (end - begin)]
        values = {"ttft_ms_c": ttft, "ttft_p95_ms_c": ttft, "tpot_ms_c": tpot, "tpot_p95_ms_c": tpot}
        return values | {"throughput_c": speed}

    def requests(self, concurrency: int, counted: int) -> Iterator[Request]:
        """The requests of a run: those that fill the system, those that count, and those while it drains.

        The prompts take turns. The answers have half to one and a half times the usual tokens, and those that fill the
        system end one after the other, because a real load does not begin and end in step.
        """
        draw, usual = random.Random(self._seed), self._new_tokens
        for number in range(concurrency + counted + concurrency):
            length = max(2, usual * (number + 1) // concurrency if number < concurrency else
                         draw.randint((usual + 1) // 2, usual + usual // 2))  # fmt: skip
            yield Request(self._prompts[number % len(self._prompts)], length)

    def _now(self, model: Any) -> float:
        self._synchronize(model)
        return time.perf_counter()

    def _check_answers(self, model: Any) -> None:
        """Answer a few requests together and alone.

        Raises:
            EvaluatorError: the logits differ by more than rounding, or the model does not run so.
        """
        prompts = [self._prompts[number % len(self._prompts)] for number in range(CHECKED)]
        requests = [Request(prompt, CHECKED_TOKENS + number, logits=[]) for number, prompt in enumerate(prompts)]
        try:
            Scheduler(model, CHECKED - 1, time.perf_counter).run(requests)
        except UNFIT as cause:
            what = f"requests to {type(model).__name__} cannot be answered in a batch"
            raise EvaluatorError(what, [f"{type(cause).__name__}: {cause}"], "leave `load` out of latency") from cause
        tolerance = TOLERANCE.get(str(model.dtype), ROUNDED)
        for number, request in enumerate(requests):
            answer, logits = answered_alone(model, request)
            for place, (ours, alone) in enumerate(zip(request.logits or (), logits, strict=True)):
                error = float((ours - alone).abs().max() / alone.std())
                if not error <= tolerance:
                    raise answered_otherwise(model, number, place, error, tolerance)
                if request.tokens[place] != answer[place]:
                    break  # Two tokens were equally good but for rounding; from here on the answers differ.


def answered_otherwise(model: Any, number: int, place: int, error: float, tolerance: float) -> EvaluatorError:
    """The error of a model whose requests are answered otherwise in a batch than alone."""
    return EvaluatorError(
        f"requests to {type(model).__name__} are answered otherwise in a batch than alone",
        [f"request {number}, token {place}: logits differ by {error:.2g} deviations, expected at most {tolerance:g}"],
        "leave `load` out of latency",
    )


def statistic_of(name: str) -> Callable[["np.ndarray"], Any]:
    """What a metric is of the values of its requests, along the last axis."""
    import numpy as np

    return lambda values: np.percentile(values, 95 if "_p95_" in name else 50, axis=-1)


def interval_of(name: str, policy: Sequence[Run], dense: Sequence[Run]) -> RatioInterval:
    """The ratio of a metric to dense, with its interval over bootstrap samples of the runs and of their requests.

    Args:
        name: The metric, without its number.
        policy: The policy's runs.
        dense: The dense model's, each made next to that in the same place.
    """
    import numpy as np

    draw, statistic = np.random.default_rng(0), statistic_of(name)
    both = np.array([[run[name] for run in runs] for runs in (policy, dense)])
    _, runs, requests = both.shape
    chosen = draw.integers(runs, size=(DRAWS, runs, 1)), draw.integers(requests, size=(DRAWS, runs, requests))
    ours, theirs = (statistic(one[chosen].reshape(DRAWS, -1)) for one in both)
    low, high = np.percentile(ours / theirs, LEVELS)
    value = statistic(both[0].ravel()) / statistic(both[1].ravel())
    return RatioInterval(float(value), float(low), float(high))


def summary(name: str, policy: Sequence[Run], dense: Sequence[Run], detail: Mapping[str, Any]) -> Measurement:
    """One metric of both models; for the arguments see `interval_of`."""
    import numpy as np

    statistic = statistic_of(name)
    ours, theirs = ([float(statistic(np.array(run[name]))) for run in runs] for runs in (policy, dense))
    values = [float(statistic(np.concatenate([run[name] for run in runs]))) for runs in (policy, dense)]
    quartiles = statistics.quantiles(ours, n=4, method="inclusive")
    return Measurement(
        values[0],
        n=len(ours),
        dense=values[1],
        iqr=quartiles[2] - quartiles[0],
        detail={
            **detail,
            **ratio_detail(interval_of(name, policy, dense), ours, theirs),
            "repeats_ms" if "_ms_" in name else "repeats": ours,
            "dense_repeats_ms" if "_ms_" in name else "dense_repeats": theirs,
        },
    )
