"""What policies save on a large LLaVA with random weights: TTFT, TPOT, cache bytes and FLOPs beside the dense model.

    python benchmarks/gpu.py [--batch N] [--tiny]

Random weights cost what trained ones do. FLOPs are counted, latency is interleaved with the dense model, bytes are read
off the cache, all by the evaluators that a search uses. The last line is one JSON document.
"""

import argparse
import json
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from skipsearch import Policy, apply_policy
from skipsearch.evaluators.flops import FlopsEvaluator
from skipsearch.evaluators.latency import LatencyEvaluator
from skipsearch.evaluators.memory import MemoryEvaluator
from skipsearch.evaluators.subject import ModelSpec, Subject

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

    def of(indices: range, choice: dict[str, Any]) -> Policy:
        return Policy.model_validate({"layers": dict.fromkeys(indices, choice)})

    half = layers // 2
    return {
        "empty policy": of(range(0), {}),
        "token_ratio 0.5 from layer 2": of(range(2, layers), {"token_ratio": 0.5}),
        "token_ratio 0.25 from half": of(range(half, layers), {"token_ratio": 0.25}),
        "skip_layer, last quarter": of(range(layers - layers // 4, layers), {"attention": "skip", "ffn": "skip"}),
        "skip_attention, second half": of(range(half, layers), {"attention": "skip"}),
        "skip_ffn, second half": of(range(half, layers), {"ffn": "skip"}),
        "parallel, second half": of(range(half, layers), {"wiring": "parallel"}),
    }


def measure(subject: Subject, policy: Policy, batch: int, repeats: int) -> dict[str, float]:
    """Shares of the dense model's figures, and the figures themselves."""
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
    print(
        f"{'policy':30} {'prefill FLOPs':>14} {'TTFT':>8} {'decode FLOPs':>13} {'TPOT':>8} {'KV bytes':>9}  (of dense)"
    )
    for name, policy in policies(layers).items():
        found = results[name] = measure(subject, policy, options.batch, options.repeats)
        shares = [found["prefill_flops"] / dense["prefill_flops"], found["ttft_ms"] / found["ttft_ms_dense"]]
        shares += [found["decode_flops"] / dense["decode_flops"], found["tpot_ms"] / found["tpot_ms_dense"]]
        shares += [found["kv_cache_bytes"] / dense["kv_cache_bytes"]]
        print("{:30} {:14.2f} {:8.2f} {:13.2f} {:8.2f} {:9.2f}".format(name, *shares))
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    shapes = "toy" if options.tiny else "LLaVA-1.5-7B"
    print(json.dumps({"device": name, "shapes": shapes, "batch": options.batch, "dense": dense, "policies": results}))


if __name__ == "__main__":
    main()
