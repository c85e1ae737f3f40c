"""Scores image tokens by a router that was trained with the model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from ..choice import LayerChoice, StrictModel
from ..errors import PolicyError
from .score import Record, ScoreInputs

if TYPE_CHECKING:
    from torch import Tensor

Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]


class RouterOptions(StrictModel):
    """What a router's logit r does beside ranking image tokens.

    The defaults are p-MoD's (arXiv:2412.04449). γ-MoD's (arXiv:2410.13859) are `gate: sigmoid`, `alpha: 1`, `beta: 0`,
    `reweights_rest: false`, `reads: norm`, `shared: true`. A layer adds ω F(N2 x') instead of F(N2 x') for an image
    token that it keeps.

    Attributes:
        gate: `tanh` is ω = alpha tanh(r) + beta, p-MoD's TanhNorm; `linear` is ω = alpha r + beta; `sigmoid` is
            ω = alpha σ(r) + beta, the softmax of γ-MoD's two logits, of which r is the difference.
        alpha: See `gate`.
        beta: See `gate`; with `tanh` and `linear`, a router that is not trained yet has ω = beta.
        reweights_rest: Whether image tokens that the layer leaves out become ω x, p-MoD's symmetric reweighting; else
            they stay x, and the router learns from kept tokens alone.
        reads: What enters the router: the `hidden` states that enter the layer, or these after the `norm` before its
            attention.
        shared: Whether all layers share one router; else each has its own.
        threshold: With `sigmoid`, a layer processes the image tokens with σ(r) above this, whatever their number; the
            token ratio holds in training alone. None keeps the share that the ratio says.
    """

    gate: Literal["tanh", "linear", "sigmoid"] = "tanh"
    alpha: Finite = 0.2
    beta: Finite = 1.0
    reweights_rest: Annotated[bool, Field(strict=True)] = True
    # Keys that were added later are left out at their default, so that fingerprints stay what they were.
    reads: Annotated[Literal["hidden", "norm"], Field(exclude_if=lambda value: value == "hidden")] = "hidden"
    shared: Annotated[bool, Field(strict=True, exclude_if=lambda value: not value)] = False
    threshold: Annotated[
        Annotated[float, Field(gt=0, lt=1, strict=True)] | None, Field(exclude_if=lambda value: value is None)
    ] = None

    @model_validator(mode="after")
    def _has_a_probability(self) -> Self:
        if self.threshold is not None and self.gate != "sigmoid":
            raise ValueError(f"found threshold beside gate {self.gate}, expected gate sigmoid")
        return self

    def weights(self, logits: "Tensor") -> "Tensor":
        """The weights ω of tokens, in the shape of their logits."""
        gated = {"tanh": logits.tanh, "linear": lambda: logits, "sigmoid": logits.sigmoid}[self.gate]()
        return self.alpha * gated + self.beta


# γ-MoD's options. It selects by a threshold after training, which is for each policy to say.
GAMMA_MOD: Final = RouterOptions(gate="sigmoid", alpha=1.0, beta=0.0, reweights_rest=False, reads="norm", shared=True)


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
    meaning: ClassVar[str] = "a linear router in each layer, or one for all, which `skipsearch recover` trains"
    records: ClassVar[Record | None] = None

    def depends_on_positions_only(self, inputs: ScoreInputs) -> bool:
        """False: a router reads the hidden states."""
        return False

    def scores(self, inputs: ScoreInputs) -> "Tensor":
        """The logits, float32, shape (batch, tokens)."""
        if inputs.routed is None:
            raise PolicyError("the score `router` ranks tokens in a layer that has a router", hint="see `apply_policy`")
        return inputs.routed
