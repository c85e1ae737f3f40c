"""The layers of a file, with what llama.cpp's architecture `deci` needs where a layer has no attention or no FFN."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ...policies.policy import Policy

# One block of llama.cpp's quantisation. A width of 0 would make llama.cpp drop the attention of the layer as well.
NARROW = 32


@dataclass(frozen=True)
class Block:
    """One layer of a file.

    Attributes:
        source: The layer of the model.
        attention: Runs, is absent, or runs with weights of 0.
        ffn: Runs, or is `NARROW` columns of zeros.
    """

    source: int
    attention: Literal["run", "absent", "zeros"] = "run"
    ffn: Literal["run", "narrow"] = "run"

    @property
    def needs_deci(self) -> bool:
        """True where the layer has other numbers of heads or another width than its neighbours."""
        return self.attention == "absent" or self.ffn == "narrow"


def blocks_of(policy: Policy, total: int) -> list[Block]:
    """The layers of the file for a policy that skips layers and sublayers, for all tokens in both phases.

    llama.cpp takes the width of a head from the first layer, which therefore keeps its attention, with weights of 0.
    Layers without either sublayer are not written, so the last layer is never empty: llama.cpp reads its outputs there.
    """
    labels = [choice.label for choice in policy.canonical().choices(total)]
    kept = [index for index, label in enumerate(labels) if label != "skip_layer"]
    return [
        Block(
            index,
            "run" if labels[index] != "skip_attention" else "absent" if place else "zeros",
            "narrow" if labels[index] == "skip_ffn" else "run",
        )
        for place, index in enumerate(kept)
    ]


def written_zeros(blocks: Sequence[Block]) -> list[str]:
    """What the blocks write as zeros because the format cannot leave it out, one line each."""
    narrow = [str(block.source) for block in blocks if block.ffn == "narrow"]
    lines = [f"skip_ffn in layer {', '.join(narrow)}: {NARROW} columns of zeros"] if narrow else []
    first = [f"skip_attention in layer {block.source}, the first: zeros" for block in blocks[:1]
             if block.attention == "zeros"]  # fmt: skip
    return lines + first
