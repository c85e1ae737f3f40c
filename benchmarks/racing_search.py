"""What racing spares a whole search, and what it costs: `python benchmarks/racing_search.py [--seeds N]`.

The real driver, study, sampler and model of `digits`, in this process, once with all questions for every policy and
once in a race; accuracy and FLOPs alone, without a bound. A sampler that learns from few answers proposes other
policies, which a given list of candidates (`racing.py`) does not show. The hypervolume is that of the front on other
questions than the search saw, both objectives in units of the dense model's, up to an accuracy of 0 and dense's FLOPs.

Prints one line a search, the means and the spread over seeds, and one JSON document last.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skipsearch.search.driver.driver import Driver
from skipsearch.search.driver.progress import Progress
from skipsearch.search.guide.guide import Guide
from skipsearch.search.space.load import load_space
from skipsearch.search.space.space import Space
from skipsearch.search.study.study import SearchStudy
from skipsearch.search.trial.hypervolume import hypervolume
from skipsearch.search.trial.outcome import Outcome
from skipsearch.search.trial.pareto import front_trials
from skipsearch.search.trial.trial_result import TrialResult
from skipsearch.search.workers.dense_probe import probe_dense
from skipsearch.search.workers.evaluate import PolicyEvaluator
from skipsearch.testing.pool import LocalPool

WAYS = ("none", "{}")
SIZES = (5, 80, 400, 1000)  # seeds, trials, and questions of the search and of the report
QUICK = (1, 6, 100, 50)


def changes(trials: int, search: int, report: int) -> dict[str, str]:
    """What is set in the space of `digits`."""
    tasks = [
        f"{split}: {{tasks: [digits/tasks/digits_{split}.yaml], limit: {limit}}}"
        for split, limit in (("search", search), ("report", report))
    ]
    return {
        "evaluate": f"{{accuracy: {{{', '.join(tasks)}, batch_size: 50}}, flops: }}",
        "objectives": "{accuracy: maximize, prefill_flops: minimize}",
        "constraints": "{}",
        "search.guide": "none",
        "search.trials": str(trials),
    }


class Alone(LocalPool):
    """A pool of one worker that remembers the accuracies on the report split.

    Args:
        bench: It measures in this process.

    Attributes:
        confirmed: By fingerprint, the accuracy on the report split.
    """

    def __init__(self, bench: PolicyEvaluator) -> None:
        super().__init__(bench)
        self.confirmed: dict[str, float] = {}

    def next(self, until: float | None = None) -> tuple[Any, Outcome] | None:
        """Do a job, and remember what it confirmed."""
        found = super().next(until)
        if found is not None and found[0].split == "report":
            self.confirmed[found[0].policy.fingerprint] = found[1].measurements["accuracy"].value
        return found


def trials_of(space: Space, bench: PolicyEvaluator, pool: Any) -> tuple[dict[int, TrialResult], Guide | None]:
    """Search, confirm the front, and return all trials by number and the loss that guided the search."""
    guide = bench.guide.name if bench.guide else None
    with tempfile.TemporaryDirectory() as folder:
        study = SearchStudy(
            Path(folder) / "study.db",
            "race",
            space,
            bench.num_layers,
            probe_dense=lambda: probe_dense(bench, space.search.baselines),
            guide=guide,
        )
        driver = Driver(study, pool, Progress(space.search.trials, space.objectives, shown=False))
        driver.search()
        driver.confirm()
        return {record.number: record for record in study.results()}, study.guide


def searched(space: Space, bench: PolicyEvaluator) -> dict[str, Any]:
    """One search, and its front on held-out questions."""
    bench.space = space
    pool = Alone(bench)
    records, _ = trials_of(space, bench, pool)
    dense, front = records[0], front_trials([*records.values()], space.objectives)
    levels = pool.confirmed[dense.policy.fingerprint], dense.search["prefill_flops"].value
    points = [
        (pool.confirmed[record.policy.fingerprint] / levels[0], record.search["prefill_flops"].value / levels[1])
        for record in (records[number] for number in front)
    ]
    known = [{**record.estimates, **record.search}["accuracy"].n for record in records.values()]
    return {
        "answers": sum(known),
        "whole": known.count(known[0]),
        "front": len(front),
        "held_out": hypervolume(points, ("maximize", "minimize"), (0.0, 1.0)),
    }


def spread(runs: Sequence[dict[str, Any]], name: str) -> tuple[float, float]:
    """Mean and standard deviation over seeds."""
    values = [run[name] for run in runs]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def main() -> None:
    """Search, print a table and one JSON document last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, help="default: 5")
    parser.add_argument("--quick", action="store_true", help="one short search of each kind, to try the script")
    given = parser.parse_args()
    seeds, *sizes = QUICK if given.quick else SIZES
    space = changes(*sizes)
    bench = PolicyEvaluator(load_space("digits", space).space, threads=1)
    print("racing  seed  answers  in full  front  held-out hypervolume")
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for seed in range(given.seeds or seeds):
        for way, found in runs.items():
            raced = {**space, "search.racing": way, "search.seed": str(seed)}
            found.append(searched(load_space("digits", raced).space, bench))
            answers, whole, front, volume = found[-1].values()
            print(f"{way:6}{seed:6}{answers:9,}{whole:9}{front:7}{volume:8.4f}", flush=True)
    for way, found in runs.items():
        mean, deviation = spread(found, "held_out")
        print(f"{way}: {spread(found, 'answers')[0]:,.0f} answers, {mean:.4f}, spread {deviation:.4f}")
    print(json.dumps({"benchmark": "racing_search", "trials": sizes[0], "runs": runs}))


if __name__ == "__main__":
    main()
