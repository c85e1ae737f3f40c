"""Dense and policy in every tool that loads an export: `python benchmarks/exports.py FOLDER POLICY --out OUT`.

FOLDER is what `smollm2.py` makes: a model and two lm-eval tasks of ARC-easy. Each target is written for the dense model
and for the policy, with its proof, and then loaded by its tool in a process of its own, on one thread:

    python benchmarks/exports.py smollm2 policy.yaml --out exported
        --vllm-python ~/vllm/bin/python --llama-python ~/llama/bin/python

What is printed, for dense and policy in turns: seconds to load, tokens a second of a prompt and of greedy generation
(medians of the rounds), bytes of the folder, and the policy's accuracy on the tasks. lm-eval makes the requests and the
accuracy from the log-likelihoods that the tool computes, as it does for its own models; `apart` is their largest
difference from those of the model under the policy. A target whose tool is not installed is left out and named.
Prints a table, and one JSON document last.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from skipsearch import Policy, apply_policy
from skipsearch.exports.export import export
from skipsearch.exports.registry import target_class
from skipsearch.exports.target import Options, Source
from skipsearch.policies.errors import SkipsearchError

RUNNER = Path(__file__).with_name("exports_run.py")
TARGETS = ("hf", "hf-remote", "vllm", "gguf", "openvino")
TASKS = ("search", "report")
PROMPT, NEW = 64, 32


class Stored(TemplateLM):
    """Answers lm-eval's requests with what a tool computes for all of them at once.

    Args:
        tokenizer: The model's tokenizer.
        score: Gives the log-likelihood of each continuation, by the ids of the context and those after it.
    """

    def __init__(self, tokenizer: Any, score: Any) -> None:
        super().__init__()
        self.tokenizer, self.score = tokenizer, score

    @property
    def eot_token_id(self) -> int:
        """The id that stands for an empty context."""
        return int(self.tokenizer.eos_token_id)

    def tok_encode(self, string: str, **more: Any) -> list[int]:
        """The ids of a text."""
        return list(self.tokenizer.encode(string, add_special_tokens=False))

    def _loglikelihood_tokens(self, requests: Sequence[Any], **more: Any) -> list[tuple[float, bool]]:
        return [(value, False) for value in self.score([(context, after) for _, context, after in requests])]

    def loglikelihood_rolling(self, requests: Any, **more: Any) -> list[float]:
        """No task asks for it."""
        raise NotImplementedError

    def generate_until(self, requests: Any, **more: Any) -> list[str]:
        """No task asks for it."""
        raise NotImplementedError


def accuracy(folder: Path, tokenizer: Any, score: Any, limit: int | None) -> float:
    """lm-eval's accuracy over the questions of both tasks; `limit` is the number of questions of each."""
    tasks = [str(folder / f"{name}.yaml") for name in TASKS]
    found = lm_eval.simple_evaluate(
        model=Stored(tokenizer, score), tasks=tasks, limit=limit, task_manager=TaskManager(), bootstrap_iters=0
    )
    counted = [(found["results"][name]["acc,none"], found["n-samples"][name]["effective"]) for name in found["results"]]
    return float(sum(value * count for value, count in counted) / sum(count for _, count in counted))


def in_tool(target: str, folder: Path, python: Path, rows: Any = ()) -> dict[str, Any]:
    """Load an export in its tool; see `exports_run.py` for what comes back."""
    with tempfile.TemporaryDirectory() as place:
        asked, found = Path(place) / "asked.json", Path(place) / "found.json"
        asked.write_text(json.dumps({"rows": list(rows), "prompt": PROMPT, "new": NEW}))
        command = [str(python), "-P", str(RUNNER), target, str(folder), str(asked), str(found)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            sys.exit(f"{target} does not run {folder}\n{done.stderr[-2000:]}")
        answer: dict[str, Any] = json.loads(found.read_text())
        return answer


class Scored:
    """Keeps the log-likelihoods that a function computed, in order.

    Args:
        score: The function.
    """

    def __init__(self, score: Any) -> None:
        self.score, self.scores = score, list[float]()

    def __call__(self, rows: Any) -> list[float]:
        """Log-likelihoods of rows."""
        found: list[float] = self.score(rows)
        self.scores += found
        return found


def in_process(model: Any, policy: Policy) -> Any:
    """Log-likelihoods of the model under the policy, computed here."""
    from exports_run import score_logits

    def score(rows: Any) -> list[float]:
        with apply_policy(model, policy), torch.no_grad():
            return score_logits(lambda ids: model(input_ids=ids, use_cache=False).logits[0], rows)

    return score


def measured(
    target: str, source: Source, policy: Policy, given: argparse.Namespace, expected: Sequence[float]
) -> dict[str, Any]:
    """Write one target for dense and policy, run both in turns, and hold the policy's scores against the expected."""
    tokenizer = source.processor
    python = {"vllm": given.vllm_python, "gguf": given.llama_python}.get(target)
    folders = {}
    for name, choices in (("dense", Policy()), ("policy", policy)):
        folder = given.out / f"{target}-{name}"
        done = export(choices, source, target_class(target)(Options(python=python)), folder)
        folders[name] = folder
        print(f"{target} {name}: {done.proof}", file=sys.stderr)
    python = python or Path(sys.executable)
    rounds = [{name: in_tool(target, folder, python) for name, folder in folders.items()} for _ in range(given.rounds)]
    row: dict[str, Any] = {"target": target, "difference": done.difference}
    for name, folder in folders.items():
        row[name] = {key: statistics.median(one[name][key] for one in rounds) for key in rounds[0][name]
                     if key != "scores"}  # fmt: skip
        row[name]["bytes"] = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    scored = Scored(lambda rows: in_tool(target, folders["policy"], python, rows)["scores"])
    row["accuracy"] = accuracy(given.folder, tokenizer, scored, given.limit)
    row["apart"] = max(abs(a - b) for a, b in zip(scored.scores, expected, strict=True))
    return row


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    print("| target | load s | prompt tokens/s | generated tokens/s | MB | accuracy | apart |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [
            f"{row['dense'][key] / scale:.{digits}f} -> {row['policy'][key] / scale:.{digits}f}"
            for key, scale, digits in (("load_s", 1, 1), ("prompt_per_s", 1, 0), ("new_per_s", 1, 1), ("bytes", 1e6, 0))
        ] if "dense" in row else ["", "", "", ""]  # fmt: skip
        print(
            "|",
            " | ".join([row["target"], *cells, format(row["accuracy"], ".4f"), format(row.get("apart", 0), ".1e")]),
            "|",
        )


def main() -> None:
    """Measure all targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("policy", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--vllm-python", type=Path, help="an interpreter with vLLM and the plug-in")
    parser.add_argument("--llama-python", type=Path, help="an interpreter with llama-cpp-python")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="questions of each task, where not all")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(given.folder / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(given.folder / "model")
    policy, source = Policy.load(given.policy), Source(model, tokenizer, str(given.folder / "model"))
    rows, left_out = [], {}
    for name, choices in (("dense, in transformers", Policy()), ("policy, in transformers", policy)):
        scored = Scored(in_process(model, choices))
        rows.append({"target": name, "accuracy": accuracy(given.folder, tokenizer, scored, given.limit)})
    for target in given.targets.split(","):
        try:
            rows.append(measured(target, source, policy, given, scored.scores))
        except SkipsearchError as error:
            left_out[target] = str(error)
            print(f"{target} is left out: {error}", file=sys.stderr)
    show(rows)
    print(json.dumps({"benchmark": "exports", "policy": policy.fingerprint, "rows": rows, "left_out": left_out}))


if __name__ == "__main__":
    main()
