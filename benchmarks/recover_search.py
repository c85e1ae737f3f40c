"""Are trainings worth their time in a search? `python benchmarks/recover_search.py [--seeds N] [--json FILE]`.

One search of `digits` trains its best policies (`search.recover`). Another of the same seed spends the CPU time of
those trainings on more trials. Its front is trained afterwards, with the same settings and in further time, as
`skipsearch recover` would. So two fronts of trained policies are compared: the policies of one were chosen by what
was measured after training, those of the other before. Accuracy and FLOPs alone, without a bound, in this process.

The hypervolume is that of the front on other questions than the search saw, both objectives in units of the dense
model's, up to an accuracy of 0 and dense's FLOPs. Prints one line a search, the means, and one JSON document last.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from racing_search import Alone, changes, spread

from skipsearch.search.driver.driver import Driver
from skipsearch.search.driver.progress import Progress
from skipsearch.search.space.load import load_space
from skipsearch.search.study.study import SearchStudy
from skipsearch.search.trial.hypervolume import hypervolume
from skipsearch.search.trial.pareto import front_trials
from skipsearch.search.trial.trial_result import TrialResult
from skipsearch.search.workers.dense_probe import probe_dense
from skipsearch.search.workers.evaluate import PolicyEvaluator

LAYERS = "[{range: all, attention: [run, skip], ffn: [run, skip], token_ratio: [1, 0.5, 0.25]}]"
TRAINING = "batch_size: 32, learning_rate: 0.002, data: digits/tasks/digits_train.yaml"
# Trials, questions of the search and of the report, steps of a training, policies to train.
SIZES = (40, 400, 1000, 80, 6)
QUICK = (4, 50, 50, 2, 1)


class Search:
    """One search in a folder of its own.

    Args:
        bench: The model and its evaluators.
        folder: The folder of the study.
        seed: Of the search.
        sizes: As `SIZES`.
    """

    def __init__(self, bench: PolicyEvaluator, folder: Path, seed: int, sizes: Sequence[int]) -> None:
        trials, search, report, steps, top = sizes
        self.bench, self.pool, self.trials = bench, Alone(bench), trials
        self._file = folder / "study.db"
        self._changes = {**changes(trials, search, report), "layers": LAYERS, "search.seed": str(seed)}
        self._recover = f"{{method: lora, steps: {steps}, top: {top}, {TRAINING}}}"

    def open(self, trains: bool) -> tuple[SearchStudy, Driver]:
        """Open the study, which goes on with the trials that it has."""
        recover = {"search.recover": self._recover} if trains else {}
        space = load_space("digits", {**self._changes, "search.trials": str(self.trials), **recover}).space
        self.bench.space = space
        guide = self.bench.guide.name if self.bench.guide else None
        study = SearchStudy(
            self._file, "digits", space, self.bench.num_layers, self._file.exists(),
            probe_dense=lambda: probe_dense(self.bench, space.search.baselines), guide=guide,
        )  # fmt: skip
        return study, Driver(study, self.pool, Progress(self.trials, space.objectives, shown=False))

    def held_out(self, results: Sequence[TrialResult], study: SearchStudy) -> dict[str, Any]:
        """The front on the questions of the report split, after it was confirmed."""
        dense, confirmed = results[0], self.pool.confirmed
        levels = confirmed[dense.policy.fingerprint], dense.search["prefill_flops"].value
        by_number = {result.number: result for result in results}
        points = [
            (confirmed[one.policy.fingerprint] / levels[0], one.search["prefill_flops"].value / levels[1])
            for one in (by_number[number] for number in front_trials(results, study.space.objectives))
        ]
        volume = hypervolume(points, ("maximize", "minimize"), (0.0, 1.0))
        return {"points": sorted(points, reverse=True), "hypervolume": volume}


def seconds_of(action: Callable[[], Any]) -> float:
    """The CPU seconds of this process for an action."""
    started = time.process_time()
    action()
    return time.process_time() - started


def trained(search: Search) -> tuple[dict[str, float], dict[str, Any]]:
    """Search where that is not done, train, confirm: the seconds of both, and the front after the trainings."""
    study, driver = search.open(trains=True)
    training = seconds_of(driver.begin)
    searching = seconds_of(driver.search)
    training += seconds_of(driver.recover)
    driver.confirm()
    return {"search": searching, "training": training}, search.held_out(study.outcomes(), study)


def compared(bench: PolicyEvaluator, seed: int, sizes: Sequence[int]) -> dict[str, Any]:
    """Both searches of a seed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for way in ("recover", "trials"):
            (folder / way).mkdir()
        own = Search(bench, folder / "recover", seed, sizes)
        seconds, front = trained(own)
        other = Search(bench, folder / "trials", seed, sizes)
        other.trials = round(own.trials * (1 + seconds["training"] / seconds["search"]))
        study, driver = other.open(trains=False)
        searching = seconds_of(driver.search)
        driver.confirm()
        before = other.held_out(study.results(), study)
        later, after = trained(other)
    recover = {"trials": own.trials, "seconds": seconds, "after": front}
    return {
        "seed": seed, "recover": recover,
        "trials": {"trials": other.trials, "seconds": {"search": searching}, "before": before, "after": after,
                   "further_seconds": later["training"]},
    }  # fmt: skip


def say(run: dict[str, Any]) -> None:
    """Print the searches of a seed."""
    own, other = run["recover"], run["trials"]
    print(
        f"seed {run['seed']}: {own['trials']} trials and trainings in {sum(own['seconds'].values()):.0f} s: "
        f"{own['after']['hypervolume']:.4f}; {other['trials']} trials in {other['seconds']['search']:.0f} s: "
        f"{other['before']['hypervolume']:.4f}, trained in {other['further_seconds']:.0f} s more: "
        f"{other['after']['hypervolume']:.4f}",
        flush=True,
    )


def main() -> None:
    """Run the seeds that are missing, print the means and one JSON document last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, help="default: 5")
    parser.add_argument("--quick", action="store_true", help="short searches of one seed, to try the script")
    parser.add_argument("--json", type=Path, help="keep the document there, and go on with the one that is there")
    given = parser.parse_args()
    sizes = QUICK if given.quick else SIZES
    found = {"benchmark": "recover_search", "sizes": list(sizes), "runs": []}
    if given.json and given.json.exists():
        found = json.loads(given.json.read_text())
        if found["sizes"] != list(sizes):
            parser.error(f"{given.json} has runs of the sizes {found['sizes']}, expected {list(sizes)}")
    runs = found["runs"]
    bench = PolicyEvaluator(load_space("digits", {**changes(*sizes[:3]), "layers": LAYERS}).space, threads=1)
    for seed in range(given.seeds or (1 if given.quick else 5)):
        if seed not in [run["seed"] for run in runs]:
            runs.append(compared(bench, seed, sizes))
            say(runs[-1])
            if given.json:
                given.json.write_text(json.dumps(found))
    for name, way, stage in (("recover", "recover", "after"), ("more trials", "trials", "before"),
                             ("more trials, then trained", "trials", "after")):  # fmt: skip
        mean, deviation = spread([run[way][stage] for run in runs], "hypervolume")
        print(f"{name}: {mean:.4f}, spread {deviation:.4f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
