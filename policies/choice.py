"""What one decoder layer does under a policy, as a frozen value."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

LAST_LAYER: Final = 9999
Ratio = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False, strict=True)]


class StrictModel(BaseModel):
    """Base of all models read from policy and space files: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class LayerChoice(StrictModel):
    """What one decoder layer does; without a key, the layer does what the dense layer does.

    Attributes:
        attention: Run the attention sublayer, or skip it with its norm; a skipped one stores no keys and values.
        ffn: Run the feed-forward sublayer, or skip it with its norm.
        wiring: `parallel` feeds the layer's input to both sublayers.
        norm: Where the wiring is parallel, which norm feeds the FFN: its `own`, or the attention's, `shared`.
        token_ratio: Share of the image tokens, 0 to 1, that the layer processes.
        phase: The phase in which the choice holds: `prefill`, `decode`, or `both`; in the other one the layer is dense.
        tokens: The tokens to which the choice applies: `all`, the `image` tokens, or all others (`text`, generated ones
            included); the remaining tokens go through the full layer.
    """

    attention: Literal["run", "skip"] = "run"
    ffn: Literal["run", "skip"] = "run"
    wiring: Literal["sequential", "parallel"] = "sequential"
    norm: Literal["own", "shared"] = "own"
    token_ratio: Ratio | None = None
    phase: Literal["both", "prefill", "decode"] = "both"
    tokens: Literal["all", "image", "text"] = "all"

    @property
    def is_keep(self) -> bool:
        """True where the layer does what the dense layer does."""
        return self.canonical() is KEEP

    @property
    def skips_layer(self) -> bool:
        """True where neither sublayer runs for the tokens to which the choice applies."""
        return self.attention == self.ffn == "skip"

    @property
    def label(self) -> str:
        """The choice as search spaces name it, such as `skip_ffn (decode)` or `token_ratio 0.5`."""
        parts = []
        if self.skips_layer:
            parts = ["skip_layer"]
        elif "skip" in (self.attention, self.ffn):
            parts = ["skip_attention" if self.attention == "skip" else "skip_ffn"]
        elif self.wiring == "parallel":
            parts = ["parallel" if self.norm == "own" else "parallel, shared norm"]
        scope = [word for word in (self.phase, self.tokens) if word not in ("both", "all")]
        if parts and scope:
            parts[0] += f" ({', '.join(scope)})"
        if self.token_ratio is not None:
            parts.append(f"token_ratio {self.token_ratio:g}")
        return " + ".join(parts) or "keep"

    def canonical(self) -> "LayerChoice":
        """The canonical form: equal for choices that compute the same, without keys that have no effect.

        Every choice that changes nothing becomes `KEEP`.
        """
        return canonical(self)

    def document(self) -> dict[str, Any]:
        """The keys that differ from `KEEP`, as plain data."""
        return self.model_dump(exclude_defaults=True)


KEEP = LayerChoice()


# Cached, because a search makes the same few choices canonical millions of times.
@lru_cache(maxsize=4096)
def canonical(choice: LayerChoice) -> LayerChoice:
    """See `LayerChoice.canonical`."""
    # Image tokens occur in the prompt only.
    no_tokens = choice.tokens == "image" and choice.phase == "decode"
    parallel = choice.wiring == "parallel" and choice.attention == choice.ffn == "run"
    changes_sublayers = not no_tokens and (parallel or "skip" in (choice.attention, choice.ffn))
    selects_images = choice.token_ratio not in (None, 1.0) and choice.phase != "decode" and choice.tokens != "text"
    if choice.skips_layer and choice.tokens != "text":
        selects_images = False
    # `abs` turns -0.0 into 0.0.
    ratio = abs(choice.token_ratio) if selects_images and choice.token_ratio is not None else None
    if ratio == 0 and choice.tokens == "image":
        changes_sublayers = False
    if not changes_sublayers:
        return KEEP if ratio is None else LayerChoice(token_ratio=ratio)
    return LayerChoice(
        attention=choice.attention,
        ffn=choice.ffn,
        wiring=choice.wiring if parallel else "sequential",
        norm=choice.norm if parallel else "own",
        token_ratio=ratio,
        phase="both" if choice.tokens == "image" else choice.phase,
        # Every generated token is text, so a scope changes nothing in the decode phase.
        tokens="all" if choice.phase == "decode" else choice.tokens,
    )


CHOICES: Mapping[str, LayerChoice] = {
    "keep": KEEP,
    "skip_ffn": LayerChoice(ffn="skip"),
    "skip_attention": LayerChoice(attention="skip"),
    "skip_layer": LayerChoice(attention="skip", ffn="skip"),
    "parallel": LayerChoice(wiring="parallel"),
}
