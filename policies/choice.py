"""What one decoder layer does under a policy, as a frozen value."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

LAST_LAYER: Final = 9999
Ratio = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False, strict=True)]


class StrictModel(BaseModel):
    """Base of everything that stands in a policy or a space file: frozen, and no key is ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class LayerChoice(StrictModel):
    """What one decoder layer does; a key that is left out means what the dense layer does.

    Attributes:
        attention: Run the attention sublayer or skip it with its norm; a skipped one stores no keys and values.
        ffn: Run the feed-forward sublayer or skip it with its norm.
        wiring: `parallel` feeds both sublayers the layer's input.
        norm: Where the wiring is parallel, which norm feeds the FFN: its `own`, or the attention's, `shared`.
        token_ratio: Share of the image tokens, 0 to 1, that the layer processes.
        phase: When the choice holds: in `prefill`, in `decode`, or in `both`; otherwise the layer is dense.
        tokens: Whom the choice concerns: `all`, the `image` tokens, or the others (`text`, generated ones among them);
            the rest has the full layer.
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
        """True where the layer does all that the dense layer does."""
        return self.canonical() is KEEP

    @property
    def skips_layer(self) -> bool:
        """True where neither sublayer runs for those whom the choice concerns."""
        return self.attention == self.ffn == "skip"

    @property
    def label(self) -> str:
        """The choice in the words of a search space, such as `skip_ffn (decode)` or `token_ratio 0.5`."""
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
        """The one spelling of what this choice computes: no effect, no words; all that keeps is `KEEP`."""
        return canonical(self)

    def document(self) -> dict[str, Any]:
        """The keys that differ from keep."""
        return self.model_dump(exclude_defaults=True)


KEEP = LayerChoice()


# A search spells the same few choices of many layers millions of times.
@lru_cache(maxsize=4096)
def canonical(choice: LayerChoice) -> LayerChoice:
    """See `LayerChoice.canonical`."""
    # Image tokens stand in the prompt alone.
    nobody = choice.tokens == "image" and choice.phase == "decode"
    parallel = choice.wiring == "parallel" and choice.attention == choice.ffn == "run"
    changes = not nobody and (parallel or "skip" in (choice.attention, choice.ffn))
    chooses = choice.token_ratio not in (None, 1.0) and choice.phase != "decode" and choice.tokens != "text"
    if choice.skips_layer and choice.tokens != "text":
        chooses = False
    ratio = abs(choice.token_ratio) if chooses and choice.token_ratio is not None else None
    if ratio == 0 and choice.tokens == "image":
        changes = False
    if not changes:
        return KEEP if ratio is None else LayerChoice(token_ratio=ratio)
    return LayerChoice(
        attention=choice.attention,
        ffn=choice.ffn,
        wiring=choice.wiring if parallel else "sequential",
        norm=choice.norm if parallel else "own",
        token_ratio=ratio,
        phase="both" if choice.tokens == "image" else choice.phase,
        # A token that is generated is text.
        tokens="all" if choice.phase == "decode" else choice.tokens,
    )


CHOICES: Mapping[str, LayerChoice] = {
    "keep": KEEP,
    "skip_ffn": LayerChoice(ffn="skip"),
    "skip_attention": LayerChoice(attention="skip"),
    "skip_layer": LayerChoice(attention="skip", ffn="skip"),
    "parallel": LayerChoice(wiring="parallel"),
}
