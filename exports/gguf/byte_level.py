"""Byte-level BPE, as of GPT-2, Llama 3 and Qwen: which of llama.cpp's pre-tokenizers cuts texts in the same way."""

import json
from typing import Any

from .rules import NoVocabulary, Rules

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}"
QWEN2 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST}"
# By the steps of the pre-tokenizer and whether whole words of the vocabulary are taken without merges. The names and
# their expressions are those of src/llama-vocab.cpp of llama.cpp.
NAMES = {
    (("words",), False): "gpt-2",
    (("digits", "words"), False): "smollm",
    ((LLAMA3, "bytes"), True): "llama-bpe",
    ((LLAMA3, "bytes"), False): "smaug-bpe",
    ((QWEN2, "bytes"), False): "qwen2",
}


def byte_level_rules(described: dict[str, Any]) -> Rules:
    """The rules of a byte-level BPE.

    Args:
        described: The tokenizer as tokenizer.json has it.

    Raises:
        NoVocabulary: llama.cpp has no such pre-tokenizer, or another part of it has no counterpart.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    model = described["model"]
    missing = set(ByteLevel.alphabet()) - set(model["vocab"])
    if missing and model["unk_token"] is not None:
        raise NoVocabulary(f"{len(missing)} of 256 bytes become {model['unk_token']}")
    if any(model[name] for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")):
        raise NoVocabulary("its BPE has a dropout, a prefix or a suffix of parts of words")
    normalizer = (described["normalizer"] or {}).get("type")
    if normalizer not in (None, "NFC"):
        raise NoVocabulary(f"it normalises texts by {normalizer}")
    steps = tuple(step_name(step) for step in steps_of(described["pre_tokenizer"]))
    if (steps, model["ignore_merges"]) not in NAMES:
        raise NoVocabulary(f"llama.cpp has no pre-tokenizer that cuts words like {json.dumps(steps)}")
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    if any(" " in part for pair in pairs for part in pair):
        raise NoVocabulary("its merges have spaces")
    # Both leave such bytes out, but only the model's own tokenizer merges what stands before and after them.
    notes = (
        [f"texts with one of the {len(missing)} bytes that are no tokens can become other tokens"] if missing else []
    )
    if normalizer:
        notes.append("texts are not brought to the Unicode form NFC, as the model's own tokenizer does")
    return Rules("gpt2", NAMES[steps, model["ignore_merges"]], [" ".join(pair) for pair in pairs], notes=notes)


def steps_of(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normaliser or a pre-tokenizer, which may be a sequence of them."""
    if part is None:
        return []
    steps: list[dict[str, Any]] = part.get("pretokenizers") or part.get("normalizers") or [part]
    return steps


def step_name(step: dict[str, Any]) -> str:
    """A short name of a step of a pre-tokenizer: an expression for a split, JSON where it is unknown."""
    if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
        return "words" if step["use_regex"] else "bytes"
    if step["type"] == "Digits" and step["individual_digits"]:
        return "digits"
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        expression: str = step["pattern"].get("Regex", json.dumps(step["pattern"]))
        return expression
    return json.dumps(step)
