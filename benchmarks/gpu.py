"""What policies save on a large LLaVA with random weights: TTFT, TPOT, cache bytes and FLOPs beside the dense model.

    python benchmarks/gpu.py [--batch N] [--tiny]

Random weights cost what trained ones do. FLOPs are counted, latency is interleaved with the dense model, bytes are read
off the cache, all by the evaluators that a search uses. The last line is one JSON document.
"""

import argparse
import json
import statistics
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from skipsearch import Policy, apply_policy
from skipsearch.evaluators.flops import FlopsEvaluator
from skipsearch.evaluators.latency import LatencyEvaluator, Stopwatch
from skipsearch.evaluators.memory import MemoryEvaluator
from skipsearch.evaluators.prompts import fixed_input, generate
from skipsearch.evaluators.subject import ModelSpec, Subject
from skipsearch.policies.errors import ModelError

TEXT_TOKENS = 64


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
        "parallel, everywhere": of(range(layers), {"wiring": "parallel"}),
        "parallel, shared norm": of(range(layers), {"wiring": "parallel", "norm": "shared"}),
    }


def measure(subject: Subject, policy: Policy, batch: int, repeats: int) -> dict[str, float]:
    """The figures of a policy, and the dense model's latency in turns with them."""
    latency = LatencyEvaluator.options.model_validate({"batch_size": batch, "new_tokens": 32, "repeats": repeats})
    plain = FlopsEvaluator.options.model_validate({})
    found: dict[str, float] = {}
    with torch.inference_mode(), apply_policy(subject.model, policy) as handle:
        costs = FlopsEvaluator(plain, subject).measure(handle, "search")
        costs |= MemoryEvaluator(plain, subject).measure(handle, "search")
        for name, entry in costs.items():
            found[name] = entry.value
        for name, entry in LatencyEvaluator(latency, subject).measure(handle, "search").items():
            found |= {name: entry.value, f"{name}_dense": entry.dense or 0.0, f"{name}_iqr": entry.iqr or 0.0}
    return found


@torch.inference_mode()
def compiled_tpot(subject: Subject, policy: Policy, batch: int) -> float | None:
    """Median decode step with a static cache and a compiled forward, which is a CUDA graph on a GPU, in milliseconds.

    None for policies that choose tokens or store some tokens only, which a static cache does not serve.
    """
    inputs = {name: tensor.to(subject.model.device) for name, tensor in fixed_input(subject, batch).items()}
    torch._dynamo.reset()
    with apply_policy(subject.model, policy):
        try:
            for _ in range(3):  # The first compiles, the second may record the graph.
                watch = Stopwatch()
                generate(subject.model, inputs, 33, streamer=watch, cache_implementation="static")
        except ModelError:
            return None
    tokens = watch.times[1:]
    return statistics.median(later - earlier for earlier, later in zip(tokens, tokens[1:], strict=False)) * 1e3


def main() -> None:
    """Measure every policy, print a table and one JSON document."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--batch", type=int, default=1)
    arguments.add_argument("--repeats", type=int, default=9)
    arguments.add_argument("--tiny", action="store_true", help="toy shapes, to try the script on any machine")
    options = arguments.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = llava(options.tiny, device)
    subject = Subject(model, None, None, ModelSpec(id="random"), True, [prompt(model)])
    layers = model.config.get_text_config().num_hidden_layers
    dense = measure(subject, Policy(), options.batch, options.repeats)
    results = {}
    heads = ("prefill FLOPs", "TTFT", "decode FLOPs", "TPOT", "KV bytes", "compiled TPOT")
    print(f"{'policy, as a share of dense':31}" + "".join(f"{head:>14}" for head in heads))
    compiled_dense = compiled_tpot(subject, Policy(), options.batch) or 0.0
    for name, policy in policies(layers).items():
        found = results[name] = measure(subject, policy, options.batch, options.repeats)
        compiled = compiled_tpot(subject, policy, options.batch)
        found |= {"compiled_tpot_ms": compiled or 0.0, "compiled_tpot_ms_dense": compiled_dense}
        shares = [found["prefill_flops"] / dense["prefill_flops"], found["ttft_ms"] / found["ttft_ms_dense"]]
        shares += [found["decode_flops"] / dense["decode_flops"], found["tpot_ms"] / found["tpot_ms_dense"]]
        shares += [found["kv_cache_bytes"] / dense["kv_cache_bytes"]]
        last = "-" if compiled is None else f"{compiled / compiled_dense:.2f}"
        print(f"{name:31}" + "".join(f"{share:14.2f}" for share in shares) + f"{last:>14}", flush=True)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    shapes = "toy" if options.tiny else "LLaVA-1.5-7B"
    print(json.dumps({"device": name, "shapes": shapes, "batch": options.batch, "dense": dense, "policies": results}))


if __name__ == "__main__":
    main()
