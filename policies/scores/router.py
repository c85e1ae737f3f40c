"""Scores image tokens by a router that was trained with the model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ..choice import LayerChoice, StrictModel
from ..errors import PolicyError
from .score import Record, ScoreInputs

if TYPE_CHECKING:
    from torch import Tensor

Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]


class RouterOptions(StrictModel):
    """What a router's logit r does beside ranking image tokens (p-MoD, arXiv:2412.04449).

    A layer adds ω F(N2 x') instead of F(N2 x') for an image token that it keeps.

    Attributes:
        gate: `tanh` is ω = alpha tanh(r) + beta, p-MoD's TanhNorm; `linear` is ω = alpha r + beta.
        alpha: See `gate`.
        beta: See `gate`; a router that is not trained yet has ω = beta.
        reweights_rest: Whether image tokens that the layer leaves out become ω x, p-MoD's symmetric reweighting; else
            they stay x, and the router learns from kept tokens alone.
    """

    gate: Literal["tanh", "linear"] = "tanh"
    alpha: Finite = 0.2
    beta: Finite = 1.0
    reweights_rest: Annotated[bool, Field(strict=True)] = True

    def weights(self, logits: "Tensor") -> "Tensor":
        """The weights ω of tokens, in the shape of their logits."""
        return self.alpha * (logits.tanh() if self.gate == "tanh" else logits) + self.beta


def impossible_routes(layers: Mapping[int, LayerChoice], score: str) -> dict[int, str]:
    """Why layers cannot rank their image tokens by a router; empty where all of them can, and with another score."""
    expected = "expected a token_ratio above 0 without rest, evict, phase and tokens, because of the score router"
    reasons = ((index, why_not_routed(choice)) for index, choice in layers.items() if score == RouterScore.name)
    return {index: f"found {reason}, {expected}" for index, reason in reasons if reason}


def why_not_routed(choice: LayerChoice) -> str | None:
    """Why a layer cannot rank its image tokens by a router; None where it can, or ranks none."""
    if choice.token_ratio in (None, 1.0):
        return None
    found = {key: value for key, value in choice.document().items() if key in ("rest", "evict", "phase", "tokens")}
    if choice.token_ratio == 0:
        found["token_ratio"] = 0
    return ", ".join(f"{key}: {value}" for key, value in found.items()) or None


class RouterScore:
    """The logit of the layer's router; not its gate, whose values tie where it saturates."""

    name: ClassVar[str] = "router"
    meaning: ClassVar[str] = "a linear router in each layer, which `skipsearch recover` trains"
    records: ClassVar[Record | None] = None

    def depends_on_positions_only(self, inputs: ScoreInputs) -> bool:
        """False: every layer has a router of its own."""
        return False

    def scores(self, inputs: ScoreInputs) -> "Tensor":
        """The logits, float32, shape (batch, tokens)."""
        if inputs.routed is None:
            raise PolicyError("the score `router` ranks tokens in a layer that has a router", hint="see `apply_policy`")
        return inputs.routed
