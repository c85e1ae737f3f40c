"""How good a front each search strategy has after how many evaluations: `python benchmarks/search.py`.

Hypervolume of loss and cost, up to a loss of 1 above dense's and the cost of dense, of the front after so many
different policies, measured again on held-out examples; and after so many layer-token executions. These are counted in
passes of the dense model over all examples: a sublayer that runs is half a layer, some of the examples or tokens are so
much of it, and every search is counted twice: each time as a whole, and with the states behind layers kept, of as many
layers as 16 policies have, so that policies that begin alike run their beginning once (`policies/prefix.py`).

Prints tables of medians and quartiles over the seeds, what the search's own sampler should show, and one JSON document.
"""

import argparse
import contextlib
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from search_figures import Table, claims, draw
from search_ledger import KEPT, Ledger, Spent
from search_problems import CORNER, DIRECTIONS, Planted, PlantedRatios
from search_strategies import GROUPS, SEARCHES, Search

from skipsearch.search.trial.hypervolume import hypervolume


def problems(quick: bool, folder: Path | None) -> dict[str, tuple[Callable[[], Any], int]]:
    """By name how to make each, and its budget of evaluations."""
    # What shows documents needs no torch.
    from search_decoder import load, trained
    from search_models import Decoder, Digits

    if quick:
        return {
            "planted 6 x 4": (lambda: Planted(6, 100, group=3, choices=4), 12),
            "decoder 4 x 5": (lambda: Decoder(None, *trained(layers=4, steps=5)), 12),
            "digits 12 x 7": (lambda: Digits(None, questions=3), 8),
        }
    return {
        "planted 6 x 6": (lambda: Planted(6, 106, group=6, choices=6), 200),
        "planted 7 x 5": (lambda: Planted(7, 107, group=7), 200),
        "planted 8 x 4": (lambda: Planted(8, 108, group=8, choices=4), 200),
        "planted 48 x 5": (lambda: Planted(48, 148), 480),
        "planted 80 x 5": (lambda: Planted(80, 180), 800),
        "planted ratios 12 x 12": (lambda: PlantedRatios(12, 112), 240),
        "decoder 24 x 5": (lambda: Decoder(folder, *load()), 1000),
        "digits 12 x 7": (lambda: Digits(folder), 1000),
    }


def run(problem: Any, budget: int, passes: float, name: str, seed: int) -> dict[str, Any] | None:
    """One search with one seed; None where it has no policy for the problem."""
    search: Search = SEARCHES[name]
    begun = time.perf_counter()
    ledger = Ledger(problem, None if search.whole else budget, passes)
    with contextlib.suppress(Spent):
        search.run(ledger, seed)
    if not ledger.codes:
        return None
    found = {"problem": problem.name, "search": name, "seed": seed, "evaluations": len(ledger.codes)}
    return found | ledger.curves() | {
        "total": [round(float(passes), 2) for passes in ledger.spent],
        "seconds": round(time.perf_counter() - begun, 1),
    }  # fmt: skip


class Document:
    """The runs so far, with what is known of their problems.

    Args:
        path: Where it is kept up to date; runs that it has already are not done again. None keeps nothing.
        others: Documents whose runs it takes in.
    """

    def __init__(self, path: Path | None, others: list[Path]) -> None:
        self._path = path
        self.problems: dict[str, dict[str, Any]] = {}
        self.runs: dict[tuple[str, str, int], dict[str, Any]] = {}
        for known in [*others, *([path] if path and path.exists() else [])]:
            # What a terminal showed before the document does not matter.
            document = json.loads(known.read_text().splitlines()[-1])
            for problem in document["problems"]:
                self.know(problem)
            self.runs |= {(run["problem"], run["search"], run["seed"]): run for run in document["runs"]}

    def know(self, problem: dict[str, Any]) -> None:
        """Take in what is known of a problem; some of its runs may have had a smaller budget than others."""
        known = self.problems.get(problem["name"], problem)
        self.problems[problem["name"]] = max(problem, known, key=lambda one: one["budget"])

    def add(self, run: dict[str, Any]) -> None:
        """Take in one run."""
        self.runs[run["problem"], run["search"], run["seed"]] = run
        if self._path:
            fresh = self._path.with_suffix(".new")
            fresh.write_text(json.dumps(self.whole()))
            fresh.replace(self._path)

    def tables(self) -> list[Table]:
        """The runs by problem, searches in the order of the strategies."""
        order = [*SEARCHES]
        runs = sorted(self.runs.values(), key=lambda run: (order.index(run["search"]), run["seed"]))
        return [Table(problem, runs) for problem in self.problems.values()]

    def whole(self) -> dict[str, Any]:
        """All of it."""
        shown = {
            table.name: claims(table, {name: [*group] for name, group in GROUPS.items()}) for table in self.tables()
        }
        return {
            "benchmark": "search", "reference": CORNER, "policies_kept": KEPT,
            "problems": [*self.problems.values()], "runs": [*self.runs.values()], "claims": shown,
        }  # fmt: skip


def search_all(document: Document, arguments: argparse.Namespace, names: list[str]) -> None:
    """Do the runs that are missing."""
    seeds = arguments.seeds or (1 if arguments.quick else 5)
    for label, (make, most) in problems(arguments.quick, arguments.cache).items():
        if arguments.only not in label:
            continue
        problem, budget = make(), min(most, arguments.budget or most)
        best = problem.best()
        bound = hypervolume(best, DIRECTIONS, CORNER) if best else None
        shape = {"layers": problem.layers, "choices": problem.choices}
        document.know({"name": problem.name, "budget": budget, "bound": bound} | shape)
        for name in (name for name in names if SEARCHES[name].fits(problem)):
            for seed in range(seeds if SEARCHES[name].seeded else 1):
                if (problem.name, name, seed) in document.runs:
                    continue
                found = run(problem, budget, 12 if arguments.quick else np.inf, name, seed)
                if found:
                    document.add(found)
                    figures = f"{found['evaluations']} policies, {found['held_out'][-1]:.4f}, {found['seconds']} s"
                    print(f"{problem.name}, {name}, seed {seed}: {figures}", file=sys.stderr, flush=True)
        if hasattr(problem, "save"):
            problem.save()


def show(tables: list[Table], shown: dict[str, list[dict[str, Any]]]) -> None:
    """Tables in Markdown, and what should be shown."""
    print(f"Hypervolume up to a loss of {CORNER[0]} and {CORNER[1]} x the cost of dense, on held-out examples.")
    for table in tables:
        share = "" if table.has_model else f", as a share of the best possible, {table.bound:.4f}"
        print(f"\n### {table.name}\n\nAfter so many policies{share}:\n", *table.by_evaluations(), sep="\n")
        if table.has_model:
            print("\nAfter so many dense passes, and of that what EvoPress has:\n", *table.by_executions(), sep="\n")
        print()
        for claim in shown[table.name]:
            assessment = "" if claim["holds"] else ": NO"
            print(f"- {claim['what']}: {claim['value']:.3f}, needed {claim['needed']:.3f}{assessment}")


def main() -> None:
    """Search, print tables, and one JSON document last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small problems and budgets: shows that it runs")
    parser.add_argument("--seeds", type=int, help="default: 5, or 1 with --quick")
    parser.add_argument("--budget", type=int, help="evaluations, where less than the problem's own")
    parser.add_argument("--only", default="", help="problems whose name has this in it")
    parser.add_argument("--searches", help=f"names or {', '.join(GROUPS)}, separated by semicolons; default: all")
    parser.add_argument("--cache", type=Path, help="a folder for measurements")
    parser.add_argument("--json", type=Path, help="keep the document there; go on with the one that is there")
    parser.add_argument("--merge", type=Path, nargs="+", help="search nothing: show these documents as one")
    parser.add_argument("--plot", type=Path, help="draw the curves")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    asked = arguments.searches.split(";") if arguments.searches else [*SEARCHES]
    names = [name for word in asked for name in GROUPS.get(word, [word])]
    if unknown := [name for name in names if name not in SEARCHES]:
        parser.error(f"no search is called {unknown[0]!r}; there are {'; '.join(SEARCHES)}")
    document = Document(arguments.json, arguments.merge or [])
    if not arguments.merge:
        search_all(document, arguments, names)
    whole = document.whole()
    show(document.tables(), whole["claims"])
    if arguments.plot:
        draw(document.tables(), arguments.plot)
    print(json.dumps(whole))


if __name__ == "__main__":
    main()
