"""Tables, claims and curves from the runs of `search.py`.

A run is one search with one seed: hypervolume (`seen`, and `held_out` after measuring the front again), and dense
passes executed (`executions`, and `reused` where states are kept), after some `counts` of policies.
"""

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

COUNTS = (50, 100, 200, 500, 1000)
PASSES = (25, 50, 100, 200, 400, 800)
OWN = "SkipSampler"
AXES = {"executions": "", "reused": ", states kept"}

Run = dict[str, Any]


class Table:
    """The runs on one problem.

    Args:
        problem: Its `name`, `layers`, `budget`, and the `bound` on the hypervolume where that is known.
        runs: On it.
    """

    def __init__(self, problem: dict[str, Any], runs: list[Run]) -> None:
        self.name, self.layers, self.budget = problem["name"], problem["layers"], problem["budget"]
        self.bound, self.has_model = problem["bound"] or 1.0, problem["bound"] is None
        self.runs: dict[str, list[Run]] = {}
        for run in runs:
            if run["problem"] == self.name:
                self.runs.setdefault(run["search"], []).append(run)

    def at(self, search: str, axis: str, place: float, figure: str = "held_out") -> list[float]:
        """By seed, a figure when so much was counted or executed; hypervolume is of the best possible, where known."""
        found = []
        for run in self.runs[search]:
            index = bisect_right(run[axis], place) - 1
            found.append(run[figure][index] if index >= 0 else 0.0)
        return [value / self.bound for value in found] if figure in ("held_out", "seen") else found

    def median(self, search: str, axis: str, place: float, figure: str = "held_out") -> float:
        """The median of `at`."""
        return float(np.median(self.at(search, axis, place, figure)))

    def area(self, search: str) -> list[float]:
        """By seed, the mean hypervolume on held-out examples over all counts up to the budget."""
        found = []
        for run in self.runs[search]:
            ends = np.clip([*run["counts"], self.budget], 0, self.budget)
            found.append(float((np.diff(ends) * run["held_out"]).sum()) / self.budget / self.bound)
        return found

    def counts(self) -> list[int]:
        """Where the table looks."""
        return [*(count for count in COUNTS if count < self.budget), self.budget]

    def by_evaluations(self) -> list[str]:
        """A Markdown table: hypervolume after so many policies, and what they cost."""
        counts = self.counts()
        middle = min(200, counts[-1])
        head = [
            "search", "seeds", *(f"{c:,}" for c in counts), f"quartiles at {middle}", "quartiles at the end",
            "area", "policies", f"passes for {middle}", "all passes", *(["with states kept"] if self.has_model else ()),
        ]  # fmt: skip
        rows = []
        for search in self.runs:
            values = [self.at(search, "counts", count) for count in counts]
            total = [[run["total"][axis] for run in self.runs[search]] for axis in (0, 1)]
            rows.append([
                search, str(len(self.runs[search])), *(short(np.median(value)) for value in values),
                spread(values[counts.index(middle)]), spread(values[-1]), short(np.median(self.area(search))),
                f"{np.median([run['evaluations'] for run in self.runs[search]]):,.0f}",
                f"{self.median(search, 'counts', middle, 'executions'):,.0f}",
                *(f"{np.median(passes):,.0f}" for passes in total[: 1 + self.has_model]),
            ])  # fmt: skip
        return markdown(head, rows)

    def by_executions(self) -> list[str]:
        """A Markdown table: hypervolume after so many dense passes, and in brackets of that what EvoPress has then."""
        columns = []
        for axis in AXES:
            own = [round(self.median(OWN, "counts", 200, axis))] if OWN in self.runs else []
            columns += [(axis, place) for place in sorted({*PASSES, *own})]
        rows = []
        for search in self.runs:
            cells = []
            for axis, place in columns:
                value = self.median(search, axis, place)
                other = self.median("EvoPress", axis, place) if "EvoPress" in self.runs else 0.0
                cells.append(f"{short(value)} ({value / other:.2f})" if other else short(value))
            rows.append([search, *cells])
        return markdown(["search", *(f"{place:,}{AXES[axis]}" for axis, place in columns)], rows)


def short(value: float) -> str:
    """Three digits, without the nought before them."""
    return f"{value:.3f}".removeprefix("0")


def spread(values: list[float]) -> str:
    """The quartiles."""
    return "–".join(short(value) for value in np.quantile(values, [0.25, 0.75]))


def markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table of Markdown."""
    first, *others = (f"| {' | '.join(row)} |" for row in [head, *rows])
    return [first, "|" + "---|" * len(head), *others]


def claims(table: Table, groups: dict[str, list[str]]) -> list[dict[str, Any]]:
    """What our sampler should show on a problem, and what it does; medians of seeds, on held-out examples.

    Args:
        table: The problem's runs.
        groups: Names of searches: `optuna`, `greedy`, `heuristics`.
    """
    if OWN not in table.runs:
        return []
    found = [*compared(table, groups), *executed(table)] if table.has_model else [reached(table)]
    return [
        {"what": what, "value": round(value, 4), "needed": round(needed, 4), "holds": value >= needed}
        for what, value, needed in found
    ]


def reached(table: Table) -> tuple[str, float, float]:
    """The share of what can be reached."""
    needed = {48: 0.97, 80: 0.95}.get(table.layers, 0.99)
    return f"share of the best after {table.budget}", table.median(OWN, "counts", table.budget), needed


def compared(table: Table, groups: dict[str, list[str]]) -> Iterator[tuple[str, float, float]]:
    """Hypervolume against Optuna's samplers, greedy deletion and heuristics, after so many policies."""
    for other in present(table, groups["optuna"]):
        value = table.median(OWN, "counts", 200)
        yield f"after 200, {other} after 1,000", value, table.median(other, "counts", 1000)
    for other in present(table, groups["greedy"]):
        end, half = table.median(other, "counts", np.inf), table.median(other, "counts", np.inf, "counts") // 2
        yield f"after {half:.0f}, {other} at its end", table.median(OWN, "counts", half), end
    rules = present(table, groups["heuristics"])
    best = max((table.median(rule, "counts", np.inf) for rule in rules), default=0.0)
    for count in (count for count in table.counts() if count >= 100):
        for variant in present(table, [OWN, "+ starts"]):
            yield f"{variant} after {count}, the best heuristic", table.median(variant, "counts", count), best


def executed(table: Table) -> Iterator[tuple[str, float, float]]:
    """Hypervolume against EvoPress after so many executions, and how many kept states spare."""
    for axis, how in AXES.items() if "EvoPress" in table.runs else ():
        for place in (table.median(OWN, "counts", 200, axis), *PASSES):
            other = table.median("EvoPress", axis, place)
            if other:
                yield f"of EvoPress's at {place:.0f} dense passes{how}", table.median(OWN, axis, place) / other, 1.3
    plain, reused = (np.median([run["total"][axis] for run in table.runs[OWN]]) for axis in (0, 1))
    yield "fewer executions where states are kept", float(plain / reused), 1.5


def present(table: Table, searches: list[str]) -> list[str]:
    """Those of which there are runs."""
    return [search for search in searches if search in table.runs]


def draw(tables: list[Table], path: Path) -> None:
    """Median curves on held-out examples: a row for each problem, left against policies, right against passes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    searches = [name for name in dict.fromkeys(name for table in tables for name in table.runs) if name[0] not in "-+"]
    figure, axes = plt.subplots(len(tables), 2, figsize=(13, 3.6 * len(tables)), squeeze=False)
    for row, table in zip(axes, tables, strict=True):
        row[0].set_title(table.name)
        for panel, axis, last in ((row[0], "counts", table.budget), (row[1], "executions", 2 * table.budget)):
            panel.set(xscale="log", xlabel="policies" if axis == "counts" else "dense passes", ylabel="hypervolume")
            places = np.geomspace(5, last, 80)
            for number, search in enumerate(searches):
                if search in table.runs:
                    values = [table.at(search, axis, place) for place in places]
                    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=1)
                    look = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3]}
                    panel.plot(places, middle, linewidth=3.0 if search == OWN else 1.2, label=search, **look)
                    panel.fill_between(places, low, high, alpha=0.12, color=look["color"], linewidth=0)
    known = {label: line for panel in axes.flat for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(known.values(), known.keys(), loc="upper right", fontsize=8)
    figure.tight_layout(rect=(0, 0, 1 - 2.5 / figure.get_figwidth(), 1))
    figure.savefig(path, dpi=90)
    plt.close(figure)
