"""Runs a transformers model on prompts. As a script, it loads a folder without skipsearch and saves the outputs.

The script imports torch and transformers alone, because it must also run in an environment without skipsearch.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

NEW_TOKENS = 12
Outputs = list[dict[str, Tensor]]


def outputs_of(model: Any, prompts: Sequence[dict[str, Tensor]]) -> Outputs:
    """Run a model on prompts.

    Returns:
        For each prompt `logits`, shape (rows, tokens, vocabulary), in float32, and `tokens`, the greedily generated
        ones, shape (rows, NEW_TOKENS), both on the CPU.
    """
    return [{"logits": logits_of(model, prompt), "tokens": generated(model, prompt)} for prompt in prompts]


def placed(model: Any, prompt: dict[str, Tensor]) -> dict[str, Tensor]:
    """A prompt on the device and in the dtype of a model."""
    return {
        key: value.to(model.device, model.dtype if value.is_floating_point() else None) for key, value in prompt.items()
    }


def logits_of(model: Any, prompt: dict[str, Tensor]) -> Tensor:
    """The logits of a prompt, shape (rows, tokens, vocabulary)."""
    forget(model)
    with torch.no_grad():
        logits: Tensor = model(**placed(model, prompt), use_cache=False).logits
    return logits.float().cpu()


def generated(model: Any, prompt: dict[str, Tensor]) -> Tensor:
    """The greedily generated tokens after a prompt, shape (rows, NEW_TOKENS)."""
    from transformers import GenerationConfig

    forget(model)
    own, model.generation_config = model.generation_config, GenerationConfig(pad_token_id=0)
    try:
        with torch.no_grad():
            tokens: Tensor = model.generate(**placed(model, prompt), max_new_tokens=NEW_TOKENS, do_sample=False)
    finally:
        model.generation_config = own
    return tokens[:, prompt["input_ids"].shape[1] :].cpu()


def forget(model: Any) -> None:
    """Drop the positions of the last input, which Qwen2-VL and its relatives keep on the model."""
    if hasattr(model.base_model, "rope_deltas"):
        model.base_model.rope_deltas = None


def load(folder: str, kind: str, trust_remote_code: bool, dtype: str, attention: str) -> Any:
    """Load a checkpoint; a tensor that is missing or left over ends the process."""
    import transformers

    model, report = getattr(transformers, kind).from_pretrained(
        folder,
        trust_remote_code=trust_remote_code,
        dtype=getattr(torch, dtype),
        attn_implementation=attention or None,
        output_loading_info=True,
    )
    wrong = {name: sorted(report[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(wrong.values()):
        sys.exit("; ".join(f"{name}: {', '.join(map(str, keys[:5]))}" for name, keys in wrong.items() if keys))
    return model.eval()


def main() -> None:
    """Load a folder, run the prompts of a file and save the outputs to another."""
    parser = argparse.ArgumentParser()
    for name in ("folder", "prompts", "outputs", "kind", "dtype", "attention"):
        parser.add_argument(name)
    parser.add_argument("--trust-remote-code", action="store_true")
    given = parser.parse_args()
    sys.modules["skipsearch"] = None  # type: ignore[assignment]  # an export that imports it fails
    model = load(given.folder, given.kind, given.trust_remote_code, given.dtype, given.attention)
    torch.save(outputs_of(model, torch.load(given.prompts)), given.outputs)


if __name__ == "__main__":
    main()
