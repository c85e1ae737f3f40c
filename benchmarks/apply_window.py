"""From which prompt on a window pays: prefills of one image and 32 text tokens, dense and with a window, in turns.

    python benchmarks/apply_window.py [--sides 8 16 24 32 48] [--window 2] [--width 1024] [--repeats 7]

A LLaVA of two layers with random weights and no vision tower's work: the image tokens of a square grid enter as
embeddings. A time is the median of the repeats, one thread; `ratio` is the time with the window to that of dense,
`share` what FLOPs say of it. A window pays from the first prompt on from which every ratio is below 1. The last line is
one JSON document.
"""

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import transformers as t

from skipsearch import Policy, apply_policy
from skipsearch.evaluators.flops import flop_counter

IMAGE, TEXT, LAYERS, PATCH = 999, 32, 2, 14


def llava(side: int, width: int) -> t.LlavaForConditionalGeneration:
    """A LLaVA whose image tokens form a grid of so many rows and columns, with heads of 64 numbers."""
    text = t.LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=LAYERS,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        vocab_size=1000,
    )
    vision = t.CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
    vision.image_size, vision.patch_size = side * PATCH, PATCH
    config = t.LlavaConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), image_token_id=IMAGE)
    return t.LlavaForConditionalGeneration(config).eval()


def seconds(run: Callable[[], Any]) -> float:
    """The time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def flops(run: Callable[[], Any]) -> int:
    """The FLOPs of one call."""
    with flop_counter() as counter:
        run()
    return int(counter.get_total_flops())


def measure(side: int, window: int, width: int, repeats: int) -> dict[str, Any]:
    """Time the prefill of one prompt, dense and with the window, in turns."""
    model = llava(side, width)
    ids = torch.full((1, side * side + TEXT), IMAGE)
    ids[:, : TEXT // 2] = ids[:, -TEXT // 2 :] = 5
    policy = Policy.model_validate({"layers": {layer: {"window": window} for layer in range(LAYERS)}})

    def prefill() -> Any:
        return model(input_ids=ids, use_cache=False, logits_to_keep=1)

    times: dict[str, list[float]] = {"dense": [], "window": []}
    with torch.inference_mode(), apply_policy(model, policy) as handle:
        prefill()
        counted = flops(prefill)
        with handle.dense():
            prefill()
            dense_flops = flops(prefill)
        for _ in range(repeats):
            times["window"].append(seconds(prefill))
            with handle.dense():
                times["dense"].append(seconds(prefill))
    dense, windowed = median(times["dense"]), median(times["window"])
    return {
        "tokens": ids.shape[1],
        "dense_ms": round(1000 * dense, 2),
        "window_ms": round(1000 * windowed, 2),
        "ratio": round(windowed / dense, 3),
        "share": round(counted / dense_flops, 3),
    }


def main() -> None:
    """Measure each side, print a table and one JSON document last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", type=int, default=[8, 16, 24, 32, 48])
    parser.add_argument("--window", type=int, default=2)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = []
    print(f"{'tokens':>7}{'dense ms':>10}{'window ms':>11}{'ratio':>8}{'share':>8}")
    for side in options.sides:
        rows.append(row := measure(side, options.window, options.width, options.repeats))
        print(f"{row['tokens']:7}{row['dense_ms']:10}{row['window_ms']:11}{row['ratio']:8}{row['share']:8}", flush=True)
    slow = max((row["tokens"] for row in rows if row["ratio"] >= 1), default=0)
    pays = next((row["tokens"] for row in rows if row["tokens"] > slow), None)
    print(
        f"window {options.window} pays from {pays} tokens on" if pays else f"window {options.window} pays nowhere here"
    )
    print(json.dumps({"benchmark": "apply_window", **vars(options), "rows": rows, "pays_from_tokens": pays}))


if __name__ == "__main__":
    main()
