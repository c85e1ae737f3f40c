"""Scores image tokens so that those kept are as different from each other as possible."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .score import Record, ScoreInputs, per_row, unit_vectors

if TYPE_CHECKING:
    from torch import Tensor

# Cosines are rounded to multiples of this: float32 products of equal vectors differ in their last bits from place to
# place, and such tokens must tie.
STEP = 2.0**-16


class DiverseScore:
    """The order of a greedy max-min choice by cosine distance, the first token highest (DivPrune, arXiv:2503.02175).

    It begins with the token whose nearest other token is farthest away, and goes on with the token whose nearest chosen
    token is farthest away, of equal ones the first in the sequence.
    """

    name: ClassVar[str] = "diverse"
    meaning: ClassVar[str] = (
        "tokens as different from each other as possible as they enter the layer: greedily the one whose nearest "
        "chosen token is farthest away by cosine distance, beginning with the one whose nearest other token is "
        "farthest away"
    )
    records: ClassVar[Record | None] = None

    def depends_on_positions_only(self, inputs: ScoreInputs) -> bool:
        """False: the hidden states change from layer to layer."""
        return False

    def scores(self, inputs: ScoreInputs) -> "Tensor":
        """The number of tokens that the layer keeps for the first chosen one, one less for the next, 0 for the rest."""
        candidates = Candidates.of(inputs)
        return candidates.spread(candidates.greedy_order(inputs), inputs)


@dataclass(frozen=True, eq=False)
class Candidates:
    """The candidates of each row side by side; shorter rows are padded on the right.

    Attributes:
        places: Their places in the sequence, shape (batch, longest).
        valid: Which entries of `places` are candidates, shape (batch, longest), or (1, longest) for all rows alike.
    """

    places: "Tensor"
    valid: "Tensor"

    @classmethod
    def of(cls, inputs: ScoreInputs) -> "Candidates":
        """The candidates of a layer."""
        import torch

        first = inputs.candidates.float().argsort(dim=1, descending=True, stable=True)
        places = first[:, : max(inputs.counts)]
        numbers = torch.arange(places.shape[1], device=places.device)
        return cls(places, numbers < per_row(inputs.counts, places.device))

    def greedy_order(self, inputs: ScoreInputs, bonus: "Tensor | None" = None, weight: float = 1.0) -> "Tensor":
        """Choose candidates one by one, each with the largest `bonus + weight * distance to the nearest chosen one`.

        The first has the largest value for its nearest other candidate. The loop waits for no device, and takes three
        operations a step, four with a bonus.

        Args:
            inputs: Of the layer; of a row, choices beyond `keep` mean nothing.
            bonus: A value of each candidate, shape (batch, longest); None for 0.
            weight: What distances are multiplied by, more than 0.

        Returns:
            Indices into `places`, in the order of choice, shape (batch, most that a row keeps).
        """
        import torch

        distances, nearest = self._distances(inputs.hidden)
        rows = torch.arange(len(nearest), device=nearest.device)
        order = torch.zeros((max(inputs.keep), len(nearest)), dtype=torch.long, device=nearest.device)
        for step, place in enumerate(order.unbind()):
            value = nearest if bonus is None else torch.add(bonus, nearest, alpha=weight)
            torch.argmax(value, dim=1, out=place)
            chosen = distances[rows, place]
            nearest = torch.minimum(nearest, chosen) if step else chosen
        return order.T

    def _distances(self, hidden: "Tensor") -> "tuple[Tensor, Tensor]":
        """Cosine distances 1 - cos between candidates, 0 to 2.

        Returns:
            All of them, shape (batch, longest, longest), with -inf from a token to itself and to padding, so that no
            token is chosen twice; and from each token to its nearest other one, shape (batch, longest).
        """
        import torch

        unit = unit_vectors(hidden.gather(1, self.places[..., None].expand(-1, -1, hidden.shape[-1])))
        distances = to_steps(torch.baddbmm(unit.new_ones(1, 1, 1), unit, unit.mT, alpha=-1))
        padding, itself = ~self.valid, distances.diagonal(dim1=1, dim2=2)
        distances.masked_fill_(padding[:, None], float("inf"))
        itself.fill_(float("inf"))
        nearest = distances.amin(dim=2).masked_fill_(padding, float("-inf"))
        distances.masked_fill_(padding[:, None], float("-inf"))
        itself.fill_(float("-inf"))
        return distances, nearest

    def spread(self, order: "Tensor", inputs: ScoreInputs) -> "Tensor":
        """Scores of all tokens from the order in which candidates are chosen, float32, shape (batch, tokens).

        Args:
            order: See `greedy_order`.
            inputs: Of the layer.
        """
        import torch

        steps = torch.arange(order.shape[1], device=order.device)
        values = (order.shape[1] - steps).float() * (steps < per_row(inputs.keep, order.device))
        scores = torch.zeros(inputs.candidates.shape, device=order.device)
        return scores.scatter_reduce(1, self.places.gather(1, order), values.expand_as(order), "amax")


def to_steps(cosines: "Tensor") -> "Tensor":
    """Cosines, or distances, rounded in place to multiples of `STEP`."""
    return cosines.div_(STEP).round_().mul_(STEP)
