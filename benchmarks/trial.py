"""What accuracy costs in a trial: `python benchmarks/trial.py [--smollm2 FOLDER]`.

The same model, questions and policies, in turns in one run:

- `command`: lm-eval's own command, which loads the model anew (`skipsearch lm-eval`, from the second round on with warm
  files).
- `simple_evaluate`: lm-eval's function on the patched model in memory, with lm-eval's own model class.
- `per answer`: skipsearch's evaluator in lm-eval's batches, each answer with its prompt, as for the report split.
- `trial`: the same in a search, where answers share their prompt and batches have equal numbers of tokens.
- `forwards`: the part of `trial` that is spent inside the decoder and the output layer.

All times are CPU time, of the command that of its process. `digits` is shipped; `smollm2.py` makes the folder of the
other model. The accuracies of all sides must be equal. Prints a table of medians, and one JSON document last; with
`--profile` the functions in which one trial spends its own time first.
"""

import argparse
import contextlib
import cProfile
import io
import json
import os
import pstats
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lm_eval
import torch
import yaml
from lm_eval.models.hf_vlms import HFMultimodalLM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from skipsearch.evaluators.accuracy.accuracy import AccuracyEvaluator, AccuracyOptions
from skipsearch.evaluators.subject import Subject, load_subject
from skipsearch.policies.apply import apply_policy
from skipsearch.policies.choice import LayerChoice
from skipsearch.policies.policy import Policy
from skipsearch.search.space.load import load_space

SIDES = ("command", "simple_evaluate", "per answer", "trial", "forwards")


class Problem:
    """A model with questions.

    Args:
        name: What it is called.
        space: The space that names the model and the task of the search split.
        limit: How many questions.
        batch: Requests in a batch, on every side.
    """

    def __init__(self, name: str, space: str, limit: int, batch: int) -> None:
        self.name, self.limit, self.batch = name, limit, batch
        found = load_space(space).space
        self.task = str(found.evaluate["accuracy"]["search"]["tasks"][0])
        self.subject: Subject = load_subject(found.model)
        options = AccuracyOptions(tasks=[self.task], batch_size=batch, search={"limit": limit})
        self.evaluators = {
            side: AccuracyEvaluator(options.model_copy(update={"states_bytes": 0}), self.subject)
            for side in ("per answer", "trial")
        }
        self.evaluators["per answer"].exact_splits = ("search",)

    def policies(self) -> list[Policy]:
        """Dense, every third FFN left out, every fourth layer left out."""
        layers = range(self.subject.model.config.get_text_config().num_hidden_layers)
        ffns = {layer: LayerChoice(ffn="skip") for layer in layers if layer % 3 == 2}
        whole = {layer: LayerChoice(attention="skip", ffn="skip") for layer in layers if layer % 4 == 2}
        return [Policy(), Policy(layers=ffns), Policy(layers=whole)]

    def plain(self) -> Any:
        """lm-eval's own model class around the model."""
        if self.subject.is_multimodal:
            return HFMultimodalLM(pretrained=self.subject.model, batch_size=self.batch)
        return HFLM(pretrained=self.subject.model, tokenizer=self.subject.tokenizer, batch_size=self.batch)


def command(problem: Problem, policy: Policy) -> tuple[dict[str, float], float]:
    """lm-eval's command in a process of its own."""
    name = yaml.safe_load(Path(problem.task).read_text().replace("!function", ""))["task"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "policy.yaml")
        policy.save(path)
        arguments = {
            "--model": "skipsearch",
            "--model_args": f"pretrained={problem.subject.spec.id},policy={path},dtype=float32",
            "--tasks": name,
            "--include_path": str(Path(problem.task).parent),
            "--limit": str(problem.limit),
            "--batch_size": str(problem.batch),
            "--output_path": folder,
        }
        flat = [part for pair in arguments.items() for part in pair]
        begun = children_seconds()
        subprocess.run(
            [sys.executable, "-m", "skipsearch", "lm-eval", *flat],
            check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        seconds = children_seconds() - begun
        (results,) = Path(folder).rglob("results_*.json")
        return {"command": seconds}, accuracy_of(json.loads(results.read_text())["results"][name])


def in_memory(problem: Problem, policy: Policy) -> tuple[dict[str, float], float]:
    """`simple_evaluate` on the patched model."""
    with apply_policy(problem.subject.model, policy):
        begun = time.process_time()
        found = lm_eval.simple_evaluate(
            problem.plain(), tasks=[problem.task], task_manager=TaskManager(include_defaults=False),
            limit=problem.limit, bootstrap_iters=0,
        )  # fmt: skip
        seconds = time.process_time() - begun
    (results,) = found["results"].values()
    return {"simple_evaluate": seconds}, accuracy_of(results)


def children_seconds() -> float:
    """CPU time of all processes that were started and have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


@contextlib.contextmanager
def decoder_clock(model: Any) -> Iterator[list[float]]:
    """CPU seconds inside the decoder and the output layer in this context, as the only entry of a list."""
    spent = [0.0]

    def begin(*_: Any) -> None:
        spent[0] -= time.process_time()

    def end(*_: Any) -> None:
        spent[0] += time.process_time()

    parts = (model.get_decoder(), model.get_output_embeddings())
    hooks = [part.register_forward_pre_hook(begin) for part in parts]
    hooks += [part.register_forward_hook(end) for part in parts]
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def ours(side: str) -> Callable[[Problem, Policy], tuple[dict[str, float], float]]:
    """The evaluator of a search, as `trial` or `per answer`."""

    def run(problem: Problem, policy: Policy) -> tuple[dict[str, float], float]:
        model = problem.subject.model
        with apply_policy(model, policy) as handle, decoder_clock(model) as inside:
            begun = time.process_time()
            found = problem.evaluators[side].measure(handle, "search")["accuracy"]
            seconds = time.process_time() - begun
        return {side: seconds, **({"forwards": inside[0]} if side == "trial" else {})}, found.value

    return run


def profile(problem: Problem, rows: int = 25) -> None:
    """Print the functions in which a trial of the dense model spends its own time, after one that fills the caches."""
    ours("trial")(problem, Policy())
    with cProfile.Profile() as found:
        ours("trial")(problem, Policy())
    pstats.Stats(found, stream=sys.stderr).sort_stats("tottime").print_stats(rows)


def accuracy_of(results: dict[str, Any]) -> float:
    """The accuracy among lm-eval's results of a task."""
    return next(value for key, value in results.items() if key.split(",")[0] in ("acc", "exact_match"))


def rounds(problem: Problem, count: int, sides: list[str]) -> Iterator[tuple[int, dict[str, float]]]:
    """Every side on every policy, in turns: the number of the policy, with seconds by side.

    Raises:
        SystemExit: two sides differ in accuracy.
    """
    runs = {"command": command, "simple_evaluate": in_memory, "per answer": ours("per answer"), "trial": ours("trial")}
    for turn in range(count):
        for number, policy in enumerate(problem.policies()):
            seconds: dict[str, float] = {}
            values = {}
            for side in sides:
                with contextlib.redirect_stdout(io.StringIO()):
                    spent, values[side] = runs[side](problem, policy)
                seconds |= spent
            if len(set(values.values())) > 1:
                sys.exit(f"{problem.name}, policy {number}: accuracies differ, found {values}")
            times = ", ".join(f"{side} {spent:.2f} s" for side, spent in seconds.items())
            head = f"{problem.name}, round {turn}, policy {number}: {values['trial']:.4f}"
            print(f"{head}, {times}", file=sys.stderr, flush=True)
            yield number, seconds


def measured(problem: Problem, count: int, sides: list[str]) -> dict[str, Any]:
    """Medians over rounds and policies; the first trial tokenises, so rounds before it count for nothing."""
    for policy in problem.policies()[:1]:
        for side in ("per answer", "trial"):
            ours(side)(problem, policy)
    found = [seconds for _, seconds in rounds(problem, count, sides)]
    medians = {side: statistics.median(one[side] for one in found) for side in SIDES if side in found[0]}
    return {"problem": problem.name, "questions": problem.limit, "rounds": count, "seconds": medians}


def show(document: dict[str, Any]) -> None:
    """One row a problem: seconds, and how many times a trial."""
    print("| problem | questions | " + " | ".join(SIDES) + " |")
    print("|---|---|" + "---|" * len(SIDES))
    for one in document["problems"]:
        seconds = one["seconds"]
        cells = [
            f"{seconds[side]:.2f} s ({seconds[side] / seconds['trial']:.2f})" if side in seconds else ""
            for side in SIDES
        ]
        print(f"| {one['problem']} | {one['questions']} | {' | '.join(cells)} |")


def main() -> None:
    """Measure, and print the table and the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", type=Path, help="the folder that smollm2.py wrote")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="digits, eight questions, one round, without the command")
    parser.add_argument(
        "--profile", action="store_true", help="print where a trial spends its own time, and nothing else"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    sides = [side for side in SIDES if side != "forwards"]
    if given.quick:
        given.limit, given.rounds, given.smollm2 = 8, 1, None
        sides.remove("command")
    spaces = {"digits": "digits", **({"smollm2": str(given.smollm2 / "space.yaml")} if given.smollm2 else {})}
    problems = (Problem(name, space, given.limit, given.batch) for name, space in spaces.items())
    if given.profile:
        for problem in problems:
            profile(problem)
        return
    found = [measured(problem, given.rounds, sides) for problem in problems]
    document = {"benchmark": "trial", "batch": given.batch, "problems": found}
    show(document)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
