"""The tokenizer of a model in llama.cpp's terms, read from what the package `tokenizers` says of it."""

import json
import re
from dataclasses import dataclass
from typing import Any

from .byte_level import byte_level_rules
from .pieces import piece_rules
from .rules import NoVocabulary, Rules

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPECIAL = ("bos", "eos", "unk", "pad")
# Texts on which llama.cpp's tokenizer is compared with the model's own.
TEXTS = (
    "The quick brown fox jumps over 13 lazy dogs, doesn't it? It'll cost $1,234.56 (or 99%).",
    "  leading and   many   spaces \t tabs\n\nnew lines\r\n \n  end ",
    "Zürich, naïve façade, 東京タワー, Привет мир, 🙂👍🏽, ½ ² ٣",
    "def f(x):\n    return {'a': [x**2, x//3], \"b\": x!=0}\n\n\nclass A:\n\tpass",
    "HELLO'S we'VE I'm 12345678 0x1F3A ...!!! --- http://a.b/c?d=e&f",
    "a",
    " ",
)


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer in llama.cpp's terms.

    Attributes:
        rules: How a text becomes tokens.
        tokens: The text of each token.
        types: The kind of each token.
        special: The numbers of special tokens by name, such as `bos`.
        adds_bos: Whether a text begins with the special token `bos`.
        adds_eos: Whether a text ends with the special token `eos`.
        chat_template: The template of chats.
        texts: What the model's own tokenizer makes of some texts.
    """

    rules: Rules
    tokens: list[str]
    types: list[int]
    special: dict[str, int]
    adds_bos: bool
    adds_eos: bool
    chat_template: str | None
    texts: dict[str, list[int]]


def vocabulary_of(tokenizer: Any, size: int) -> Vocabulary:
    """The tokenizer of a model in llama.cpp's terms.

    Args:
        tokenizer: A tokenizer of transformers.
        size: The number of rows of the model's embedding.

    Raises:
        NoVocabulary: llama.cpp has no such tokenizer.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise NoVocabulary(f"{type(tokenizer).__name__} has no tokenizer.json")
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    if described["model"]["type"] != "BPE":
        raise NoVocabulary(f"found a tokenizer of the type {described['model']['type']}, expected BPE")
    rules = piece_rules(described) if described["model"]["byte_fallback"] else byte_level_rules(described)
    tokens, types = tokens_and_types(described, size)
    special = {name: getattr(tokenizer, f"{name}_token_id", None) for name in SPECIAL}
    adds_bos, adds_eos = ends_of(tokenizer)
    control = "".join(token for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED))
    return Vocabulary(
        rules,
        tokens,
        types,
        {name: number for name, number in special.items() if number is not None},
        adds_bos,
        adds_eos,
        tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
        {text: tokenizer(text)["input_ids"] for text in (*TEXTS, f"x{control} y")},
    )


def tokens_and_types(described: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """The text and the kind of each token; rows of the embedding without a token are unused.

    Raises:
        NoVocabulary: a token has no row, or takes the spaces beside it.
    """
    added = described["added_tokens"]
    texts = {number: text for text, number in described["model"]["vocab"].items()}
    kinds = {number: kind_of(text, described["model"]) for number, text in texts.items()}
    for token in added:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise NoVocabulary(f"the token {token['content']!r} takes the spaces beside it, or stands for a whole word")
        texts[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    if max(texts) >= size:
        raise NoVocabulary(f"it has the token {max(texts)}, and the embedding has {size} rows")
    tokens = [texts.get(number, f"[PAD{number}]") for number in range(size)]
    return tokens, [kinds.get(number, UNUSED) for number in range(size)]


def kind_of(text: str, model: dict[str, Any]) -> int:
    """The kind of a token that was not added."""
    if text == model["unk_token"]:
        return UNKNOWN
    return BYTE if model["byte_fallback"] and re.fullmatch("<0x[0-9A-F]{2}>", text) else NORMAL


def ends_of(tokenizer: Any) -> tuple[bool, bool]:
    """Whether texts get the special token `bos` before them, and `eos` after them.

    Raises:
        NoVocabulary: they get other tokens.
    """
    inner, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    bos, eos = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    for before in ([], bos):
        for after in ([], eos):
            if whole == before + inner + after:
                return bool(before), bool(after)
    raise NoVocabulary("it puts other tokens than bos before a text, or other ones than eos after it")
