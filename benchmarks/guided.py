"""Is a search ahead of a plain greedy? `python benchmarks/guided.py [--only NAME] [--rooms FOLDER] [--smollm2 FOLDER]`.

The real driver, study and sampler, in this process, on real models and questions, beside what forty lines can do: lazy
greedy over sublayers by the loss of the right answers on 48 questions per FLOP that is saved, from the dense model and
from token schedules. `rooms.py` and `smollm2.py` make the folders of the models that are not shipped.

What counts is the accuracy at each share of the dense model's prefill FLOPs: among the policies that need no more, the
one with the best expected accuracy (of a search: by answers and guide together, of its front and of the front's wide
gaps; of greedy: by its answers), on the search split and on other questions. Every scored example of any evaluator
counts one answer, that of greedy's loss too; a question with choices is one answer. Greedy is held against a search
with the points that it had after as many answers.

Prints the fronts, what holds, and one JSON document last.
"""

import argparse
import heapq
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from racing_search import Alone, trials_of

from skipsearch.evaluators.answer_loss import AnswerLossEvaluator, AnswerLossOptions
from skipsearch.evaluators.example_options import ExampleOptions
from skipsearch.evaluators.examples import ExampleEvaluator
from skipsearch.policies.apply import apply_policy
from skipsearch.policies.choice import LayerChoice
from skipsearch.policies.policy import Policy
from skipsearch.search.guide.wide_gaps import expected_accuracies, policies_in_gaps
from skipsearch.search.space.load import load_space
from skipsearch.search.trial.pareto import front_trials
from skipsearch.search.workers.evaluate import PolicyEvaluator

SHARES = [round(0.05 * step, 2) for step in range(1, 21)]
QUESTIONS = 48  # that greedy's loss is measured on
TRIALS = (80, 200, 400)
# What --quick sets: enough to see that it runs.
QUICK = {"only": "digits", "ways": "greedy;ours, flat", "trials": (4,), "seeds": 1, "search": 40, "report": 20,
         "questions": 8, "least": 0.9}  # fmt: skip
RATIOS = (0.5, 0.25)
KEYS = "attention: [run, skip], ffn: [run, skip]"
ROLES = (
    "[{range: all, attention: [run, skip, keys_only], ffn: [run, skip], token_ratio: [1, 0.5, 0.25], "
    "rest: [skip, keys_only, attention]}]"
)
FLAT = ("keep", "skip_ffn", "skip_attention", "skip_layer")
# By way: whether the keys are a list of choices, and what is set beside.
OURS: dict[str, tuple[bool, dict[str, str]]] = {
    "ours": (False, {}),
    "ours, flat": (True, {}),
    "ours, roles": (False, {"layers": ROLES}),
    "ours, no guide": (False, {"search.guide": "none"}),
    "ours, flat, no guide": (True, {"search.guide": "none"}),
}
GREEDY = ("greedy", "greedy from schedules")


@dataclass(frozen=True)
class Problem:
    """What is searched.

    Attributes:
        name: What it is called.
        space: A space, by name or path.
        images: True where layers may leave image tokens out.
        least: The share of the FLOPs that greedy goes down to, where nothing else is asked for.
        changes: What is set in the space.
    """

    name: str
    space: str
    images: bool
    least: float
    changes: dict[str, str]

    def changed(self, flat: bool, more: dict[str, str]) -> dict[str, str]:
        """What is set in the space, its choices as keys or as one flat list among it."""
        ratios = [f"{{{kind}token_ratio: [0.5, 0.25]}}" for kind in ("", "ffn: skip, ", "attention: skip, ")]
        choices = f"choices: [{', '.join([*FLAT, *(ratios if self.images else [])])}]"
        keys = KEYS + (", token_ratio: [1, 0.5, 0.25]" if self.images else "")
        rule = f"[{{range: all, {choices if flat else keys}}}]"
        return {"layers": rule, "objectives": "{accuracy: maximize, prefill_flops: minimize}", "constraints": "{}",
                **self.changes, **more}  # fmt: skip


def problems(given: argparse.Namespace) -> Iterator[Problem]:
    """The problems whose models are there."""
    tasks = [
        f"{split}: {{tasks: [digits/tasks/digits_{split}.yaml], limit: {limit}}}"
        for split, limit in (("search", given.search or 400), ("report", given.report or 1000))
    ]
    evaluate = f"{{accuracy: {{{', '.join(tasks)}, batch_size: 50}}, flops: }}"
    yield Problem("digits", "digits", True, 0.12, {"evaluate": evaluate})
    for name, images, least in (("rooms", True, 0.12), ("smollm2", False, 0.5)):
        folder = getattr(given, name)
        if folder is None:
            continue
        if not (folder / "space.yaml").is_file():
            sys.exit(f"{folder} has no space.yaml\nhint: python benchmarks/{name}.py {folder}")
        limits = {"evaluate.accuracy.search.limit": given.search, "evaluate.accuracy.report.limit": given.report}
        changes = {key: str(limit) for key, limit in limits.items() if limit}
        yield Problem(name, str(folder / "space.yaml"), images, least, changes)


class Counter:
    """Counts the examples of the search split that evaluators score.

    Args:
        evaluators: They count from now on.
    """

    def __init__(self, evaluators: list[Any]) -> None:
        self.answers = 0
        for evaluator in evaluators:
            if isinstance(evaluator, ExampleEvaluator):
                self._count(evaluator)

    def _count(self, evaluator: Any) -> None:
        scored = evaluator._score_examples

        def counting(handle: Any, tasks: Any, part: Any) -> Any:
            found = scored(handle, tasks, part)
            self.answers += len(found) * (part[0] == "search")
            return found

        evaluator._score_examples = counting


class Meter:
    """Measures policies for greedy.

    Args:
        problem: What is searched.
        questions: How many the loss is measured on.
    """

    def __init__(self, problem: Problem, questions: int) -> None:
        space = load_space(problem.space, problem.changed(True, {})).space
        self.bench = PolicyEvaluator(space, threads=1)
        options = {
            key: value for key, value in space.evaluate["accuracy"].items() if key in ExampleOptions.model_fields
        }
        options["search"] = {**(options.get("search") or {}), "limit": questions}
        self._loss = AnswerLossEvaluator(AnswerLossOptions.model_validate(options), self.bench.subject)
        self.counter = Counter([*self.bench.evaluators, self._loss])
        self.dense = self._flops(Policy())

    def loss(self, policy: Policy) -> float:
        """How unlikely the right answers are, in nats."""
        with torch.inference_mode(), apply_policy(self.bench.subject.model, policy) as handle:
            return self._loss.measure(handle, "search")["answer_loss"].value

    def accuracy(self, policy: Policy, split: Any) -> float:
        """The accuracy on a split."""
        outcome = self.bench.measure(policy, ["accuracy"], split)
        if outcome.failure:
            sys.exit(f"{policy.fingerprint}: {outcome.failure}")
        return outcome.measurements["accuracy"].value

    def share(self, policy: Policy) -> float:
        """Prefill FLOPs, as a share of the dense model's."""
        return self._flops(policy) / self.dense

    def _flops(self, policy: Policy) -> float:
        return self.bench.measure(policy, ["flops"]).measurements["prefill_flops"].value


def greedy(meter: Meter, ratios: list[float | None], least: float) -> Iterator[tuple[Policy, float]]:
    """Leave out one sublayer after the other: the one that costs the least loss for each FLOP that it saves.

    What a sublayer costs is renewed only where it is the cheapest by what is known (Minoux's lazy greedy): what was
    known of it before is a guess by now, and most of the others stay worse.

    Args:
        meter: Measures.
        ratios: The share of the image tokens that each layer has; None for all.
        least: The share of the FLOPs to stop at.

    Yields:
        Policies with their share of the FLOPs, from the start on.
    """
    gone: set[tuple[int, str]] = set()

    def policy(more: tuple[tuple[int, str], ...] = ()) -> Policy:
        left_out = {*gone, *more}
        kinds = [
            {name: "skip" for name in ("attention", "ffn") if (layer, name) in left_out} for layer in range(len(ratios))
        ]
        return Policy.of([LayerChoice(token_ratio=ratio, **kind) for ratio, kind in zip(ratios, kinds, strict=True)])

    def cost(sublayer: tuple[int, str]) -> tuple[float, float, float]:
        found = policy((sublayer,))
        loss, share = meter.loss(found), meter.share(found)
        return (loss - now[0]) / max(now[1] - share, 1e-9), loss, share

    now = meter.loss(policy()), meter.share(policy())
    yield policy(), now[1]
    queue = [
        (*cost(sublayer), 0, sublayer)
        for sublayer in ((i, n) for i in range(len(ratios)) for n in ("attention", "ffn"))
    ]
    heapq.heapify(queue)
    while queue and now[1] > least:
        _, loss, share, known, sublayer = heapq.heappop(queue)
        if known < len(gone):
            heapq.heappush(queue, (*cost(sublayer), len(gone), sublayer))
            continue
        gone.add(sublayer)
        now = loss, share
        yield policy(), share


def starts(layers: int, way: str) -> dict[str, list[float | None]]:
    """Where greedy starts: dense, or a share of the image tokens from some layer on."""
    if way == "greedy":
        return {"dense": [None] * layers}
    return {
        f"{ratio} from {first}": [None] * first + [ratio] * (layers - first)
        for ratio in RATIOS
        for first in (2, layers // 4, layers // 2)
    }


def walked(problem: Problem, way: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Greedy's runs."""
    meter, least = Meter(problem, given.questions), given.least or problem.least
    runs = []
    for start, ratios in starts(meter.bench.num_layers, way).items():
        begun, before, points, policies = time.perf_counter(), meter.counter.answers, [], []
        for policy, share in greedy(meter, ratios, least):
            right = meter.accuracy(policy, "search")
            policies.append(policy)
            points.append({"share": share, "search": right, "answers": meter.counter.answers - before})
            print(f"{problem.name}, {way}, {start}: {points[-1]}", file=sys.stderr, flush=True)
        for point, policy in zip(points, policies, strict=True):
            point["held_out"] = meter.accuracy(policy, "report")
        seconds = round(time.perf_counter() - begun, 1)
        known = {"problem": problem.name, "way": way, "start": start, "trials": None, "seed": None}
        runs.append({**known, "points": points, "answers": points[-1]["answers"], "seconds": seconds})
        say(runs[-1])
    return runs


def searched(problem: Problem, way: str, trials: int, seed: int) -> dict[str, Any]:
    """One search."""
    flat, more = OURS[way]
    more = {**more, "search.trials": str(trials), "search.seed": str(seed)}
    space = load_space(problem.space, problem.changed(flat, more)).space
    begun, bench = time.perf_counter(), PolicyEvaluator(space, threads=1)
    pool, counter = Alone(bench), Counter(bench.evaluators)
    records, guide = trials_of(space, bench, pool)
    dense, everything = records[0].search["prefill_flops"].value, [*records.values()]
    front = front_trials(everything, space.objectives)
    in_gaps = policies_in_gaps(everything, front, space.objectives, guide)
    reported = [records[number] for number in {0, *front, *in_gaps}]
    points = [
        {
            "share": record.search["prefill_flops"].value / dense,
            "search": record.search["accuracy"].value,
            "expected": float(expected),
            "held_out": pool.confirmed[record.policy.fingerprint],
            "answers": counter.answers,
        }
        for record, expected in zip(reported, expected_accuracies(everything, reported, guide), strict=True)
    ]
    points.sort(key=lambda point: -point["share"])
    run = {"problem": problem.name, "way": way, "start": None, "trials": trials, "seed": seed, "points": points,
           "answers": counter.answers, "seconds": round(time.perf_counter() - begun, 1)}  # fmt: skip
    say(run)
    return run


def say(run: dict[str, Any]) -> None:
    """Print a run's front."""
    shown = [point for point in run["points"] if best_at(run["points"], point["share"]) is point]
    front = ", ".join(f"{p['share']:.2f} -> {p['search']:.3f} / {p['held_out']:.3f}" for p in shown)
    what = run["start"] or f"{run['trials']} trials, seed {run['seed']}"
    print(
        f"{run['problem']}, {run['way']}, {what}: {run['answers']:,} answers, {run['seconds']} s, "
        f"held-out hypervolume {held_out_hypervolume(run['points']):.4f} (reference: all FLOPs, accuracy 0)\n  {front}",
        flush=True,
    )


def held_out_hypervolume(points: list[dict[str, Any]]) -> float:
    """The area that the points dominate, share of the FLOPs by held-out accuracy; the reference point is (1, 0)."""
    steps = sorted((point["share"], point["held_out"]) for point in points)
    ends = [share for share, _ in steps[1:]] + [1.0]
    best = [max(accuracy for _, accuracy in steps[: count + 1]) for count in range(len(steps))]
    return sum((end - share) * height for (share, _), end, height in zip(steps, ends, best, strict=True))


def best_at(points: list[dict[str, Any]], share: float, answers: float = float("inf")) -> dict[str, Any] | None:
    """The point with the highest expected accuracy that needs no more FLOPs, and no more answers."""
    usable = [p for p in points if p["share"] <= share + 1e-9 and p["answers"] <= answers]
    return max(usable, key=lambda point: (point.get("expected", point["search"]), -point["share"]), default=None)


def claim(run: dict[str, Any], others: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A search against the better greedy, at each share of the FLOPs: its lead on both splits."""
    rows = []
    for share in SHARES:
        ours = best_at(run["points"], share)
        found = [best_at(other["points"], share, run["answers"]) for other in others]
        theirs = max((point for point in found if point), key=lambda point: point["search"], default=None)
        if ours is None and theirs is None:
            continue
        leads = {
            split: (ours[split] if ours else 0.0) - (theirs[split] if theirs else 0.0)
            for split in ("search", "held_out")
        }
        rows.append({"share": share, **leads, "holds": all(lead >= 0 for lead in leads.values())})
    return rows


def claims(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What holds of every search."""
    found = []
    for run in (run for run in runs if run["trials"]):
        others = [other for other in runs if other["problem"] == run["problem"] and other["trials"] is None]
        if others:
            label = {key: run[key] for key in ("problem", "way", "trials", "seed")}
            found.append({**label, "rows": claim(run, others)})
    return found


def show(found: list[dict[str, Any]]) -> None:
    """One line a search: where it is behind the better greedy."""
    for one in found:
        rows = one["rows"]
        behind = [f"{r['share']:.2f} ({r['search']:+.3f} / {r['held_out']:+.3f})" for r in rows if not r["holds"]]
        where = f"; behind at {', '.join(behind)}" if behind else ""
        what = f"{one['problem']}, {one['way']}, {one['trials']} trials, seed {one['seed']}"
        print(f"{what}: at least the better greedy at {len(rows) - len(behind)} of {len(rows)} shares{where}")


class Document:
    """The runs so far; what is there is not done again.

    Args:
        path: Where it is kept; None keeps it in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path and path.exists() else []

    def has(self, problem: str, way: str, trials: int | None = None, seed: int | None = None) -> bool:
        """True where a run is there."""
        wanted = (problem, way, trials, seed)
        return any((run["problem"], run["way"], run["trials"], run["seed"]) == wanted for run in self.runs)

    def add(self, runs: list[dict[str, Any]]) -> None:
        """Take in some runs."""
        self.runs += runs
        if self._path:
            self._path.write_text(json.dumps(self.whole()))

    def whole(self) -> dict[str, Any]:
        """All of it."""
        return {"benchmark": "guided", "shares": SHARES, "runs": self.runs, "claims": claims(self.runs)}


def main() -> None:
    """Run what is missing, print what holds and one JSON document last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=Path, help="the folder that rooms.py wrote")
    parser.add_argument("--smollm2", type=Path, help="the folder that smollm2.py wrote")
    parser.add_argument("--only", help="one problem")
    parser.add_argument("--ways", default=";".join([*GREEDY, *OURS]), help="separated by semicolons")
    parser.add_argument("--trials", type=int, nargs="+", default=TRIALS)
    parser.add_argument("--seeds", type=int, help="default: 5, and 2 of smollm2")
    parser.add_argument("--search", type=int, help="questions of the search, where not all")
    parser.add_argument("--report", type=int, help="questions that are held out, where not all")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="that greedy's loss is measured on")
    parser.add_argument("--least", type=float, help="share of the FLOPs that greedy goes down to")
    parser.add_argument("--quick", action="store_true", help="short runs on digits, to try the script")
    parser.add_argument("--json", type=Path, help="keep the document there, and go on with the one that is there")
    given = parser.parse_args()
    if given.quick:
        vars(given).update(QUICK)
    ways = given.ways.split(";")
    if unknown := [way for way in ways if way not in (*GREEDY, *OURS)]:
        parser.error(f"no way is called {unknown[0]!r}; there are {'; '.join([*GREEDY, *OURS])}")
    document = Document(given.json)
    for problem in (one for one in problems(given) if given.only in (None, one.name)):
        for way in ways:
            if way in GREEDY:
                if (way == "greedy" or problem.images) and not document.has(problem.name, way):
                    document.add(walked(problem, way, given))
                continue
            if way == "ours, roles" and not problem.images:
                continue
            for trials in given.trials:
                for seed in range(given.seeds or (2 if problem.name == "smollm2" else 5)):
                    if not document.has(problem.name, way, trials, seed):
                        document.add([searched(problem, way, trials, seed)])
    show(claims(document.runs))
    print(json.dumps(document.whole()))


if __name__ == "__main__":
    main()
