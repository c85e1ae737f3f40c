"""The protocol of an image-token score, and the inputs that a score reads."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# torch is imported where tensors are made: a policy file names scores, and reading it needs no torch.

# What an earlier layer can record of each token: the attention weight, 0 to 1, that the last prompt token pays it, mean
# over the heads; how far the layer moved it, the L2 norm of the difference; 1 / the L2 norm of its key, mean over the
# heads of keys, to 16 bits.
Record = Literal["attention", "change", "key_norm"]


@dataclass(frozen=True, eq=False)
class ScoreInputs:
    """What a layer with a token ratio offers to a score.

    Attributes:
        hidden: Hidden states that enter the layer, shape (batch, tokens, width), in the model's dtype. A score with
            records gets what is at hand, which may lack tokens; it reads only the device.
        candidates: Image tokens that may be kept, boolean, shape (batch, tokens). Padding is never among them.
        text: The other tokens of the prompt, boolean, shape (batch, tokens). Padding is never among them.
        counts: How many candidates each row has; a list on the host, so that no score waits for the device.
        keep: How many candidates each row keeps; on the host.
        recorded: What the score `records`, as each token had it when it was last processed, float32, shape
            (batch, tokens); 0 for a token without a record.
        has_record: Whether an earlier layer recorded image tokens of each row; on the host.
        routed: The logits of the layer's router, float32, shape (batch, tokens); None in a layer without one.
    """

    hidden: "Tensor"
    candidates: "Tensor"
    text: "Tensor"
    counts: list[int]
    keep: list[int]
    recorded: "Tensor"
    has_record: list[bool]
    routed: "Tensor | None" = None


class ImageTokenScore(Protocol):
    """Ranks image tokens: a layer keeps those with the highest score, of equal scores the first in the sequence.

    A score holds no state, so one instance serves all models and threads, and equal inputs give equal scores. A row of
    a batch has the scores that it has alone.

    Attributes:
        name: The value of `token_selection: {score: ...}` in policies and spaces.
        meaning: What the score is, in one phrase for the documentation; it says what holds where `records` has no
            record, as in layer 0.
        records: What the nearest earlier layer that can give it records for the score; None where the score reads
            nothing of earlier layers.
    """

    name: ClassVar[str]
    meaning: ClassVar[str]
    records: ClassVar[Record | None]

    def depends_on_positions_only(self, inputs: ScoreInputs) -> bool:
        """True where hidden states and records do not count, so that layers with one ratio share one selection."""
        ...

    def scores(self, inputs: ScoreInputs) -> "Tensor":
        """The scores of all tokens, float32, shape (batch, tokens).

        Entries of candidates are finite. The caller ignores all others.
        """
        ...


def per_row(values: list[Any], device: "torch.device") -> "Tensor":
    """Copy one number or flag for each row to a device, shape (batch, 1); where all are equal, shape (1, 1).

    An equal number is not copied but filled in, which a CUDA graph can capture. Pinned memory lets a GPU copy while the
    host goes on.
    """
    import torch

    if all(value == values[0] for value in values):
        return torch.full((1, 1), values[0], device=device)
    host = torch.tensor(values)[:, None]
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)


def rounded(values: "Tensor") -> "Tensor":
    """Values of float32 rounded to 16 significant bits, by Veltkamp's splitting.

    Sums of equal numbers differ in their last bits with the shape of a batch. Rounded, they tie, and the first in the
    sequence is kept in every batch.
    """
    shifted = values * (2**8 + 1)
    return shifted - (shifted - values)


def unit_vectors(hidden: "Tensor") -> "Tensor":
    """Hidden states divided by their L2 norm, float32, shape (batch, tokens, width); a zero stays zero."""
    import torch

    return torch.nn.functional.normalize(hidden.float(), dim=-1)
