"""Scores image tokens by how much they resemble the text of the prompt, alone or weighed against diversity."""

from typing import TYPE_CHECKING, ClassVar

from .diverse import STEP, Candidates, to_steps
from .score import Record, ScoreInputs, unit_vectors

if TYPE_CHECKING:
    from torch import Tensor


class RelevanceScore:
    """The cosine to the mean of the text tokens' unit vectors, which ranks as the mean cosine to all text tokens.

    A row without text has scores of 0.
    """

    name: ClassVar[str] = "relevance"
    meaning: ClassVar[str] = (
        "the cosine between the token and the mean direction of the prompt's text tokens as they enter the layer, "
        "which are embeddings in layer 0; mixed with `diverse` where `diversity` is more than 0"
    )
    records: ClassVar[Record | None] = None

    def depends_on_positions_only(self, inputs: ScoreInputs) -> bool:
        """False: the hidden states change from layer to layer."""
        return False

    def scores(self, inputs: ScoreInputs) -> "Tensor":
        """The cosines, -1 to 1, float32, shape (batch, tokens)."""
        import torch

        unit = unit_vectors(inputs.hidden)
        text = torch.einsum("bt,btw->bw", inputs.text.float(), unit)
        return to_steps(torch.einsum("btw,bw->bt", unit, torch.nn.functional.normalize(text, dim=-1)))


class MixedScore(RelevanceScore):
    """Maximal marginal relevance: greedily the token with the largest sum of relevance and distance.

    With weight w, the next token has the largest `(1 - w) * relevance + w * distance to the nearest chosen token`
    (Carbonell and Goldstein, 1998). The relevance is scaled to 0..1 over the row's candidates, as CDPruner
    (arXiv:2506.10967) scales it. With w = 1 it is `diverse`, with w = 0 `relevance`.

    Args:
        diversity: The weight w, more than 0 and at most 1.
    """

    def __init__(self, diversity: float) -> None:
        self._diversity = diversity

    def scores(self, inputs: ScoreInputs) -> "Tensor":
        """The order of choice, as in `DiverseScore.scores`."""
        candidates = Candidates.of(inputs)
        relevance = super().scores(inputs).gather(1, candidates.places)
        low = relevance.masked_fill(~candidates.valid, float("inf")).amin(dim=1, keepdim=True)
        high = relevance.masked_fill(~candidates.valid, float("-inf")).amax(dim=1, keepdim=True)
        # Where all are equally relevant, the distance decides; a row without candidates has no bounds.
        bonus = ((relevance - low) / (high - low).clamp_min(STEP)).nan_to_num(0.0, 0.0, 0.0) * (1 - self._diversity)
        return candidates.spread(candidates.greedy_order(inputs, bonus, self._diversity), inputs)
