"""What racing saves and what it loses: one list of candidates, judged on all examples and judged in a race.

    python benchmarks/racing.py [--seeds N] [--candidates N] [--digits N] [--quick]

Half of the candidates leave out random sublayers, from few to most; half are members of the front so far with one to
three layers changed, as a search proposes them. Both sides see the same list. The front is that of the search examples;
its hypervolume is counted on other examples, with both objectives in units of the dense model's and (accuracy 0, dense
FLOPs) as reference point. A front member is lost if the race gave it up and the full measurement has it on the front.

`simulated` candidates answer each example right where a margin is above 0: the dense model's, which is the example's
own, less what the candidate's choices damage, which is partly the example's own too. `digits` ones run on the shipped
model. The last line is one JSON document.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from skipsearch.evaluators.base import Measurement
from skipsearch.policies.choice import CHOICES
from skipsearch.policies.policy import Policy
from skipsearch.search.driver.promotion import FIRST_EXAMPLES, examples_answered, next_promotion
from skipsearch.search.space.load import load_space
from skipsearch.search.space.space import Space
from skipsearch.search.study.expected_results import ScorePredictor
from skipsearch.search.trial.hypervolume import hypervolume
from skipsearch.search.trial.pareto import dominates, front_trials
from skipsearch.search.trial.trial_result import TrialResult
from skipsearch.search.workers.early_stopping import Race, rivals_among, rung_fractions
from skipsearch.search.workers.evaluate import PolicyEvaluator

CHOICE_NAMES = ("keep", "skip_ffn", "skip_attention", "skip_layer", "parallel")
COSTS = {"keep": 1.0, "skip_ffn": 0.35, "skip_attention": 0.65, "skip_layer": 0.0, "parallel": 1.0}
DAMAGE = {"keep": 0.0, "skip_ffn": 0.7, "skip_attention": 0.4, "skip_layer": 1.0, "parallel": 0.1}
OBJECTIVES = "{accuracy: maximize, prefill_flops: minimize}"
ORDERS = 2
Choices = tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """What is known of a candidate when everything is measured.

    Attributes:
        cost: Its FLOPs.
        search: Its score of each example of the search split.
        report: The same of the report split.
    """

    cost: float
    search: list[float]
    report: list[float]


class World(Protocol):
    """A model whose layers can be left out."""

    layers: int

    def measure(self, choices: Choices) -> Candidate:
        """Answer all examples of both splits."""
        ...


class Simulated:
    """Examples with margins, and layers with damages that add up and interact between neighbours.

    Args:
        seed: Of everything.
        layers: Decoder layers.
        examples: Of the search split and of the report split.
    """

    def __init__(self, seed: int, layers: int = 24, examples: tuple[int, int] = (400, 1000)) -> None:
        self.layers = layers
        self._draw = np.random.default_rng(seed)
        self._sizes = examples
        self._weight = self._draw.gamma(1.2, 0.35, layers)
        self._margin = self._draw.normal(1.2, 1.2, sum(examples))
        self._taste = self._draw.gamma(4.0, 0.25, (layers, sum(examples)))

    def measure(self, choices: Choices) -> Candidate:
        """Answer all examples of both splits."""
        damage = np.array([DAMAGE[choice] for choice in choices]) * self._weight
        damage[1:] *= 1 + 0.5 * (damage[:-1] > 0)
        noise = self._draw.normal(0.0, 0.15 * np.sqrt(damage.sum()), sum(self._sizes))
        right = (self._margin - damage @ self._taste + noise > 0).astype(float).tolist()
        cost = sum(COSTS[choice] for choice in choices) / self.layers
        return Candidate(cost, right[: self._sizes[0]], right[self._sizes[0] :])


class Digits:
    """The shipped model on its own questions."""

    def __init__(self) -> None:
        changes = {"search.racing": "none", "objectives": OBJECTIVES, "evaluate.accuracy.report.limit": "400"}
        self._bench = PolicyEvaluator(load_space("digits", changes).space, threads=1)
        self.layers = self._bench.num_layers

    def measure(self, choices: Choices) -> Candidate:
        """Answer all examples of both splits."""
        policy = Policy.of([CHOICES[choice] for choice in choices])
        found = self._bench.measure(policy, ["accuracy", "flops"]).measurements
        report = self._bench.measure(policy, ["accuracy"], "report").measurements["accuracy"]
        scores = (list(entry.detail["per_example"]) for entry in (found["accuracy"], report))
        return Candidate(found["prefill_flops"].value, *scores)


def candidates(world: World, count: int, seed: int) -> list[Candidate]:
    """Dense, and what a search would propose; no policy twice."""
    draw = random.Random(seed)
    known: dict[Choices, Candidate] = {}
    choices = ("keep",) * world.layers
    while len(known) < count:
        if choices not in known:
            known[choices] = world.measure(choices)
        choices = mutated(best(known, draw), draw) if draw.random() < 0.5 else scattered(world.layers, draw)
    return list(known.values())


def scattered(layers: int, draw: random.Random) -> Choices:
    """Random choices in a random share of the layers."""
    share = draw.random()
    return tuple(draw.choice(CHOICE_NAMES[1:]) if draw.random() < share else "keep" for _ in range(layers))


def best(known: dict[Choices, Candidate], draw: random.Random) -> Choices:
    """Some member of the front."""
    points = {key: (statistics.fmean(found.search), found.cost) for key, found in known.items()}
    front = [
        key
        for key, point in points.items()
        if not any(dominates(other, point, ("maximize", "minimize")) for other in points.values())
    ]
    return draw.choice(front)


def mutated(choices: Choices, draw: random.Random) -> Choices:
    """One to three layers changed."""
    places = draw.sample(range(len(choices)), draw.randint(1, 3))
    return tuple(draw.choice(CHOICE_NAMES) if index in places else choice for index, choice in enumerate(choices))


def assess(found: Sequence[Candidate], space: Space, seed: int) -> tuple[list[TrialResult], int]:
    """The trials of a search in this order, and how many examples were answered."""
    total, racing = len(found[0].search), space.search.racing
    order = random.Random(seed).sample(range(total), total)
    patience = None if racing == "none" or racing.patience == "none" else racing.patience
    records: list[TrialResult] = []

    def go_on(wait: float) -> None:
        while patience is not None and (waiting := next_promotion(records, ScorePredictor.fit(records), space, wait)):
            number, answered = waiting.number, examples_answered(waiting)
            records[number] = answering(found, number, records, order, space, answered, 2 * answered)

    for number in range(len(found)):
        until = FIRST_EXAMPLES if patience is not None and number else total
        records.append(answering(found, number, records, order, space, 0, until))
        go_on(patience or 0)
    go_on(0)
    answered = (entry.n for record in records for entry in (*record.search.values(), *record.estimates.values()))
    return records, sum(count for count in answered if count > 1)


def answering(
    found: Sequence[Candidate], number: int, records: Sequence[TrialResult], order: list[int], space: Space, known: int,
    until: int,
) -> TrialResult:  # fmt: skip
    """A trial that answers examples until there are enough or it is out."""
    candidate, total = found[number], len(order)
    cost = {"prefill_flops": Measurement(candidate.cost)}
    rivals = rivals_among(records, space.objectives) if records else []
    race = Race(space, space.metrics(), records[0].search, rivals) if records else None
    for count in (count for share in rung_fractions(space.search.racing) if (count := round(share * total)) > known):
        if count == total:
            whole = {"accuracy": measurement(candidate.search)}
            broken = violations(space, whole["accuracy"].value, found[0])
            return TrialResult(number, "complete", Policy(), cost | whole, violations=broken)
        places = order[:count]
        part = {"accuracy": measurement([candidate.search[place] for place in places], places, total)}
        dropped = race.reason_to_stop(cost, part) if race else None
        if dropped or count >= until:
            break
    return TrialResult(number, "complete", Policy(), cost, early_stopped=dropped, estimates=part)


def violations(space: Space, accuracy: float, dense: Candidate) -> dict[str, float]:
    """How far an accuracy is beyond its bound."""
    level = statistics.fmean(dense.search)
    return {name: bound.excess(accuracy, level) for name, bound in space.constraints.items()}


def measurement(scores: list[float], places: list[int] | None = None, total: int = 0) -> Measurement:
    """The accuracy on some examples, or on all."""
    detail: dict[str, Any] = {"per_example": scores, "tasks": {"all": {"n": len(scores)}}}
    part = {} if places is None else {"places": places, "total": total}
    return Measurement(statistics.fmean(scores), len(scores), detail=detail | part)


def held_out(front: Sequence[int], found: Sequence[Candidate]) -> float:
    """The front's hypervolume on the report split."""
    accuracy, cost = statistics.fmean(found[0].report), found[0].cost
    points = [(statistics.fmean(found[n].report) / accuracy, found[n].cost / cost) for n in front]
    return hypervolume(points, ("maximize", "minimize"), (0.0, 1.0))


def compared(found: Sequence[Candidate], seed: int, full: Space, raced: Space) -> dict[str, float]:
    """One list of candidates, judged both ways."""
    candidates_in_full, all_answers = assess(found, full, seed)
    some, answers = assess(found, raced, seed)
    truth = front_trials(candidates_in_full, full.objectives)
    return {
        "candidates": len(found),
        "whole": sum("accuracy" in record.search for record in some),
        "front": len(truth),
        "lost": sum("accuracy" not in some[number].search for number in truth),
        "answers": answers,
        "answers_without": all_answers,
        "saving": all_answers / answers,
        "hypervolume": held_out(front_trials(some, full.objectives), found),
        "hypervolume_without": held_out(truth, found),
    }


def figures(worlds: Iterator[World], count: int, name: str) -> Iterator[dict[str, Any]]:
    """Every setting on every list of candidates."""
    lists = [(seed, candidates(world, count, seed)) for seed, world in enumerate(worlds)]
    for constraints in ("{}", "{accuracy: '>= 0.9 * dense'}"):
        for patience in ("none", 3):
            ways = ("none", f"{{patience: {patience}}}")
            given = {"objectives": OBJECTIVES, "constraints": constraints}
            spaces = [load_space("digits", {**given, "search.racing": way}).space for way in ways]
            # Other orders of the same examples are other races.
            runs = [compared(found, 100 * seed + k, *spaces) for seed, found in lists for k in range(ORDERS)]
            yield {"candidates": name, "bounded": constraints != "{}", "patience": patience, **totals(runs)}


def totals(runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Medians over the races with their spread, and losses over all of them."""
    savings = [run["saving"] for run in runs]
    ratios = [run["hypervolume"] / run["hypervolume_without"] for run in runs]
    return {
        "races": len(runs),
        "front": statistics.fmean(run["front"] for run in runs),
        "whole_share": sum(run["whole"] for run in runs) / sum(run["candidates"] for run in runs),
        "lost_share": sum(run["lost"] for run in runs) / sum(run["front"] for run in runs),
        "saving": statistics.median(savings),
        "saving_range": [min(savings), max(savings)],
        "held_out_ratio": statistics.median(ratios),
        "held_out_ratio_range": [min(ratios), max(ratios)],
        "runs": runs,
    }


def line(row: dict[str, Any]) -> str:
    """One setting for people."""
    low, high = row["saving_range"]
    worst, most = row["held_out_ratio_range"]
    return (
        f"{row['candidates']:10}{'>= 0.9 dense' if row['bounded'] else '-':14}{row['patience']:<11}"
        f"{row['front']:6.1f}{row['whole_share']:10.0%}{row['lost_share']:8.2%}"
        f"{row['saving']:8.2f} ({low:.2f}–{high:.2f}){row['held_out_ratio']:9.4f} ({worst:.4f}–{most:.4f})"
    )


def main() -> None:
    """Race, print a table and one JSON document last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="simulated lists of candidates")
    parser.add_argument("--candidates", type=int, default=200, help="of each simulated list")
    parser.add_argument("--digits", type=int, default=0, help="candidates on the shipped model")
    parser.add_argument("--quick", action="store_true", help="one short list, to try the script")
    given = parser.parse_args()
    seeds, count = (1, 60) if given.quick else (given.seeds, given.candidates)
    begin = time.perf_counter()
    print(
        "candidates bound         patience   front  in full     lost  times fewer answers  held-out hypervolume ratio"
    )
    rows = []
    for row in figures((Simulated(seed) for seed in range(seeds)), count, "simulated"):
        rows.append(row)
        print(line(row), flush=True)
    for row in figures(iter([Digits()]), given.digits, "digits") if given.digits else ():
        rows.append(row)
        print(line(row), flush=True)
    print(json.dumps({"benchmark": "racing", "seconds": time.perf_counter() - begin, "settings": rows}))


if __name__ == "__main__":
    main()
