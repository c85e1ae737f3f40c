"""What a noisy neighbour does to times, and to a search that measures them: `python benchmarks/noisy.py`.

Searches the digits twice for each seed while a process of this benchmark burns a core at random intervals: for
accuracy and FLOPs, and for accuracy, FLOPs and TTFT. Prints, of both, the hypervolume in accuracy and FLOPs alone; of
the second, how many policies of its front have a time that is within its interval when it is measured again; and one
JSON document last. `--quick` tries the script.

`--ratios` measures no searches, but the latency ratios of ten policies of the digits twice, alone and beside the
neighbour, each in rounds of a shuffled order as a search times its front: how far both disagree, whether the order of
the policies stays, and how many intervals hold the quiet ratio. The same of each round's own interval says what the
rounds are for.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from skipsearch import Policy, apply_policy
from skipsearch.evaluators.base import Measurement
from skipsearch.evaluators.latency import LatencyEvaluator, LatencyOptions
from skipsearch.evaluators.subject import Subject, load_subject
from skipsearch.evaluators.timing.rounds import MIN_ROUNDS, merge_rounds
from skipsearch.policies.families.layers import decoder_layers
from skipsearch.search.analysis.study_record import StudyRecord
from skipsearch.search.run import run_study
from skipsearch.search.space.load import load_space
from skipsearch.search.trial.hypervolume import hypervolume_history
from skipsearch.search.trial.pareto import objective_point

PLANE = {"accuracy": "maximize", "prefill_flops": "minimize"}
DISAGREE, ORDER = 0.02, 0.95  # median difference of a ratio, at most; rank correlation of both times, at least
SAME = 0.97  # of the hypervolume without TTFT
HONEST = 0.95  # of the front's times are within their intervals
NEIGHBOUR = """
import random, time
draw = random.Random({seed})
while True:
    until = time.monotonic() + draw.expovariate(1 / {busy})
    while time.monotonic() < until:
        sum(range(10000))
    time.sleep(draw.expovariate(1 / {idle}))
"""


@contextmanager
def neighbour(seed: int, busy: float, idle: float) -> Iterator[None]:
    """A process that burns a core for a while, again and again; seconds are means of exponential times."""
    process = subprocess.Popen([sys.executable, "-c", NEIGHBOUR.format(seed=seed, busy=busy, idle=idle)])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def search(folder: Path, seed: int, timed: bool, arguments: argparse.Namespace) -> StudyRecord:
    """One search of the digits."""
    changes = {"search.seed": str(seed), "search.trials": str(arguments.trials), "workers.count": "1"}
    changes["objectives"] = "{accuracy: maximize, prefill_flops: minimize" + (", ttft_ms: minimize}" if timed else "}")
    loaded = load_space("digits", changes)
    if not timed:
        kept = {name: options for name, options in loaded.space.evaluate.items() if name != "latency"}
        loaded = loaded.model_copy(update={"space": loaded.space.model_copy(update={"evaluate": kept})})
    return run_study(loaded, folder, f"noisy-{seed}", shown=arguments.shown)


def volume(record: StudyRecord) -> float:
    """Hypervolume of what a search found, in accuracy and FLOPs alone."""
    points = [
        objective_point(trial.search, record.dense.search, PLANE) if trial.feasible else None for trial in record.trials
    ]
    return hypervolume_history(points, [*PLANE.values()], [0.0, record.dense.search["prefill_flops"].value])[-1]


def told(record: StudyRecord, seconds: float) -> dict[str, Any]:
    """What is said of one search."""
    found: dict[str, Any] = {
        "hypervolume": volume(record),
        "front": len(record.front) - 1,
        "seconds": round(seconds, 1),
        "answers": record.summary.get("examples"),
    }
    clock = record.clocks.get("ttft_ms")
    if clock is not None and "ttft_ms" in record.objectives:
        found |= {
            "noise": clock.noise, "spread": clock.spread, "predicted_by": clock.cost, "timed_again": clock.again,
            "within": clock.within, "gap": clock.gap, "raw_gap": clock.raw_gap,
            "timed_trials": sum("ttft_ms" not in trial.predicted for trial in record.trials),
        }  # fmt: skip
    return found


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Both searches of every seed."""
    rows = []
    for seed in range(arguments.seeds):
        for timed in (False, True):
            with tempfile.TemporaryDirectory() as folder, neighbour(seed, arguments.busy, arguments.idle):
                begun = time.perf_counter()
                record = search(Path(folder) / "study", seed, timed, arguments)
                rows.append({"seed": seed, "ttft": timed} | told(record, time.perf_counter() - begun))
            print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """One search in words."""
    text = (
        f"seed {row['seed']}  {'with' if row['ttft'] else 'without':7} TTFT  hypervolume {row['hypervolume']:.4f}  "
        f"front {row['front']:2}  {row['seconds']:.0f} s"
    )
    if "within" not in row:
        return text
    gaps = ", ".join(f"{name} {100 * row[key]:+.1f}" for name, key in (("gap", "gap"), ("raw gap", "raw_gap"))
                     if row[key] is not None)  # fmt: skip
    noise = "" if row["noise"] is None else f"  noise {100 * row['noise']:.1f} %"
    return (
        f"{text}{noise}  timed trials {row['timed_trials']}  within {row['within']} of {row['timed_again']}"
        f"  {gaps} points of dense"
    )


def claims(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What should hold, and whether it does."""
    plain, timed = ([row for row in rows if row["ttft"] is kind] for kind in (False, True))
    ratio = sum(row["hypervolume"] for row in timed) / sum(row["hypervolume"] for row in plain)
    again, within = (sum(row[key] for row in timed) for key in ("timed_again", "within"))
    return {
        "hypervolume": {"ratio": ratio, "least": SAME, "holds": ratio >= SAME},
        "intervals": {"within": within, "of": again, "least": HONEST, "holds": within >= HONEST * again},
    }


def ten_policies(layers: int) -> dict[str, Policy]:
    """Policies of several kinds, by what they do: layers from the end, FFNs, attentions, and image tokens."""
    skip = {"attention": "skip", "ffn": "skip"}
    found = {f"skip {count} layers": {layers - 2 - place: skip for place in range(count)} for count in (1, 2, 4, 6)}
    for sublayer in ("ffn", "attention"):
        for count in (3, 8):
            found[f"skip {count} {sublayer}s"] = {2 + place: {sublayer: "skip"} for place in range(count)}
    for ratio in (0.5, 0.1):
        found[f"{ratio:g} of the image from layer 2"] = {layer: {"token_ratio": ratio} for layer in range(2, layers)}
    once = {"score": "norm", "reselect": "once"}
    return {name: Policy.model_validate({"layers": one, "token_selection": once}) for name, one in found.items()}


def measure_rounds(subject: Subject, policies: dict[str, Policy], rounds: int, repeats: int) -> list[dict[str, Any]]:
    """The ratios of all policies over the rounds, each with its interval."""
    evaluator = LatencyEvaluator(LatencyOptions(new_tokens=8, repeats=repeats, warmup=1), subject)
    found: dict[str, list[dict[str, Measurement]]] = {name: [] for name in policies}
    shuffle = random.Random(0)
    for _ in range(rounds):
        for name in shuffle.sample([*policies], len(policies)):
            with apply_policy(subject.model, policies[name]) as handle:
                found[name].append(evaluator.measure(handle, "search"))
    return [
        {"policy": name, "metric": metric, **merge_rounds([one[metric] for one in each]).detail["ratio"],
         "of_rounds": [one[metric].detail["ratio"] for one in each]}
        for name, each in found.items() for metric in evaluator.metrics
    ]  # fmt: skip


def compare_ratios(arguments: argparse.Namespace) -> None:
    """Measure the ratios twice, print both side by side, and what holds."""
    subject = load_subject(load_space("digits").space.model)
    policies = ten_policies(len(decoder_layers(subject.model)))
    policies = dict([*policies.items()][:: 4 if arguments.quick else 1])
    given = (MIN_ROUNDS, 2) if arguments.quick else (arguments.rounds, arguments.repeats)
    quiet = measure_rounds(subject, policies, *given)
    with neighbour(0, arguments.busy, arguments.idle):
        noisy = measure_rounds(subject, policies, *given)
    for one, other in zip(quiet, noisy, strict=True):
        print(f"{one['policy']:32} {one['metric']:8} " + "  ".join(
            f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})" for row in (one, other)))  # fmt: skip
    found = ratio_claims(quiet, noisy)
    for name, claim in found.items():
        print(f"{name}: {json.dumps(claim)}")
    document = {"benchmark": "noisy ratios", "rounds": given[0], "repeats": given[1]}
    print(json.dumps({**document, "quiet": quiet, "noisy": noisy, "claims": found}))


def ratio_claims(quiet: list[dict[str, Any]], noisy: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What should hold of the ratios of both times, and whether it does."""
    pairs = list(zip(quiet, noisy, strict=True))
    differences = [abs(other["value"] / one["value"] - 1) for one, other in pairs]
    held = sum(other["low"] <= one["value"] <= other["high"] for one, other in pairs)
    moments = [held["low"] <= one["value"] <= held["high"] for one, other in pairs for held in other["of_rounds"]]
    widths = statistics.median((other["high"] - other["low"]) / 2 / other["value"] for _, other in pairs)
    ranks = {}
    for metric in ("ttft_ms", "tpot_ms"):
        values = ([row["value"] for row in rows if row["metric"] == metric] for rows in (quiet, noisy))
        ranks[metric] = float(spearmanr(*values).statistic)
    median = statistics.median(differences)
    return {
        "disagreement": {"median": median, "largest": max(differences), "most": DISAGREE, "holds": median <= DISAGREE},
        "order": {**ranks, "least": ORDER, "holds": min(ranks.values()) >= ORDER},
        "intervals": {
            "hold the quiet ratio": held,
            "of": len(pairs),
            "half width": widths,
            "holds": held == len(pairs),
        },
        "intervals of single rounds": {"hold the quiet ratio": sum(moments), "of": len(moments)},
    }


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=80, help="policies of each search")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--busy", type=float, default=2.0, help="mean seconds that the neighbour burns a core")
    parser.add_argument("--idle", type=float, default=3.0, help="mean seconds between")
    parser.add_argument("--ratios", action="store_true", help="compare latency ratios in place of searches")
    parser.add_argument("--rounds", type=int, default=9, help="of each policy, with --ratios")
    parser.add_argument("--repeats", type=int, default=8, help="of each round, with --ratios")
    parser.add_argument("--quick", action="store_true", help="one seed, 14 trials; three policies with --ratios")
    parser.add_argument("--shown", action="store_true", help="show the progress of the searches")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.trials, arguments.seeds = 14, 1
    if arguments.ratios:
        compare_ratios(arguments)
        return
    rows = run(arguments)
    found = claims(rows)
    for name, claim in found.items():
        print(f"{name}: {json.dumps(claim)}")
    print(json.dumps({"benchmark": "noisy", "trials": arguments.trials, "runs": rows, "claims": found}))


if __name__ == "__main__":
    main()
