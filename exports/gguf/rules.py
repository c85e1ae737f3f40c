"""How a text becomes tokens in llama.cpp."""

from dataclasses import dataclass, field


class NoVocabulary(Exception):
    """Says why llama.cpp has no such tokenizer."""


@dataclass(frozen=True)
class Rules:
    """How a text becomes tokens.

    Attributes:
        model: The kind: `gpt2` merges pairs by rank, `llama` merges them by the score of what comes out.
        pre: The rule that first cuts a text into words.
        merges: The pairs to merge, of the kind `gpt2`.
        scores: The scores of the tokens that merges make, of the kind `llama`.
        adds_space: Whether a space is put before a text.
        notes: In what llama.cpp's tokenizer differs.
    """

    model: str
    pre: str
    merges: list[str] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    adds_space: bool = False
    notes: list[str] = field(default_factory=list)
