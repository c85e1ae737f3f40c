"""What a policy costs and saves: time beside counted FLOPs, on random models, prefill and decode apart.

    python benchmarks/apply.py [--quick]

Each line compares two ways to compute the same request, timed in turns (A B A B) in one process. `empty policy` must
be 1.00. `half the layers` runs the policy against a model built with half the layers, and must be 1.00. The others
run a choice on all layers against the dense model: the share of the time beside the share of the FLOPs. A choice
whose time share is above its FLOPs share pays for work that is not counted, or for the choosing itself.
"""

import argparse
import contextlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers as t

from skipsearch import Policy, apply_policy
from skipsearch.evaluators.flops import flop_counter

IMAGE = 999
CHOICES: dict[str, dict[str, Any]] = {
    "skip_ffn": {"ffn": "skip"},
    "skip_attention": {"attention": "skip"},
    "parallel": {"wiring": "parallel"},
}
RATIOS: dict[str, tuple[dict[str, Any], str]] = {
    "token_ratio 0.5, attention": ({"token_ratio": 0.5}, "attention"),
    "token_ratio 0.5, norm": ({"token_ratio": 0.5}, "norm"),
    "token_ratio 0.5, uniform": ({"token_ratio": 0.5}, "uniform"),
    "token_ratio 0.0": ({"token_ratio": 0.0}, "uniform"),
    "token_ratio 0.5 + skip_ffn": ({"token_ratio": 0.5, "ffn": "skip"}, "attention"),
}


@dataclass(frozen=True)
class Size:
    """How big a model is; no image means a text model."""

    name: str
    width: int
    layers: int
    text: int
    image_side: int = 0

    def model(self, layers: int) -> t.PreTrainedModel:
        """A random model with so many layers."""
        torch.manual_seed(0)
        text = t.LlamaConfig(
            hidden_size=self.width,
            intermediate_size=self.width * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=self.width // 64,
            num_key_value_heads=self.width // 64,
            vocab_size=1000,
        )
        if not self.image_side:
            return t.LlamaForCausalLM(text).eval()
        vision = t.CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=self.image_side * 14,
            patch_size=14,
        )
        config = t.LlavaConfig(
            vision_config=vision.to_dict(),
            text_config=text.to_dict(),
            image_token_id=IMAGE,
            vision_feature_layer=-1,
        )
        return t.LlavaForConditionalGeneration(config).eval()

    def inputs(self) -> dict[str, torch.Tensor]:
        """A prompt: the image, then the text."""
        torch.manual_seed(1)
        image = torch.full((1, self.image_side**2), IMAGE)
        ids = torch.cat([image, torch.randint(3, 900, (1, self.text))], dim=1)
        pixels = {"pixel_values": torch.randn(1, 3, self.image_side * 14, self.image_side * 14)}
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **(pixels if self.image_side else {})}


FULL = (Size("llama, wide and shallow", 1024, 4, text=128), Size("llava, 576 image tokens", 512, 4, 32, image_side=24))
QUICK = (Size("llama, tiny", 128, 2, text=16), Size("llava, tiny", 128, 2, 8, image_side=4))


@dataclass
class Request:
    """One way to compute a request: a model, and the context in which it computes it so."""

    model: t.PreTrainedModel
    inputs: dict[str, torch.Tensor]
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    cache: Any = None

    def prefill(self) -> None:
        """The prompt, to the logits of the next token."""
        self.cache = self.model(**self.inputs, use_cache=True, logits_to_keep=1).past_key_values

    def decode(self) -> None:
        """One more token."""
        self.model(input_ids=torch.tensor([[5]]), past_key_values=self.cache, use_cache=True)

    def timed(self, phase: str) -> float:
        """Milliseconds of one phase."""
        work = getattr(self, phase)
        with self.context():
            start = time.perf_counter()
            work()
            return (time.perf_counter() - start) * 1e3

    def flops(self, phase: str) -> int:
        """What torch counts in one phase."""
        with self.context(), flop_counter() as counter:
            getattr(self, phase)()
        return int(counter.get_total_flops())


def compare(case: str, phase: str, one: Request, other: Request, repeats: int) -> dict[str, Any]:
    """Time two requests in turns; the share is the median of what neighbours in time show."""
    flops = other.flops(phase) / one.flops(phase)
    for request in (one, other):
        request.timed(phase)
    pairs = []
    for turn in range(repeats):
        order = (one, other) if turn % 2 == 0 else (other, one)
        times = {id(request): request.timed(phase) for request in order}
        pairs.append((times[id(one)], times[id(other)]))
    low, middle, high = statistics.quantiles([b / a for a, b in pairs], n=4, method="inclusive")
    return {
        "case": case,
        "phase": phase,
        "flops_share": round(flops, 4),
        "time_share": round(middle, 4),
        "time_share_iqr": [round(low, 4), round(high, 4)],
        "dense_ms": round(statistics.median(a for a, _ in pairs), 3),
        "policy_ms": round(statistics.median(b for _, b in pairs), 3),
        "n": repeats,
    }


def cases(size: Size) -> Iterator[tuple[str, dict[int, dict[str, Any]], str, int | None]]:
    """Name, layers of the policy, score, and the layers of the model to compare with; None for the dense one."""
    everywhere = range(size.layers)
    half = dict.fromkeys(range(size.layers // 2), {"attention": "skip", "ffn": "skip"})
    yield "empty policy", {}, "attention", None
    yield "half the layers", half, "attention", size.layers - size.layers // 2
    for name, choice in CHOICES.items():
        yield name, dict.fromkeys(everywhere, choice), "attention", None
    if size.image_side:
        for name, (choice, score) in RATIOS.items():
            yield name, dict.fromkeys(everywhere, choice), score, None


@torch.inference_mode()
def measure(size: Size, repeats: int) -> Iterator[dict[str, Any]]:
    """All cases of one model."""
    model, inputs = size.model(size.layers), size.inputs()
    for name, layers, score, against in cases(size):
        policy = Policy.model_validate({"layers": layers, "token_selection": {"score": score}})
        with apply_policy(model, policy) as handle:
            skipping = Request(model, inputs)
            dense = Request(model, inputs, handle.dense)
            if against is not None:
                dense = Request(size.model(against), inputs)
            for phase, times in (("prefill", repeats), ("decode", 5 * repeats)):
                yield compare(name, phase, dense, skipping, times)


def table(name: str, rows: list[dict[str, Any]]) -> str:
    """The figures for people."""
    lines = [name, f"  {'case':28}{'phase':9}{'FLOPs':>8}{'time':>8}  {'IQR':16}{'dense':>10}{'policy':>10}"]
    for row in rows:
        spread = "{:.3f}..{:.3f}".format(*row["time_share_iqr"])
        lines.append(
            f"  {row['case']:28}{row['phase']:9}{row['flops_share']:8.3f}{row['time_share']:8.3f}  {spread:16}"
            f"{row['dense_ms']:7.2f} ms{row['policy_ms']:7.2f} ms"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table for each model, and one JSON document last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny models and few repeats: shows that it runs")
    parser.add_argument("--repeats", type=int, default=None, help="pairs of each prefill (default 9, quick 2)")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    repeats = arguments.repeats or (2 if arguments.quick else 9)
    models = []
    for size in QUICK if arguments.quick else FULL:
        rows = list(measure(size, repeats))
        print(table(size.name, rows), flush=True)
        tokens = size.inputs()["input_ids"].shape[1]
        models.append({"name": size.name, "layers": size.layers, "width": size.width, "tokens": tokens, "cases": rows})
    machine = {"processor": platform.processor() or platform.machine(), "threads": arguments.threads}
    versions = {"torch": torch.__version__, "transformers": t.__version__}
    print(json.dumps({"benchmark": "apply", "quick": arguments.quick, **machine, **versions, "models": models}))


if __name__ == "__main__":
    main()
