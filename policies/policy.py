"""What a policy is: which computations a model leaves out, as a frozen value that lives in a YAML file."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from .document import Document
from .errors import PolicyError, PolicyMismatch

SCHEMA: Final = "skipsearch/policy/v1"

Ratio = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False, strict=True)]
LAST_LAYER = 9999
LayerIndex = Annotated[int, Field(ge=0, le=LAST_LAYER)]
Score = Literal["attention", "norm", "uniform"]


class Part(BaseModel):
    """Base of everything that stands in a policy file: frozen, and no key is ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class LayerChoice(Part):
    """What one decoder layer does; a key that is left out means what the dense layer does.

    Attributes:
        attention: Run the attention sublayer or skip it with its norm; a skipped one stores no keys and values.
        ffn: Run the feed-forward sublayer or skip it with its norm.
        wiring: `parallel` feeds both sublayers the layer's input.
        token_ratio: Share of the image tokens, 0 to 1, that the layer processes.
    """

    attention: Literal["run", "skip"] = "run"
    ffn: Literal["run", "skip"] = "run"
    wiring: Literal["sequential", "parallel"] = "sequential"
    token_ratio: Ratio | None = None

    @property
    def is_keep(self) -> bool:
        """True where the layer does all that the dense layer does."""
        return self.canonical() == KEEP

    @property
    def skips_layer(self) -> bool:
        """True where neither sublayer runs."""
        return self.attention == self.ffn == "skip"

    @property
    def label(self) -> str:
        """The choice in the words of a search space, such as `skip_ffn` or `token_ratio 0.5`."""
        parts = []
        if self.skips_layer:
            parts = ["skip_layer"]
        elif "skip" in (self.attention, self.ffn):
            parts = ["skip_attention" if self.attention == "skip" else "skip_ffn"]
        elif self.wiring == "parallel":
            parts = ["parallel"]
        if self.token_ratio is not None:
            parts.append(f"token_ratio {self.token_ratio:g}")
        return " + ".join(parts) or "keep"

    def canonical(self) -> "LayerChoice":
        """The one spelling of what this choice computes: what has no effect is left out."""
        ratio = None if self.token_ratio in (None, 1.0) or self.skips_layer else abs(self.token_ratio)
        wiring = self.wiring if self.attention == self.ffn == "run" else "sequential"
        return LayerChoice(attention=self.attention, ffn=self.ffn, wiring=wiring, token_ratio=ratio)

    def document(self) -> dict[str, Any]:
        """The keys that differ from keep."""
        return self.model_dump(exclude_defaults=True)


KEEP = LayerChoice()
NAMED: Mapping[str, LayerChoice] = {
    "keep": KEEP,
    "skip_ffn": LayerChoice(ffn="skip"),
    "skip_attention": LayerChoice(attention="skip"),
    "skip_layer": LayerChoice(attention="skip", ffn="skip"),
    "parallel": LayerChoice(wiring="parallel"),
}


class TokenSelection(Part):
    """How the image tokens of a layer with a token ratio are ranked.

    Attributes:
        score: `attention` (of the last prompt token, mean of heads, in the nearest earlier layer that has attention; a
            token that such a layer left out keeps the score it had; where there is no earlier one, as `uniform`),
            `norm` (of the token's hidden state) or `uniform` (every k-th).
        reselect: `each_layer` lets a token that one layer left out come back in the next.
    """

    score: Score = "attention"
    reselect: Literal["each_layer"] = "each_layer"


class ModelRef(Part):
    """The model a policy was made for."""

    id: str | None = None
    revision: str | None = None
    num_layers: Annotated[int, Field(ge=1, le=LAST_LAYER + 1)] | None = None


class Measured(Part):
    """One figure that a search measured, beside the dense model's.

    Attributes:
        value: The figure; an accuracy is a fraction, the unit of others is the suffix of their name.
        dense: The same of the model without a policy.
        stderr: Standard error of an accuracy.
        iqr: Interquartile range of a latency.
        n: How many examples or repeats stand behind it.
        split: Which examples: `search` (they guided the search) or `report` (the search never saw them).
    """

    value: float
    dense: float | None = None
    stderr: float | None = None
    iqr: float | None = None
    n: int | None = None
    split: Literal["search", "report"] | None = None


class Provenance(Part):
    """Where a policy comes from."""

    study: str | None = None
    trial: int | None = None
    skipsearch: str | None = None


class Policy(Part):
    """Which computations a model leaves out.

    Attributes:
        schema: The kind of the file and the version of its keys.
        model: The model it was made for; a hand-written policy may leave it out.
        layers: By 0-based layer number, what differs from keep.
        token_selection: How image tokens are ranked where a layer has a token ratio.
        measured: Figures of a search, by metric; accuracy on the report split, `search_accuracy` on the search split.
        provenance: The study and trial it comes from.
    """

    schema_: Annotated[Literal["skipsearch/policy/v1"], Field(alias="schema")] = SCHEMA
    model: ModelRef = ModelRef()
    layers: dict[LayerIndex, LayerChoice] = {}
    token_selection: TokenSelection = TokenSelection()
    measured: dict[str, Measured] = {}
    provenance: Provenance = Provenance()

    @field_validator("layers", "measured", mode="before")
    @classmethod
    def _empty_is_a_mapping(cls, value: Any) -> Any:
        return {} if value is None else value

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a policy file.

        Raises:
            PolicyError: with every mistake in the file, each with its line and column.
        """
        return cls.read(Document.read(Path(path), PolicyError))

    @classmethod
    def read(cls, document: Document) -> Self:
        """The policy that a document describes.

        Raises:
            PolicyError: see `load`.
        """
        document.require_schema(SCHEMA)
        policy = document.validate(cls)
        count = policy.model.num_layers
        beyond = [index for index in policy.layers if count is not None and index >= count]
        if count is not None and beyond:
            reasons = {index: f"found layer {index}, expected 0 to {count - 1}" for index in beyond}
            raise document.failure([document.problem(("layers", index), text) for index, text in reasons.items()])
        return policy

    @classmethod
    def of(cls, choices: list[LayerChoice], selection: TokenSelection = TokenSelection()) -> Self:
        """A policy from one choice a layer, in canonical form."""
        return cls(layers=dict(enumerate(choices)), token_selection=selection).canonical()

    def canonical(self) -> Self:
        """The one spelling of what this policy computes; measurements and provenance stay."""
        kept = {index: choice.canonical() for index, choice in sorted(self.layers.items())}
        layers = {index: choice for index, choice in kept.items() if choice != KEEP}
        # Where no image token is kept at all, there is nothing to rank.
        selects = any(choice.token_ratio for choice in layers.values())
        selection = self.token_selection if selects else TokenSelection()
        return self.model_copy(update={"layers": layers, "token_selection": selection})

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits, equal for policies that compute the same, whatever their spelling."""
        same = self.canonical()
        plain = {
            "layers": {str(index): choice.document() for index, choice in same.layers.items()},
            "token_selection": same.token_selection.model_dump(),
        }
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def is_dense(self) -> bool:
        """True where nothing is left out."""
        return not self.canonical().layers

    def choice(self, layer: int) -> LayerChoice:
        """What a layer does."""
        return self.layers.get(layer, KEEP)

    def choices(self, num_layers: int) -> list[LayerChoice]:
        """What every layer does, first to last."""
        return [self.choice(index) for index in range(num_layers)]

    def check_fits(self, num_layers: int, model_name: str) -> None:
        """Refuse a model with another number of layers.

        Raises:
            PolicyMismatch: the policy names another layer count, or a layer the model does not have.
        """
        made_for = self.model.num_layers
        highest = max(self.layers, default=-1)
        if made_for is not None and made_for != num_layers:
            raise PolicyMismatch(
                f"policy was made for {made_for} layers, model has {num_layers}",
                [f"policy for {self.model.id or 'a model without an id'}, model {model_name}"],
                "use the model named in the policy, or search again for this one with `skipsearch run`",
            )
        if highest >= num_layers:
            raise PolicyMismatch(
                f"policy speaks of layer {highest}, model has layers 0 to {num_layers - 1}",
                [f"model {model_name}"],
                "remove that layer from the policy, or use the model it was made for",
            )

    def document(self) -> dict[str, Any]:
        """The policy as plain data, in the order of the file, without what is empty."""
        same = self.canonical()
        data: dict[str, Any] = {"schema": SCHEMA}
        if same.model != ModelRef():
            data["model"] = same.model.model_dump()
        data["layers"] = {index: choice.document() for index, choice in same.layers.items()}
        if any(choice.token_ratio is not None for choice in same.layers.values()):
            data["token_selection"] = same.token_selection.model_dump()
        if same.measured:
            data["measured"] = {
                name: {key: tidy(value) for key, value in entry.model_dump(exclude_none=True).items()}
                for name, entry in same.measured.items()
            }
        if same.provenance != Provenance():
            data["provenance"] = same.provenance.model_dump(exclude_none=True)
        return data

    def to_yaml(self) -> str:
        """The text of the policy file: one line a layer."""
        return yaml.safe_dump(self.document(), sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)

    def save(self, path: str | Path) -> None:
        """Write the policy file."""
        Path(path).write_text(self.to_yaml(), encoding="utf-8")


def tidy(value: Any) -> Any:
    """Whole numbers without a fraction, others with six significant digits: the file is for people too."""
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    return int(value) if value.is_integer() and abs(value) < 1e15 else float(f"{value:.6g}")
