"""How good a front each search strategy has after how many evaluations: `python benchmarks/search.py`.

Hypervolume of loss and cost up to a loss of 1 and the cost of dense, each policy counted once; of models, the front is
measured again on held-out examples. Prints a table a problem, and one JSON document last.
"""

import argparse
import contextlib
import itertools
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from search_problems import CORNER, Codes, Decoder, Digits, Planted

from skipsearch.search.additive import additive_front
from skipsearch.search.front import history, hypervolume, pareto
from skipsearch.search.skipsampler import SkipSampler
from skipsearch.search.strategy import PARTS

DIRECTIONS = ("minimize", "minimize")
CHECKPOINTS = (25, 50, 100, 200, 300, 500, 1000)


class Spent(Exception):
    """The budget is used up."""


class Ledger:
    """Measures policies, each once, until the budget is spent."""

    def __init__(self, problem: Any, budget: int) -> None:
        self.problem, self.budget = problem, budget
        self.points: dict[bytes, tuple[float, float]] = {}
        self.codes: list[Codes] = []

    def __call__(self, code: Codes) -> tuple[float, float]:
        """The loss and the cost of a policy."""
        code = np.asarray(code, np.int16)
        key = code.tobytes()
        if key not in self.points:
            if len(self.codes) == self.budget:
                raise Spent
            cost = float(self.problem.costs[np.arange(len(code)), code].sum())
            self.points[key] = self.problem.measure(code), cost
            self.codes.append(code)
        return self.points[key]

    def curve(self) -> list[float]:
        """Hypervolume after each evaluation; the last one goes on where a strategy ended by itself."""
        found = history(list(self.points.values()), DIRECTIONS, CORNER)
        return found + found[-1:] * (self.budget - len(found))

    def held_out(self, count: int) -> float:
        """Hypervolume of the front after so many evaluations, on other examples."""
        points = list(self.points.values())[:count]
        front = [self.codes[index] for index in pareto(points, DIRECTIONS)]
        again = [(self.problem.held_out(code), self.points[code.tobytes()][1]) for code in front]
        return hypervolume(again, DIRECTIONS, CORNER)


def asked(sampler: Callable[[Any, int, int], Any]) -> Callable[[Ledger, int], None]:
    """A search by an Optuna sampler; repeated policies are told and not counted, but not for ever."""

    def search(ledger: Ledger, seed: int) -> None:
        problem = ledger.problem
        names = [f"layer_{layer:02}" for layer in range(problem.layers)]
        space = {name: optuna.distributions.CategoricalDistribution(list(range(problem.choices))) for name in names}
        study = optuna.create_study(directions=DIRECTIONS, sampler=sampler(problem, seed, ledger.budget))
        for _ in range(3 * ledger.budget):
            trial = study.ask(space)
            study.tell(trial, ledger(np.array([trial.params[name] for name in names])))

    return search


def ours(parts: tuple[str, ...] = PARTS, **options: Any) -> Callable[[Ledger, int], None]:
    """Our sampler, with some of its parts."""

    def sampler(problem: Any, seed: int, budget: int) -> SkipSampler:
        neutral = {f"layer_{layer:02}": 0 for layer in range(problem.layers)}
        return SkipSampler(neutral, seed=seed, parts=parts, **({"reference": CORNER} | options))

    return asked(sampler)


def stratified(ledger: Ledger, seed: int) -> None:
    """Random policies, evenly over how many layers differ from dense."""
    draw, problem = np.random.default_rng(seed), ledger.problem
    for _ in range(10 * ledger.budget):
        other = draw.integers(1, problem.choices, problem.layers)
        ledger(np.where(draw.random(problem.layers) < draw.random(), other, 0))


def uniform(ledger: Ledger, seed: int) -> None:
    """Each choice on every n-th layer, from each first layer on."""
    layers = ledger.problem.layers
    for step, kind in itertools.product(range(1, layers + 1), range(1, ledger.problem.choices)):
        for first in range(step):
            code = np.zeros(layers, int)
            code[first::step] = kind
            ledger(code)


def single_losses(ledger: Ledger) -> Codes:
    """(layers, choices): what each choice loses alone."""
    problem = ledger.problem
    table = np.zeros((problem.layers, problem.choices))
    for layer, kind in itertools.product(range(problem.layers), range(1, problem.choices)):
        code = np.zeros(problem.layers, int)
        code[layer] = kind
        table[layer, kind] = ledger(code)[0]
    return table


def one_shot(ledger: Ledger, seed: int) -> None:
    """Layers ranked by what they lose alone with their cheapest choice, left out one after the other (ShortGPT)."""
    layers, cheapest = ledger.problem.layers, ledger.problem.costs.argmin(1)
    losses = [ledger(np.where(np.arange(layers) == layer, cheapest, 0))[0] for layer in range(layers)]
    code = np.zeros(layers, int)
    for layer in np.argsort(losses):
        code[layer] = cheapest[layer]
        ledger(code)


def additive(ledger: Ledger, seed: int) -> None:
    """What every choice loses alone, and the best sums of that (Puzzle)."""
    for code in additive_front(single_losses(ledger), ledger.problem.costs, 400):
        ledger(code)


def greedy(ledger: Ledger, seed: int) -> None:
    """From dense, always the step of least loss for its saving, of all that there are (SLEB, BlockPruner)."""
    costs = ledger.problem.costs
    code = np.zeros(ledger.problem.layers, int)
    while steps := [s for s in zip(*np.nonzero(costs < costs[np.arange(len(code)), code, None] - 1e-9), strict=True)]:
        loss, cost = ledger(code)
        ratios = []
        for layer, kind in steps:
            after = code.copy()
            after[layer] = kind
            found = ledger(after)
            ratios.append((found[0] - loss) / (cost - found[1]))
        layer, kind = steps[int(np.argmin(ratios))]
        code[layer] = kind


def evopress(ledger: Ledger, seed: int, budgets: int = 8, children: int = 8) -> None:
    """(1 + lambda) by level switches, for one budget after the other (EvoPress); all budgets share the evaluations."""
    problem, draw = ledger.problem, np.random.default_rng(seed)
    cheapest = problem.costs.argmin(1)
    counts = np.clip(np.linspace(0.1, 0.7, budgets) * problem.layers, 1, problem.layers - 1)
    parents: list[Codes] = []
    for count in counts.round().astype(int):
        code = np.zeros(problem.layers, int)
        places = draw.permutation(problem.layers)[:count]
        code[places] = cheapest[places]
        parents.append(code)
    for _ in range(ledger.budget):
        for number, parent in enumerate(parents):
            brood = [parent]
            for _ in range(children):
                child = parent.copy()
                for _ in range(min(draw.integers(1, 4, 2))):  # EvoPress draws the number so
                    kept, left = np.flatnonzero(child == 0), np.flatnonzero(child)
                    one, other = draw.choice(kept), draw.choice(left)
                    child[one], child[other] = child[other], 0
                brood.append(child)
            parents[number] = min(brood, key=lambda code: ledger(code)[0])


SEARCHES: dict[str, Callable[[Ledger, int], None]] = {
    "SkipSampler": ours(),
    "- additive": ours(tuple(part for part in PARTS if part != "additive")),
    "- moves": ours(tuple(part for part in PARTS if part != "moves")),
    "- mutation": ours(tuple(part for part in PARTS if part != "mutation")),
    "- pairs": ours(tuple(part for part in PARTS if part != "pairs")),
    "- refit": ours(tuple(part for part in PARTS if part != "refit")),
    "+ sensitivity": ours((*PARTS, "sensitivity")),
    "- reference": ours(reference=None),
    "greedy": greedy,
    "EvoPress": evopress,
    "additive DP": additive,
    "one-shot": one_shot,
    "uniform": uniform,
    "stratified random": stratified,
    "random": asked(lambda problem, seed, budget: optuna.samplers.RandomSampler(seed)),
    "NSGA-II": asked(lambda problem, seed, budget: optuna.samplers.NSGAIISampler(population_size=50, seed=seed)),
    "NSGA-III": asked(lambda problem, seed, budget: optuna.samplers.NSGAIIISampler(population_size=50, seed=seed)),
    "TPE": asked(lambda problem, seed, budget: optuna.samplers.TPESampler(seed=seed)),
}
FIXED = ("greedy", "additive DP", "one-shot", "uniform")  # the same for every seed


def problems(quick: bool, folder: Path | None) -> dict[str, tuple[Callable[[], Any], int]]:
    """By name how to make each, and its budget of evaluations."""
    if quick:
        return {
            "planted 8 x 5": (lambda: Planted(8, 100), 40),
            "decoder 4 x 5": (lambda: Decoder(None, layers=4, steps=10, sequences=2), 30),
        }
    return {
        "planted 6 x 6": (lambda: Planted(6, 106, group=6, choices=6), 200),
        "planted 7 x 5": (lambda: Planted(7, 107, group=7), 200),
        "planted 8 x 4": (lambda: Planted(8, 108, group=8, choices=4), 200),
        "planted 48 x 5": (lambda: Planted(48, 148), 480),
        "planted 80 x 5": (lambda: Planted(80, 180), 800),
        "decoder 24 x 5": (lambda: Decoder(folder), 1000),
        "digits": (lambda: Digits(folder), 1000),
    }


def run(problem: Any, budget: int, name: str, seeds: int) -> dict[str, Any]:
    """One strategy on one problem: its curves, held-out figures and time."""
    best = problem.best()
    bound = hypervolume(best, DIRECTIONS, CORNER) if best else None
    checkpoints = [count for count in CHECKPOINTS if count < budget] + [budget]
    curves, again, used = [], [], []
    begun = time.perf_counter()
    for seed in range(1 if name in FIXED else seeds):
        ledger = Ledger(problem, budget)
        with contextlib.suppress(Spent):
            SEARCHES[name](ledger, seed)
        curves.append(ledger.curve())
        again.append([ledger.held_out(count) for count in checkpoints])
        used.append(len(ledger.codes))
    if hasattr(problem, "save"):
        problem.save()
    scale = bound or 1.0
    quartiles = np.quantile(np.array(curves) / scale, [0.25, 0.5, 0.75], axis=0)
    return {
        "problem": problem.name,
        "search": name,
        "seeds": len(curves),
        "bound": bound,
        "checkpoints": checkpoints,
        "quartiles": [[round(float(row[count - 1]), 4) for count in checkpoints] for row in quartiles],
        "held_out": np.median(np.array(again) / scale, axis=0).round(4).tolist(),
        "area": round(float(quartiles[1].mean()), 4),
        "evaluations": int(np.median(used)),
        "seconds": round(time.perf_counter() - begun, 1),
        "curve": quartiles[1].round(4).tolist(),
    }


def line(row: dict[str, Any]) -> str:
    """The figures of one strategy for people."""
    low, middle, high = row["quartiles"]
    figures = "".join(f"{value:8.3f}" for value in middle)
    held = "".join(f"{value:7.3f}" for value in row["held_out"])
    spread = f"{low[-1]:.3f}..{high[-1]:.3f}"
    return f"  {row['search']:18}{figures}  {spread}{row['area']:8.3f} {held}  {row['seconds']:6.0f} s"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Median curves, one panel a problem."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["problem"] for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(5 * len(names), 4), squeeze=False)
    for panel, name in zip(axes[0], names, strict=True):
        for row in (row for row in rows if row["problem"] == name):
            width = 2.5 if row["search"] == "SkipSampler" else 1
            panel.plot(range(1, len(row["curve"]) + 1), row["curve"], label=row["search"], linewidth=width)
        panel.set(title=name, xlabel="evaluations", ylabel="hypervolume")
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Search, print a table for each problem, and one JSON document last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small problems and budgets: shows that it runs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, help="evaluations, where less than the problem's own")
    parser.add_argument("--only", default="", help="problems whose name has this in it")
    parser.add_argument("--searches", default="", help="names, separated by commas; default: all")
    parser.add_argument("--cache", type=Path, help="a folder for weights and measurements")
    parser.add_argument("--plot", type=Path, help="draw the curves")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seeds = 1 if arguments.quick else arguments.seeds
    chosen = arguments.searches.split(",") if arguments.searches else list(SEARCHES)
    rows = []
    print(
        f"hypervolume up to a loss of {CORNER[0]} and {CORNER[1]} x the cost of dense; share of the best one if known"
    )
    for label, (make, budget) in problems(arguments.quick, arguments.cache).items():
        if arguments.only not in label:
            continue
        problem = make()
        budget = min(budget, arguments.budget or budget)
        counts = [count for count in CHECKPOINTS if count < budget] + [budget]
        header = "".join(f"{count:8}" for count in counts)
        print(f"{problem.name}\n  {'':18}{header}  quartiles        area  held out, at the same counts", flush=True)
        for name in chosen:
            rows.append(run(problem, budget, name, seeds))
            print(line(rows[-1]), flush=True)
    if arguments.plot:
        draw(rows, arguments.plot)
    print(json.dumps({"benchmark": "search", "quick": arguments.quick, "reference": CORNER, "rows": rows}))


if __name__ == "__main__":
    main()
