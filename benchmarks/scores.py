"""What each score of image tokens keeps of the answers, and what the greedy one costs: `python benchmarks/scores.py`.

Accuracy by greedy generation on the search questions of `digits`, with a token ratio from a layer on, for each score,
ratio, layer and way to reselect; then the mean over these settings by score, with the standard error of the paired
difference to `random`. `--cost` times the scores that choose greedily on 2,880 image tokens of a 7B model's width
against one of its layers. Prints one JSON document last. `--limit` takes fewer questions.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForImageTextToText, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from skipsearch import Policy, apply_policy
from skipsearch.policies.runtime.tokens import ForwardTokens
from skipsearch.policies.scores.table import SCORES, find_score
from skipsearch.spaces.digits.evaluate import HERE, Exam

RATIOS = (0.5, 0.25, 0.125)
LAYERS = (0, 2, 3, 6)
RESELECT = ("each_layer", "once")
SELECTIONS: dict[str, dict[str, Any]] = {name: {"score": name} for name in SCORES} | {
    "relevance 0.5": {"score": "relevance", "diversity": 0.5},
    "attention, merged": {"score": "attention", "dropped": "merge"},
    "diverse, merged": {"score": "diverse", "dropped": "merge"},
    "uniform, merged": {"score": "uniform", "dropped": "merge"},
}
TOKENS, REPEATS = 2880, 3


class Setting(NamedTuple):
    """A token ratio from a layer on."""

    ratio: float
    layer: int
    reselect: str


def settings(selection: dict[str, Any]) -> Iterator[Setting]:
    """The settings of a selection; tokens are merged only where they are removed for good."""
    for reselect in RESELECT[1:] if "dropped" in selection else RESELECT:
        yield from (Setting(ratio, layer, reselect) for layer in LAYERS for ratio in RATIOS)


def right_answers(model: Any, exam: Exam, selection: dict[str, Any], setting: Setting) -> list[bool]:
    """Whether each question is answered right under a policy."""
    layers = dict.fromkeys(range(setting.layer, model.config.get_text_config().num_hidden_layers), setting.ratio)
    policy = {"layers": {layer: {"token_ratio": ratio} for layer, ratio in layers.items()}}
    policy["token_selection"] = {**selection, "reselect": setting.reselect}
    with apply_policy(model, Policy.model_validate(policy)):
        return exam.right(model)


def accuracies(limit: int) -> dict[str, dict[Setting, list[bool]]]:
    """The answers of all selections at all settings."""
    model = AutoModelForImageTextToText.from_pretrained(HERE / "model").eval()
    exam, found = Exam(HERE / "model", "search", limit), {}
    print("dense", statistics.fmean(exam.right(model)), flush=True)
    for name, selection in SELECTIONS.items():
        found[name] = {setting: right_answers(model, exam, selection, setting) for setting in settings(selection)}
        print(name, statistics.fmean(statistics.fmean(right) for right in found[name].values()), flush=True)
    return found


def row(answers: dict[Setting, list[bool]], random: dict[Setting, list[bool]], reselect: str) -> dict[str, float]:
    """Accuracies of one score: by layer and ratio, the mean, and its difference to `random` with a standard error."""
    kept = {setting: right for setting, right in answers.items() if setting.reselect == reselect}
    means = {f"{setting.layer}: {setting.ratio:g}": statistics.fmean(right) for setting, right in kept.items()}
    # The questions are the same everywhere, so that the error is that of the mean difference of a question.
    differences = [
        statistics.fmean(right[place] - random[setting][place] for setting, right in kept.items())
        for place in range(len(next(iter(kept.values()))))
    ]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return {**means, "mean": statistics.fmean(means.values()), "gain": statistics.fmean(differences), "error": error}


def table(answers: dict[str, dict[Setting, list[bool]]]) -> dict[str, dict[str, dict[str, float]]]:
    """All rows by way to reselect; printed as they are for the page."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for reselect in RESELECT:
        rows = {
            name: row(of_score, answers["random"], reselect)
            for name, of_score in answers.items()
            if any(setting.reselect == reselect for setting in of_score)
        }
        found[reselect] = dict(sorted(rows.items(), key=lambda entry: -entry[1]["mean"]))
        columns = [key for key in next(iter(rows.values())) if ":" in key]
        print(f"\n| {reselect} | {' | '.join(columns)} | mean | against random |\n|{'---|' * (len(columns) + 3)}")
        for name, figures in found[reselect].items():
            cells = [f"{figures[key]:.3f}" for key in (*columns, "mean")]
            print(f"| {name} | {' | '.join(cells)} | {figures['gain']:+.3f} ± {figures['error']:.3f} |")
    return found


def cost(device: str) -> dict[str, float]:
    """Seconds of one layer of a 7B model's prefill, and of the greedy scores by the share that they keep."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_attention_heads=32)
    config._attn_implementation = "sdpa"
    with torch.device(device):
        layer = LlamaDecoderLayer(config, 0).to(dtype).eval()
        hidden, places = torch.randn(1, TOKENS, 4096, dtype=dtype), torch.arange(TOKENS)[None]
        rotary = LlamaRotaryEmbedding(config)(hidden, places)
        image = torch.ones(1, TOKENS, dtype=torch.bool)
    tokens = ForwardTokens.read(image, None, None)
    assert tokens is not None
    found = {"layer": seconds(lambda: layer(hidden, position_embeddings=rotary), device, warm=device != "cpu")}
    for name, diversity in (("diverse", 0.0), ("relevance", 0.5)):
        for ratio in RATIOS:
            inputs = tokens.score_inputs(hidden, [int(TOKENS * ratio)])
            score = find_score(name, diversity)
            found[f"{name} {ratio:g}"] = seconds(lambda score=score, inputs=inputs: score.scores(inputs), device)
    for name, took in found.items():
        print(f"{name:<16} {1000 * took:9.1f} ms   {took / found['layer']:.3f} of a layer")
    return found


@torch.inference_mode()
def seconds(run: Callable[[], Any], device: str, warm: bool = True) -> float:
    """The median time of a call, after one that does not count; without `warm` the time of one call."""
    times = []
    for _ in range(1 + REPEATS if warm else 1):
        started = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:] or times)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=400, help="so many questions")
    parser.add_argument("--cost", action="store_true", help="time the greedy scores instead")
    parser.add_argument("--device", default="cpu", help="where to time them")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = cost(options.device) if options.cost else table(accuracies(options.limit))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
