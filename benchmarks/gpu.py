"""What policies save on a large LLaVA with random weights: TTFT, TPOT, cache bytes and FLOPs beside the dense model.

    python benchmarks/gpu.py [--batch N ...] [--compiled] [--tiny]

Random weights cost what trained ones do. FLOPs are counted, latency is interleaved with the dense model, bytes are read
off the cache, all by the evaluators that a search uses. Under transformers' own loop, decode at batch 1 waits for
Python: `graph TPOT` is the step as a CUDA graph, which is the GPU's work alone, and `--compiled` adds torch.compile.
The last line is one JSON document.
"""

import argparse
import json
import statistics
import timeit
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import transformers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, StaticCache

from skipsearch import Policy, apply_policy
from skipsearch.evaluators.flops import FlopsEvaluator
from skipsearch.evaluators.latency import LatencyEvaluator, Stopwatch
from skipsearch.evaluators.memory import MemoryEvaluator
from skipsearch.evaluators.prompts import fixed_input, generate
from skipsearch.evaluators.subject import ModelSpec, Subject
from skipsearch.policies.errors import ModelError

TEXT_TOKENS = 64
STEPS = 32
COLUMNS = {
    "prefill FLOPs": "prefill_flops",
    "TTFT": "ttft_ms",
    "decode FLOPs": "decode_flops",
    "TPOT": "tpot_ms",
    "KV bytes": "kv_cache_bytes",
    "graph TPOT": "graph_tpot_ms",
}
# To compile 32 layers takes half a minute. A static cache serves these.
COMPILED = ("skip_layer, last quarter", "skip_attention, second half", "skip_ffn, second half", "parallel, shared norm")


def llava(tiny: bool, device: str) -> LlavaForConditionalGeneration:
    """The shapes of llava-hf/llava-1.5-7b-hf, or of a toy that any machine runs; bfloat16, random weights."""
    width, layers, heads, inner = (64, 8, 4, 172) if tiny else (4096, 32, 32, 11008)
    vision = CLIPVisionConfig(
        hidden_size=32 if tiny else 1024,
        intermediate_size=64 if tiny else 4096,
        num_hidden_layers=2 if tiny else 24,
        num_attention_heads=4 if tiny else 16,
        image_size=112 if tiny else 336,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=32064,
        max_position_embeddings=4096,
    )
    config = LlavaConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), image_token_id=32000)
    torch.manual_seed(0)
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        try:
            return LlavaForConditionalGeneration(config).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(torch.float32)


def prompt(model: LlavaForConditionalGeneration) -> dict[str, torch.Tensor]:
    """One image and some text, batch 1."""
    vision = model.config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2
    ids = torch.randint(3, 31000, (1, tokens + TEXT_TOKENS))
    ids[:, 1 : 1 + tokens] = model.config.image_token_id
    pixels = torch.randn(1, 3, vision.image_size, vision.image_size)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def policies(layers: int) -> dict[str, Policy]:
    """One policy of each kind, by what it does."""

    def of(indices: range, choice: dict[str, Any], **selection: str) -> Policy:
        return Policy.model_validate({"layers": dict.fromkeys(indices, choice), "token_selection": selection})

    half, model = layers // 2, {"num_layers": layers}
    shifted_cosine = {"shifted_cosine": {"ratio": 0.5, "max": 0.85, "min": 0.15}}
    skip = {"attention": "skip", "ffn": "skip"}
    return {
        "empty policy": of(range(0), {}),
        "token_ratio 0.5 from layer 2": of(range(2, layers), {"token_ratio": 0.5}),
        "the same, once (FastV)": of(range(2, layers), {"token_ratio": 0.5}, reselect="once"),
        "shifted cosine (p-MoD)": Policy.model_validate({"model": model, "schedule": shifted_cosine}),
        "token_ratio 0.25 from half": of(range(half, layers), {"token_ratio": 0.25}),
        "skip_layer, last quarter": of(range(layers - layers // 4, layers), skip),
        "skip_attention, second half": of(range(half, layers), {"attention": "skip"}),
        "skip_attention, everywhere": of(range(layers), {"attention": "skip"}),
        "skip_ffn, second half": of(range(half, layers), {"ffn": "skip"}),
        "skip_ffn, everywhere": of(range(layers), {"ffn": "skip"}),
        "skip_ffn (decode), second half": of(range(half, layers), {"ffn": "skip", "phase": "decode"}),
        "skip_ffn (image), second half": of(range(half, layers), {"ffn": "skip", "tokens": "image"}),
        "freeze_image, second half": of(
            range(half, layers), {"attention": "keys_only", "ffn": "skip", "tokens": "image"}
        ),
        "queries_only (image), second half": of(range(half, layers), {"attention": "queries_only", "tokens": "image"}),
        "Skip-Vision, everywhere": of(
            range(layers), {"token_ratio": 0.2, "rest": "attention", "evict": True}, score="uniform"
        ),
        "evict half, everywhere": of(range(layers), {"token_ratio": 0.5, "phase": "decode"}),
        "diverse 0.1 (DivPrune)": of(range(layers), {"token_ratio": 0.1}, score="diverse", reselect="once"),
        "norm 0.3, merged (VisionZip)": of(
            range(layers), {"token_ratio": 0.3}, score="norm", reselect="once", dropped="merge"
        ),
        **{
            f"token_ratio 0.5, {score}": of(range(2, layers), {"token_ratio": 0.5}, score=score)
            for score in ("relevance", "change", "key_norm")
        },
        "parallel, everywhere": of(range(layers), {"wiring": "parallel"}),
        "parallel, shared norm": of(range(layers), {"wiring": "parallel", "norm": "shared"}),
    }


def measure(subject: Subject, policy: Policy, batch: int, repeats: int) -> dict[str, float]:
    """The figures of a policy, and the dense model's latency in turns with them."""
    latency = LatencyEvaluator.options.model_validate(
        {"batch_size": batch, "new_tokens": STEPS // 2, "repeats": repeats}
    )
    plain = FlopsEvaluator.options.model_validate({})
    found: dict[str, float] = {}
    with torch.inference_mode(), apply_policy(subject.model, policy) as handle:
        costs = FlopsEvaluator(plain, subject).measure(handle, "search")
        costs |= MemoryEvaluator(plain, subject).measure(handle, "search")
        for name, entry in costs.items():
            found[name] = entry.value
        for name, entry in LatencyEvaluator(latency, subject).measure(handle, "search").items():
            found |= {name: entry.value, f"{name}_dense": entry.dense or 0.0, f"{name}_iqr": entry.iqr or 0.0}
    graph = graph_tpot(subject, policy, batch)
    return found if graph is None else found | {"graph_tpot_ms": graph}


@torch.inference_mode()
def graph_tpot(subject: Subject, policy: Policy, batch: int) -> float | None:
    """Median decode step that is replayed as a CUDA graph, in milliseconds; on a CPU, which has none, the plain step.

    None for policies that a static cache does not serve, such as those that skip attention in decode alone.
    """
    model = subject.model
    inputs = fixed_input(subject, batch)
    room = inputs["input_ids"].shape[1] + 2 * STEPS
    cache = StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=room)
    with apply_policy(model, policy):
        try:
            token = model(**inputs, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
        except ModelError:
            return None
        step = partial(model, input_ids=token, past_key_values=cache)
        for _ in range(3):
            step()
        if not token.is_cuda:
            return statistics.median(timeit.repeat(step, number=1, repeat=STEPS)) * 1e3
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(STEPS + 1)]
        for mark in marks:
            mark.record()
            graph.replay()
        torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairwise(marks))


@torch.inference_mode()
def compiled_tpot(subject: Subject, policy: Policy, batch: int) -> float:
    """Median decode step, compiled and with a static cache, which makes a CUDA graph on a GPU; in milliseconds."""
    inputs = {name: tensor.to(subject.model.device) for name, tensor in fixed_input(subject, batch).items()}
    torch._dynamo.reset()
    with apply_policy(subject.model, policy):
        for _ in range(3):  # The first compiles, the second may record the graph.
            watch = Stopwatch()
            generate(subject.model, inputs, STEPS + 1, streamer=watch, cache_implementation="static")
    return statistics.median(later - earlier for earlier, later in pairwise(watch.times[1:])) * 1e3


def eager(subject: Subject, batch: int, repeats: int, only: list[str]) -> dict[str, Any]:
    """The figures of the policies at one batch size, printed as a table while they come."""
    layers = subject.model.config.get_text_config().num_hidden_layers
    dense = measure(subject, Policy(), batch, repeats)
    results: dict[str, Any] = {"dense": dense}
    print(f"{f'batch {batch}, share of dense':31}" + "".join(f"{head:>14}" for head in COLUMNS))
    for name, policy in policies(layers).items():
        if not any(part in name for part in only):
            continue
        found = results[name] = measure(subject, policy, batch, repeats)
        shares = (
            f"{found[key] / (found.get(f'{key}_dense') or dense[key]):.2f}" if key in found else "-"
            for key in COLUMNS.values()
        )
        print(f"{name:31}" + "".join(f"{share:>14}" for share in shares), flush=True)
    return results


def compiled(subject: Subject, batch: int) -> dict[str, float]:
    """Compiled decode steps of the dense model and of some policies, in milliseconds, printed while they come."""
    known = policies(subject.model.config.get_text_config().num_hidden_layers)
    results: dict[str, float] = {}
    for name, policy in {"dense": Policy(), **{name: known[name] for name in COMPILED}}.items():
        results[name] = compiled_tpot(subject, policy, batch)
        share = results[name] / results["dense"]
        print(f"batch {batch}, compiled: {name:31}{results[name]:8.2f} ms{share:8.2f}", flush=True)
    return results


def main() -> None:
    """Measure every policy at every batch size, print tables and one JSON document."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--batch", type=int, nargs="+", default=[1])
    arguments.add_argument("--repeats", type=int, default=7)
    arguments.add_argument("--only", nargs="+", default=[""], help="policies that have one of these in their name")
    arguments.add_argument("--compiled", action="store_true", help="time compiled decode steps instead")
    arguments.add_argument("--tiny", action="store_true", help="toy shapes, to try the script on any machine")
    options = arguments.parse_args()
    on_gpu = torch.cuda.is_available()
    model = llava(options.tiny, "cuda" if on_gpu else "cpu")
    subject = Subject(model, None, None, ModelSpec(id="random"), True, [prompt(model)])
    plain = partial(eager, subject, repeats=options.repeats, only=options.only)
    measured = partial(compiled, subject) if options.compiled else plain
    results = {batch: measured(batch) for batch in options.batch}
    name = torch.cuda.get_device_name() if on_gpu else "cpu"
    shapes = "toy" if options.tiny else "LLaVA-1.5-7B"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"device": name, "shapes": shapes, "compiled": options.compiled, **versions, "batches": results}))


if __name__ == "__main__":
    main()
