"""SentencePiece's BPE, as of Llama 2: the scores by which llama.cpp merges, from the merges of tokenizer.json."""

from itertools import groupby
from typing import Any

from .byte_level import steps_of
from .rules import NoVocabulary, Rules

SPACE = "▁"


def piece_rules(described: dict[str, Any]) -> Rules:
    """The rules of a BPE that falls back to bytes.

    Args:
        described: The tokenizer as tokenizer.json has it.

    Raises:
        NoVocabulary: llama.cpp would make other tokens.
    """
    vocabulary = described["model"]["vocab"]
    missing = [byte for byte in range(256) if f"<0x{byte:02X}>" not in vocabulary]
    if missing:
        raise NoVocabulary(f"{len(missing)} of 256 bytes are no tokens")
    added = {token["content"] for token in described["added_tokens"]}
    merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in described["model"]["merges"]]
    return Rules(
        "llama", "default", scores=scores_of(merges, set(vocabulary) - added), adds_space=adds_space(described)
    )


def adds_space(described: dict[str, Any]) -> bool:
    """Whether a space is put before a text, whatever it begins with.

    Raises:
        NoVocabulary: that depends on the text, or spaces are written in another way.
    """
    steps = [*steps_of(described["normalizer"]), *steps_of(described["pre_tokenizer"])]
    kinds = [step["type"] for step in steps]
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if kinds == ["Prepend", "Replace"] and steps[0]["prepend"] == SPACE and steps[1] == replaces:
        return True
    if steps == [replaces]:
        return False
    if kinds == ["Metaspace"] and steps[0]["prepend_scheme"] == "never" and not steps[0]["split"]:
        return False
    if kinds == ["Metaspace"]:
        raise NoVocabulary("it puts a space before a text where none is yet (Metaspace); llama.cpp always does")
    raise NoVocabulary(f"it prepares texts by {', '.join(kinds) or 'nothing'}, expected Prepend and Replace")


def scores_of(merges: list[tuple[str, ...]], pieces: set[str]) -> dict[str, float]:
    """A score for each piece that merges make: the earlier it is made, the higher.

    llama.cpp merges two neighbours whenever both together are a piece, so every such pair must be among the merges, and
    all pairs that make one piece must follow each other.

    Raises:
        NoVocabulary: they do not, so llama.cpp would merge in another order.
    """
    order = [piece for piece, _ in groupby("".join(pair) for pair in merges)]
    if len(set(order)) < len(order):
        raise NoVocabulary("the merges that make one token do not follow each other, so no score says their order")
    known = set(merges)
    for piece in pieces:
        for cut in range(1, len(piece)):
            pair = (piece[:cut], piece[cut:])
            if pair not in known and pieces.issuperset(pair):
                raise NoVocabulary(f"it never merges {pair[0]!r} and {pair[1]!r}, and llama.cpp does")
    return {piece: -float(rank) for rank, piece in enumerate(order)}
