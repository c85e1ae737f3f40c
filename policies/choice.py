"""What one decoder layer does under a policy, as a frozen value."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

LAST_LAYER: Final = 9999
LARGEST_WINDOW: Final = 9999
AttentionRole: TypeAlias = Literal["run", "skip", "keys_only", "queries_only"]
# An adapter is trained for one policy, so spaces do not offer it.
AttentionChoice: TypeAlias = Literal["run", "skip", "keys_only", "queries_only", "adapter"]
Rest: TypeAlias = Literal["skip", "keys_only", "attention", "ffn"]
Wiring: TypeAlias = Literal["sequential", "parallel", "pair"]
Ranking: TypeAlias = Literal["weights", "first", "energy"]
# By `rest`, what the tokens do that a ratio leaves out: the values of `attention` and `ffn`.
DOES: Final[Mapping[Rest, tuple[AttentionChoice, Literal["run", "skip"]]]] = {
    "skip": ("skip", "skip"),
    "keys_only": ("keys_only", "skip"),
    "attention": ("run", "skip"),
    "ffn": ("skip", "run"),
}
# The names of skipped sublayers, by the values of `attention` and `ffn`.
SKIPS: Final = {
    ("run", "run"): "",
    ("skip", "skip"): "skip_layer",
    ("skip", "run"): "skip_attention",
    ("run", "skip"): "skip_ffn",
}
Ratio = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False, strict=True)]
# A width of 0 is a sublayer that is skipped, except for its biases; `skip` says so.
Width = Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False, strict=True)]

# Rows and columns of a grid of image tokens.
Window = Annotated[int, Field(ge=0, le=LARGEST_WINDOW, strict=True)]


class StrictModel(BaseModel):
    """Base of all models read from policy and space files: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class LayerChoice(StrictModel):
    """What one decoder layer does; without a key, the layer does what the dense layer does.

    Attributes:
        attention: Run the attention sublayer, or skip it with its norm; a skipped one stores no keys and values. Tokens
            with `keys_only` store keys and values and ask for nothing, as if frozen; tokens with `queries_only` attend
            to visible tokens and to themselves, and no other token sees them. `adapter` skips the attention, and a
            trained adapter changes what enters the FFN; see `trained.adapters`.
        ffn: Run the feed-forward sublayer, or skip it with its norm.
        ffn_ratio: Share of the FFN's channels that run, above 0 and up to 1: the trunc(ratio * channels) best ones.
        head_ratio: Share of the heads that the attention of the tokens in scope sums over, above 0 and up to 1: the
            trunc(ratio * groups) best groups of heads with the same keys. The other heads see and serve tokens out of
            scope alone.
        wiring: `parallel` feeds the layer's input to both sublayers. `pair` feeds it to the next layer too, and half of
            what each of the two layers adds is added; the other keys of each layer hold for what it adds itself.
        norm: Where the wiring is parallel, which norm feeds the FFN: its `own`, or the attention's, `shared`.
        window: An image token sees the image tokens at most so many rows and columns away in its own grid, earlier and
            later ones, and the text before it; all other tokens see what they see in the dense layer.
        token_ratio: Share of the image tokens, 0 to 1, that the layer processes. With `phase: decode` the layer
            processes all of them, and after the prompt the keys and values of the others leave its cache.
        rest: What the image tokens do that a token ratio leaves out of a prompt: nothing (`skip`), are seen
            (`keys_only`), have the `attention` without the FFN, or the `ffn` without the attention.
        evict: After the prompt, the keys and values of these tokens leave the layer's cache.
        phase: The phase in which the choice holds: `prefill`, `decode`, or `both`; in the other one the layer is dense.
        tokens: The tokens to which the choice applies: `all`, the `image` tokens, or all others (`text`, generated ones
            included); the remaining tokens go through the full layer.
    """

    attention: AttentionChoice = "run"
    ffn: Literal["run", "skip"] = "run"
    ffn_ratio: Width | None = None
    head_ratio: Width | None = None
    wiring: Wiring = "sequential"
    norm: Literal["own", "shared"] = "own"
    window: Window | None = None
    token_ratio: Ratio | None = None
    rest: Rest = "skip"
    evict: Annotated[bool, Field(strict=True)] = False
    phase: Literal["both", "prefill", "decode"] = "both"
    tokens: Literal["all", "image", "text"] = "all"

    @model_validator(mode="after")
    def _goes_with_an_adapter(self) -> Self:
        given = self.model_dump(exclude_defaults=True, exclude={"attention", "ffn_ratio"})
        if self.attention == "adapter" and given:
            found = ", ".join(f"{key}: {value}" for key, value in given.items())
            reason = "an adapter takes the place of the attention for all tokens in both phases, and feeds the FFN"
            raise ValueError(f"found {found} beside attention: adapter; {reason}")
        return self

    @property
    def is_keep(self) -> bool:
        """True where the layer does what the dense layer does."""
        return self.canonical() is KEEP

    @property
    def skips_layer(self) -> bool:
        """True where neither sublayer runs for the tokens to which the choice applies."""
        return self.attention == self.ffn == "skip"

    @property
    def skips_attention(self) -> bool:
        """True where the attention runs for no token in scope, and stores nothing."""
        return self.attention in ("skip", "adapter")

    @property
    def ranks_images(self) -> bool:
        """True where a token ratio of the prompt leaves image tokens out of the layer; false where it only evicts."""
        return self.token_ratio is not None and self.phase != "decode"

    @property
    def evicts(self) -> bool:
        """True where keys and values of image tokens leave the layer's cache after the prompt."""
        return self.token_ratio is not None and (self.evict or self.phase == "decode")

    @property
    def has_width(self) -> bool:
        """True where the layer runs a share of its channels or heads."""
        return self.ffn_ratio is not None or self.head_ratio is not None

    @property
    def label(self) -> str:
        """The choice as search spaces name it, such as `skip_ffn (decode)` or `token_ratio 0.5`."""
        widths = {"ffn_ratio": self.ffn_ratio, "head_ratio": self.head_ratio}
        words = [f"{key} {share:g}" for key, share in widths.items() if share is not None]
        words += ["pair"] if self.wiring == "pair" else []
        name = ", ".join(filter(None, [self._sublayers_label(), *words]))
        scope = [word for word in (self.phase, self.tokens) if word not in ("both", "all")]
        if name == "freeze" and self.tokens == "image":
            name, scope = "freeze_image", scope[:-1]
        suffix = f" ({', '.join(scope)})" if scope else ""
        parts = [name + suffix] if name else []
        if self.token_ratio is not None:
            ratio = f"token_ratio {self.token_ratio:g}"
            if self.phase == "decode" and not parts:
                ratio += " (decode)"
            ratio += f", rest {self.rest}" if self.rest != "skip" else ""
            parts.append(ratio + (", evict" if self.evict else ""))
        if self.window is not None:
            parts.append(f"window {self.window}")
        return " + ".join(parts) or "keep"

    def _sublayers_label(self) -> str:
        """What happens to the sublayers; empty where both run in sequence."""
        if self.attention in ("run", "skip"):
            if self.wiring == "parallel" and self.attention == self.ffn == "run":
                return "parallel" if self.norm == "own" else "parallel, shared norm"
            return SKIPS[self.attention, self.ffn]
        if self.ffn == "run":
            return self.attention
        return "freeze" if self.attention == "keys_only" else f"{self.attention}, skip_ffn"

    def canonical(self) -> "LayerChoice":
        """The canonical form: equal for choices that compute the same, without keys that have no effect.

        Every choice that changes nothing becomes `KEEP`.
        """
        return canonical(self)

    def document(self) -> dict[str, Any]:
        """The keys that differ from `KEEP`, as plain data."""
        return self.model_dump(exclude_defaults=True)


KEEP = LayerChoice()


def has_width(layers: Mapping[int, LayerChoice]) -> bool:
    """True where some layer runs a share of its channels or heads."""
    return any(choice.has_width for choice in layers.values())


# A plain name of a file, without folders, which could lead out of the policy's own.
FileName = Annotated[str, Field(pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]*$", max_length=255)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class WidthSelection(StrictModel):
    """How layers with an `ffn_ratio` select channels, and those with a `head_ratio` heads.

    Attributes:
        ranking: `weights` ranks a channel by the product of the norms of its weights, and a group of heads by that of
            its value and its output projection; `first` takes channels and heads in the order of the checkpoint, for
            models whose checkpoint is ordered; `energy` ranks a channel by what it adds to the FFN's output on
            calibration examples, and a group of heads by what it adds to the attention's.
        file: With `energy`, the safetensors file of the ranking, which lies beside the policy; `skipsearch rank` and a
            search write it.
        sha256: With `energy`, the SHA-256 of that file.
    """

    ranking: Ranking = "weights"
    # Left out where there are none, so that fingerprints stay what they were.
    file: Annotated[FileName | None, Field(exclude_if=lambda name: name is None)] = None
    sha256: Annotated[Sha256 | None, Field(exclude_if=lambda digest: digest is None)] = None

    @model_validator(mode="after")
    def _names_its_file(self) -> Self:
        if (self.file is None) != (self.sha256 is None):
            raise ValueError("found one of file and sha256, expected both or neither")
        if self.file is not None and self.ranking != "energy":
            raise ValueError(f"found file beside ranking {self.ranking}, expected ranking: energy")
        return self


# Cached, because a search makes the same few choices canonical millions of times.
@lru_cache(maxsize=4096)
def canonical(choice: LayerChoice) -> LayerChoice:
    """See `LayerChoice.canonical`."""
    choice = without_useless_keys(without_useless_ratio(without_useless_width(without_useless_window(choice))))
    parallel = choice.wiring == "parallel" and choice.attention == choice.ffn == "run"
    changes_sublayers = parallel or choice.attention != "run" or choice.ffn == "skip" or choice.has_width
    paired = choice.wiring == "pair"
    # Image tokens occur in the prompt only; a ratio of 0 leaves none of them to the rest of the choice.
    if choice.tokens == "image" and (choice.phase == "decode" or choice.token_ratio == 0):
        changes_sublayers, paired = False, paired and choice.phase != "decode"
    of_images: dict[str, Any] = {}
    if choice.token_ratio is not None:
        # `abs` turns -0.0 into 0.0.
        of_images = {"token_ratio": abs(choice.token_ratio), "rest": choice.rest, "evict": choice.evict}
    if choice.window is not None:
        of_images["window"] = choice.window
    if not changes_sublayers and not paired:
        return LayerChoice(**of_images, phase="decode" if choice.phase == "decode" else "both") if of_images else KEEP
    keys = ("attention", "ffn", "ffn_ratio", "head_ratio")
    sublayers = {key: getattr(choice, key) for key in keys} if changes_sublayers else {}
    return LayerChoice(
        **sublayers,
        wiring="pair" if paired else "parallel" if parallel else "sequential",
        norm=choice.norm if parallel else "own",
        **of_images,
        phase="both" if choice.tokens == "image" else choice.phase,
        # Every generated token is text, so a scope changes nothing in the decode phase.
        tokens="all" if choice.phase == "decode" else choice.tokens,
    )


def without_useless_window(choice: LayerChoice) -> LayerChoice:
    """The choice without a window where no image token attends under it."""
    useless = choice.phase == "decode" or choice.tokens == "text" or choice.attention in ("skip", "keys_only")
    return choice.model_copy(update={"window": None}) if useless and choice.window is not None else choice


def without_useless_width(choice: LayerChoice) -> LayerChoice:
    """The choice without `ffn_ratio` and `head_ratio` where they change nothing."""
    useless = {
        "ffn_ratio": choice.ffn_ratio == 1.0 or choice.ffn == "skip",
        "head_ratio": choice.head_ratio == 1.0 or choice.attention != "run",
    }
    return choice.model_copy(update={key: None for key, has_no_effect in useless.items() if has_no_effect})


def without_useless_ratio(choice: LayerChoice) -> LayerChoice:
    """The choice without a token ratio, `rest` and `evict` where they change nothing."""
    if choice.token_ratio in (None, 1.0) or choice.tokens == "text":
        return choice.model_copy(update={"token_ratio": None, "rest": "skip", "evict": False})
    if choice.phase == "decode":
        return choice.model_copy(update={"rest": "skip", "evict": False})
    evict = choice.evict and choice.phase == "both" and DOES[choice.rest][0] != "skip"
    alike = not choice.has_width and choice.window is None
    if not evict and alike and DOES[choice.rest] == (choice.attention, choice.ffn):
        # The tokens that the ratio keeps do what the others do.
        return choice.model_copy(update={"token_ratio": None, "rest": "skip", "evict": False})
    return choice.model_copy(update={"evict": evict})


def without_useless_keys(choice: LayerChoice) -> LayerChoice:
    """The choice without `keys_only` where no token ever reads the keys."""
    everywhere = choice.phase == "both" and choice.tokens == "all"
    if not everywhere or choice.attention not in ("skip", "keys_only") or choice.rest == "attention":
        return choice
    rest = "skip" if choice.rest == "keys_only" else choice.rest
    return without_useless_ratio(choice.model_copy(update={"attention": "skip", "rest": rest}))


CHOICES: Mapping[str, LayerChoice] = {
    "keep": KEEP,
    "skip_ffn": LayerChoice(ffn="skip"),
    "skip_attention": LayerChoice(attention="skip"),
    "skip_layer": LayerChoice(attention="skip", ffn="skip"),
    "parallel": LayerChoice(wiring="parallel"),
    "freeze_image": LayerChoice(attention="keys_only", ffn="skip", tokens="image"),
}
