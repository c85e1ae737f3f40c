"""The protocol of an image-token score, and the inputs that a score reads."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# torch is imported where tensors are made: a policy file names scores, and reading it needs no torch.


@dataclass(frozen=True, eq=False)
class ScoreInputs:
    """What a layer with a token ratio offers to a score.

    Attributes:
        hidden: Hidden states that enter the layer, shape (batch, tokens, width), in the model's dtype.
        candidates: Image tokens that may be kept, boolean, shape (batch, tokens). Padding is never among them.
        keep: How many candidates each row keeps; a list on the host, so that no score waits for the device.
        attention: Attention weight, 0 to 1, that each token received from the last prompt token when it was last
            processed, mean over the heads, float32, shape (batch, tokens).
        has_attention: Whether `attention` was recorded for image tokens of each row; on the host.
    """

    hidden: "Tensor"
    candidates: "Tensor"
    keep: list[int]
    attention: "Tensor"
    has_attention: list[bool]


class ImageTokenScore(Protocol):
    """Ranks image tokens: a layer keeps those with the highest score, of equal scores the first in the sequence.

    A score holds no state, so one instance serves all models and threads, and equal inputs give equal scores.

    Attributes:
        name: The value of `token_selection: {score: ...}` in policies and spaces.
        meaning: What the score is, in one phrase for the documentation.
        reads_attention: True where the attention of an earlier layer has to be recorded.
    """

    name: ClassVar[str]
    meaning: ClassVar[str]
    reads_attention: ClassVar[bool]

    def depends_on_positions_only(self, inputs: ScoreInputs) -> bool:
        """True where hidden states and attention do not count, so that layers with one ratio share one selection."""
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
