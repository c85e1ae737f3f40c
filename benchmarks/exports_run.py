"""Runs one export in its own tool, for `exports.py`; a script for the environment of that tool.

`exports_run.py TARGET FOLDER ASKED FOUND` reads `rows`, pairs of the ids of a context and of what follows it, and the
lengths `prompt` and `new`, and writes `load_s`, `prompt_per_s`, `new_per_s` (both in tokens a second) and `scores`, the
log-likelihood of each row's second part. It imports nothing of skipsearch but the scripts that load an export.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

EXPORTS = Path(__file__).resolve().parents[1] / "exports"
FILES = {"gguf": "model.gguf"}
LONGEST = 256
Rows = Sequence[tuple[list[int], list[int]]]


def script(path: str) -> Any:
    """A script of the exports, as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, EXPORTS / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def score_logits(logits_of: Callable[[Any], Any], rows: Rows) -> list[float]:
    """Log-likelihoods of rows, from a function of ids, shape (1, tokens), to logits, shape (tokens, vocabulary)."""
    import torch

    scores = []
    for context, after in rows:
        ids = torch.tensor([context + after])
        logits = torch.as_tensor(logits_of(ids[:, :-1]))[-len(after) :]
        picked = torch.log_softmax(logits.double(), -1).gather(1, torch.tensor(after)[:, None])
        scores.append(float(picked.sum()))
    return scores


class Transformers:
    """A checkpoint in transformers."""

    def __init__(self, folder: str, trust: bool) -> None:
        self.model = script("checkpoint/run.py").load(folder, "AutoModelForCausalLM", trust, "float32", "sdpa")

    def scores(self, rows: Rows) -> list[float]:
        """Log-likelihoods; see `score_logits`."""
        return score_logits(lambda ids: self.model(input_ids=ids, use_cache=False).logits[0], rows)

    def prompt(self, ids: list[int]) -> None:
        """Run a prompt into a cache."""
        import torch

        self.model(input_ids=torch.tensor([ids]), use_cache=True, logits_to_keep=1)

    def generate(self, ids: list[int], new: int) -> None:
        """Generate tokens greedily."""
        import torch

        self.model.generate(torch.tensor([ids]), max_new_tokens=new, min_new_tokens=new, do_sample=False)


class OpenVino:
    """A graph in OpenVINO, which has no cache: each new token runs all tokens."""

    def __init__(self, folder: str) -> None:
        (file,) = Path(folder).glob("*.xml")
        self.module = script("graph/run.py")
        self.run = self.module.load_openvino(str(file))

    def inputs(self, ids: Any) -> Any:
        """The inputs of a graph."""
        import torch

        ids = torch.as_tensor(ids).reshape(1, -1)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def scores(self, rows: Rows) -> list[float]:
        """Log-likelihoods; see `score_logits`."""
        return score_logits(lambda ids: self.run(self.inputs(ids))[0], rows)

    def prompt(self, ids: list[int]) -> None:
        """Run a prompt into a cache."""
        self.run(self.inputs(ids))

    def generate(self, ids: list[int], new: int) -> None:
        """Generate tokens greedily."""
        self.module.outputs_of(self.run, self.inputs(ids), new)


class Vllm:
    """A folder in vLLM."""

    def __init__(self, folder: str) -> None:
        self.model = script("vllm/run.py").load(folder, "float32", LONGEST, False)

    def run(self, rows: list[list[int]], **more: Any) -> Any:
        """Run rows of ids."""
        from vllm import SamplingParams

        asked = SamplingParams(temperature=0, ignore_eos=True, detokenize=False, **more)
        return self.model.generate([{"prompt_token_ids": ids} for ids in rows], asked, use_tqdm=False)

    def scores(self, rows: Rows) -> list[float]:
        """Log-likelihoods; see `score_logits`."""
        done = self.run([[*context, *after] for context, after in rows], max_tokens=1, prompt_logprobs=0)
        return [
            sum(place[token].logprob for place, token in zip(one.prompt_logprobs[-len(after) :], after, strict=True))
            for one, (_, after) in zip(done, rows, strict=True)
        ]

    def prompt(self, ids: list[int]) -> None:
        """Run a prompt into a cache."""
        self.run([ids], max_tokens=1)

    def generate(self, ids: list[int], new: int) -> None:
        """Generate tokens greedily."""
        self.run([ids], max_tokens=new)


class Llama:
    """A file in llama.cpp."""

    def __init__(self, file: str) -> None:
        self.module = script("gguf/run_llama.py")
        self.runner = self.module.Runner(file, LONGEST)

    def scores(self, rows: Rows) -> list[float]:
        """Log-likelihoods; see `score_logits`."""
        import numpy as np

        scores = []
        for context, after in rows:
            opened = self.runner.open()
            logits = self.runner.logits(opened, [*context, *after][:-1], 0)[-len(after) :].astype(np.float64)
            self.module.llama_cpp.llama_free(opened)
            likely = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
            scores.append(float(likely[np.arange(len(after)), after].sum()))
        return scores

    def prompt(self, ids: list[int]) -> None:
        """Run a prompt into a cache."""
        opened = self.runner.open()
        self.runner.logits(opened, ids, 0)
        self.module.llama_cpp.llama_free(opened)

    def generate(self, ids: list[int], new: int) -> None:
        """Generate tokens greedily."""
        self.runner.run(ids, new)


LOADERS: dict[str, Callable[[str], Any]] = {
    "hf": lambda folder: Transformers(folder, False),
    "hf-remote": lambda folder: Transformers(folder, True),
    "vllm": Vllm,
    "gguf": lambda folder: Llama(str(Path(folder) / FILES["gguf"])),
    "openvino": OpenVino,
}


def seconds(work: Callable[[], Any]) -> float:
    """How long something takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Load, time and score."""
    target, folder, asked, found = sys.argv[1:]
    request = json.loads(Path(asked).read_text())
    start = time.perf_counter()
    if target != "gguf":
        import torch

        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
    tool = LOADERS[target](folder)
    result: dict[str, Any] = {"load_s": time.perf_counter() - start}
    ids = [(7 * place) % 1000 + 100 for place in range(request["prompt"])]
    tool.prompt(ids)
    prompt = min(seconds(lambda: tool.prompt(ids)) for _ in range(3))
    whole = min(seconds(lambda: tool.generate(ids, request["new"])) for _ in range(2))
    result["prompt_per_s"] = len(ids) / prompt
    result["new_per_s"] = (request["new"] - 1) / max(whole - prompt, 1e-9)
    result["scores"] = tool.scores([tuple(row) for row in request["rows"]])
    Path(found).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
