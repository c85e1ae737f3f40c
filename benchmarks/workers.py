"""Whether many workers ever wait for the search: `python benchmarks/workers.py`.

The real driver, study and sampler, with workers that sleep instead of measuring: what is lost is what choosing the next
policy and writing the last one down take. Sleeps are drawn evenly between half and one and a half times the mean, so
that workers come back at any time. Prints what share of the time workers were busy, from when all had their first
policy to when the last one was given out, how long the study took to propose at the end, and one JSON document last.
`--seconds 0 --rounds 31` comes to 2,000 finished trials without the sleep, `--space ratios` has 12 choices a layer, and
`--space keys` four keys a layer.
"""

import argparse
import json
import queue
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from search_problems import Planted, PlantedRatios

from skipsearch.evaluators.base import Measurement
from skipsearch.policies.choice import CHOICES, LayerChoice
from skipsearch.policies.policy import Policy
from skipsearch.search.driver.driver import Driver
from skipsearch.search.driver.progress import Progress
from skipsearch.search.space.load import load_space
from skipsearch.search.study.study import SearchStudy
from skipsearch.search.trial.outcome import Outcome

CHOICE_NAMES = ("keep", "skip_attention", "skip_ffn", "skip_layer", "parallel")
KINDS = [CHOICES[name] for name in CHOICE_NAMES]
LAST = 100  # proposals whose time is told
SHARES = "[0.75, 0.5, 0.25]"
RULES = {
    "choices": f"choices: [{', '.join(CHOICE_NAMES)}]",
    "ratios": f"choices: [keep, skip_attention, skip_ffn, {{token_ratio: {SHARES}}}, {{ffn_ratio: {SHARES}}}, "
    f"{{head_ratio: {SHARES}}}]",
    "keys": "attention: [run, skip], ffn: [run, skip], token_ratio: [1, 0.5, 0.25], ffn_ratio: [1, 0.75, 0.5]",
}
SPACE = {
    "evaluate": "{accuracy: {tasks: [none]}, flops: }",
    "objectives": "{accuracy: maximize, prefill_flops: minimize}",
    "constraints": "{}",
    "search.start": "none",
}

Measure = Callable[[Policy], tuple[float, float]]


def of_choices(layers: int) -> Measure:
    """Loss and cost of policies of the five choices, planted with interactions."""
    problem = Planted(layers, layers)

    def measure(policy: Policy) -> tuple[float, float]:
        code = np.array([KINDS.index(choice) for choice in policy.choices(layers)])
        return problem.measure(code), float(problem.costs[np.arange(layers), code].sum())

    return measure


def of_shares(layers: int) -> Measure:
    """Loss and cost of policies whose layers leave out sublayers and shares, planted as sums and products."""
    alone = PlantedRatios(layers, layers).alone

    def parts(choice: LayerChoice) -> list[int]:
        shares = (choice.token_ratio, choice.ffn_ratio, choice.head_ratio)
        found = [3 * number + round(4 * (1 - share)) + 2 for number, share in enumerate(shares) if share is not None]
        return [*found, *([1] if choice.attention == "skip" else []), *([2] if choice.ffn == "skip" else [])]

    def cost(choice: LayerChoice) -> float:
        attention = 0.0 if choice.attention == "skip" else choice.head_ratio or 1.0
        ffn = 0.0 if choice.ffn == "skip" else choice.ffn_ratio or 1.0
        return (attention + 2 * ffn) / 3 * (choice.token_ratio or 1.0)

    def measure(policy: Policy) -> tuple[float, float]:
        choices = policy.choices(layers)
        loss = sum(float(alone[layer, parts(choice)].sum()) for layer, choice in enumerate(choices))
        return loss, sum(map(cost, choices)) / layers

    return measure


class Sleepers:
    """A pool whose workers sleep.

    Args:
        size: How many.
        measure: Gives what a policy would lose and cost.
        mean: Seconds of sleep.
        warmup: Jobs before the clock starts.
    """

    shares_device = False

    def __init__(self, size: int, measure: Measure, mean: float, warmup: int) -> None:
        self.size = self.devices = size
        self._measure, self._mean, self._warmup = measure, mean, warmup
        self._draw = np.random.default_rng(0)
        self._done: queue.Queue[tuple[Any, float]] = queue.Queue()
        self.busy = 0
        self.spans: list[tuple[float, float]] = []

    @property
    def has_idle(self) -> bool:
        """True where a worker waits."""
        return self.busy < self.size

    def submit(self, job: Any) -> None:
        """Let a worker sleep."""
        self.busy += 1
        seconds = self._mean * self._draw.uniform(0.5, 1.5)
        begin = time.monotonic()
        self.spans.append((begin, begin + seconds))
        threading.Timer(seconds, self._done.put, [(job, seconds)]).start()

    def next(self, until: float | None = None) -> tuple[Any, Outcome]:
        """Wait for a worker to wake up."""
        job, seconds = self._done.get()
        self.busy -= 1
        loss, cost = self._measure(job.policy)
        found = {"accuracy": Measurement(float(np.exp(-loss))), "prefill_flops": Measurement(cost)}
        return job, Outcome(found, {"total": seconds})

    def busy_share(self) -> float:
        """Of the time from when all had a policy to when the last was given out, the share that workers were busy."""
        begins = [begin for begin, _ in self.spans]
        first, last = begins[self._warmup], begins[-1]
        slept = sum(max(0.0, min(end, last) - max(begin, first)) for begin, end in self.spans)
        return slept / self.size / max(last - first, 1e-9)


class Clock:
    """Times a function.

    Args:
        function: The function.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def __call__(self) -> Any:
        """What the function gives."""
        wall, cpu = time.perf_counter(), time.process_time()
        found = self._function()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)
        return found


def measured(size: int, layers: int, mean: float, rounds: int, kind: str) -> dict[str, Any]:
    """A search by so many sleeping workers, each of which gets about so many policies."""
    warmup = 2 * size
    rules = f"[{{range: all, {RULES[kind]}}}]"
    changes = {**SPACE, "layers": rules, "search.trials": str(warmup + rounds * size)}
    space = load_space("digits", changes).space
    with tempfile.TemporaryDirectory() as folder:
        study = SearchStudy(Path(folder) / "study.db", "sleep", space, layers)
        pool: Any = Sleepers(size, (of_choices if kind == "choices" else of_shares)(layers), mean, warmup)
        silent = Progress(space.search.trials, space.objectives, shown=False)
        asking: Any = Clock(study.ask)
        study.ask = asking  # type: ignore[method-assign]
        begin = time.process_time()
        Driver(study, pool, silent).search()
        spent = (time.process_time() - begin) / space.search.trials
        fingerprints = [record.policy.fingerprint for record in study.results()]
    return {
        "workers": size,
        "layers": layers,
        "mean_sleep_s": mean,
        "trials": len(fingerprints),
        "different": len(set(fingerprints)),
        "busy_share": pool.busy_share(),
        "cpu_seconds_per_trial": spent,
        "propose_seconds": statistics.median(asking.wall[-LAST:]),
        "propose_cpu_seconds": statistics.median(asking.cpu[-LAST:]),
    }


def main(given: Sequence[str] | None = None) -> None:
    """Sleep, print a table and one JSON document last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 30.0], help="mean sleep")
    parser.add_argument("--rounds", type=int, default=6, help="policies a worker gets while the clock runs")
    parser.add_argument("--space", choices=RULES, default="choices", help="what each layer may do")
    parser.add_argument("--quick", action="store_true", help="few workers and short sleeps, to try the script")
    options = parser.parse_args(given)
    sleeps, size, layers, rounds = options.seconds, options.workers, options.layers, options.rounds
    if options.quick:
        sleeps, size, layers, rounds = [0.5], 4, 8, 2
    rows = [measured(size, layers, mean, rounds, options.space) for mean in sleeps]
    print("workers  layers  mean sleep  trials  different  busy     CPU a trial  propose, CPU of it")
    for row in rows:
        print(
            f"{row['workers']:7}{row['layers']:8}{row['mean_sleep_s']:10.1f} s{row['trials']:8}{row['different']:11}"
            f"{row['busy_share']:7.1%}{row['cpu_seconds_per_trial'] * 1e3:11.0f} ms"
            f"{row['propose_seconds'] * 1e3:9.0f} ms{row['propose_cpu_seconds'] * 1e3:6.0f} ms"
        )
    print(json.dumps({"benchmark": "workers", "rows": rows}))


if __name__ == "__main__":
    main()
