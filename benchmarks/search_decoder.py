"""The text decoder of `search.py`, a byte-level Llama: `python benchmarks/search_decoder.py` trains it anew.

Another machine trains another model, and searches of one say little about the other; so `decoder/` ships what the
figures in `README.md` are of, with the examples that it is measured on.
"""

import math
import random
import sysconfig
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent / "decoder"
EXAMPLES = "examples.safetensors"
WIDTH, WIDE, LENGTH = 64, 176, 64  # of the hidden states, of the FFN, and of examples in bytes
SPLITS = ("search", "held out")


def trained(layers: int = 24, steps: int = 1200, examples: int = 64) -> tuple[Any, dict[str, Any]]:
    """A decoder trained on sources of Python's standard library, and by split examples that it did not see.

    Args:
        layers: Of the decoder.
        steps: Of the training, each of 16 sequences of 96 bytes.
        examples: In each split.
    """
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    random.Random(0).shuffle(paths)
    text = b"".join(path.read_bytes() for path in paths)[:3_000_000]
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    cut = int(0.9 * len(data))
    draw = torch.Generator().manual_seed(0)
    halves = zip(SPLITS, data[cut:].chunk(2), strict=True)
    inputs = {split: windows(half, examples, LENGTH, draw) for split, half in halves}
    return fitted(data[:cut], layers, steps), inputs


def windows(data: Any, count: int, length: int, draw: Any) -> Any:
    """(count, length): parts of a text, from places drawn at random."""
    starts = torch.randint(len(data) - length - 1, (count,), generator=draw).tolist()
    return torch.stack([data[start : start + length] for start in starts])


def fitted(data: Any, layers: int, steps: int) -> Any:
    """A decoder trained on a text."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=WIDTH, intermediate_size=WIDE, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.05,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, betas=(0.9, 0.95))
    draw = torch.Generator().manual_seed(1)
    for step in range(steps):
        rate = 3e-3 * min(1, (step + 1) / 50) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids = windows(data, 16, 96, draw)
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def save(folder: Path, model: Any, inputs: dict[str, Any]) -> None:
    """Write a decoder, in half the bytes, and its examples."""
    model.bfloat16().save_pretrained(folder)
    save_file({split: ids.byte() for split, ids in inputs.items()}, folder / EXAMPLES)


def load(folder: Path = HERE) -> tuple[Any, dict[str, Any]]:
    """A decoder that was written, in single precision, and its examples."""
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, {split: ids.long() for split, ids in load_file(folder / EXAMPLES).items()}


if __name__ == "__main__":
    save(HERE, *trained())
