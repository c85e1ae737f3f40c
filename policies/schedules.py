"""Schedules: named generators of the published patterns, which give one choice a layer from a few numbers.

`l` is the 0-based number of a layer and `L` the number of layers of the model.
"""

import math
from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator

from .choice import CHOICES, KEEP, LAST_LAYER, LayerChoice, Ratio, StrictModel

Layer = Annotated[int, Field(ge=0, le=LAST_LAYER, strict=True)]
Step = Annotated[int, Field(ge=1, le=LAST_LAYER + 1, strict=True)]
Segments = Annotated[list[Step], Field(min_length=1)]
Changing = Literal["skip_ffn", "skip_attention", "skip_layer", "parallel"]
ONE_KEY: Final[dict[str, JsonValue]] = {"minProperties": 1, "maxProperties": 1}
DIGITS = 6  # of a ratio that a curve gives: the file is for people, and the same on every machine


class Decay(StrictModel):
    """Image tokens that become fewer from layer to layer, along a curve from ½ to -½ that a ratio shifts."""

    ratio: Ratio
    max: Ratio
    min: Ratio

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        check_order(self.min, self.max)
        return self

    def curve(self, depth: float) -> float:
        """What is added to the ratio at a depth `l / (L-1)`, 0 to 1."""
        raise NotImplementedError

    def choices(self, num_layers: int) -> list[LayerChoice]:
        """What every layer does, first to last."""
        depths = [index / max(1, num_layers - 1) for index in range(num_layers)]
        shares = [round(self.curve(depth) + self.ratio, DIGITS) for depth in depths]
        return [KEEP if share > self.max else LayerChoice(token_ratio=max(share, self.min)) for share in shares]


class ShiftedCosine(Decay):
    """Progressive ratio decay of p-MoD (arXiv:2412.04449): `½ cos(π l / (L-1)) + ratio`.

    Attributes:
        ratio: The mean share of the image tokens, before `max` and `min` cut the curve.
        max: A layer whose share is above this is kept dense.
        min: No layer has a smaller share.
    """

    def curve(self, depth: float) -> float:
        """Half a wave."""
        return math.cos(math.pi * depth) / 2


class Linear(Decay):
    """The linear variant of p-MoD's decay (arXiv:2412.04449): `½ - l / (L-1) + ratio`.

    Attributes:
        ratio: The mean share of the image tokens, before `max` and `min` cut the curve.
        max: A layer whose share is above this is kept dense.
        min: No layer has a smaller share.
    """

    def curve(self, depth: float) -> float:
        """A straight line."""
        return 0.5 - depth


class FastV(StrictModel):
    """Fewer image tokens from one layer on; with `token_selection: {reselect: once}` it is FastV (arXiv:2403.06764).

    Attributes:
        layer: K, the first layer that processes fewer.
        token_ratio: The share of the image tokens that is processed. FastV's R is the share removed: 1 - token_ratio.
    """

    layer: Layer
    token_ratio: Ratio

    def choices(self, num_layers: int) -> list[LayerChoice]:
        """What every layer does, first to last."""
        fewer = LayerChoice(token_ratio=self.token_ratio)
        return [fewer if index >= self.layer else KEEP for index in range(num_layers)]


class Interval(StrictModel):
    """Every I-th layer, as in ima-lmms (arXiv:2410.09454): l is selected where `start < l < end` and `l mod I = 0`.

    Layer 0 is never selected. ima-lmms's modes are phases: its plain one is `decode`, context `both`, onlycontext
    `prefill`; its parallel layers share one norm.

    Attributes:
        interval: I; or a list of them, each for one of as many equal parts of the depth (what is left over when the
            layers do not divide belongs to the last part).
        start: The last layer before the selected ones.
        end: The first layer after them; the model's last where none is given.
        choice: What happens in a selected layer.
        norm: Where the choice is `parallel`, which norm feeds the FFN.
        phase: When the choice holds.
        tokens: Whom it concerns.
    """

    interval: Step | Segments
    start: Layer = 0
    end: Layer | None = None
    choice: Changing
    norm: Literal["own", "shared"] = "own"
    phase: Literal["both", "prefill", "decode"] = "both"
    tokens: Literal["all", "image", "text"] = "all"

    def choices(self, num_layers: int) -> list[LayerChoice]:
        """What every layer does, first to last."""
        intervals = self.interval if isinstance(self.interval, list) else [self.interval]
        length = max(1, num_layers // len(intervals))
        end = num_layers - 1 if self.end is None else self.end
        scope = {"norm": self.norm, "phase": self.phase, "tokens": self.tokens}
        changed = CHOICES[self.choice].model_copy(update=scope)
        return [
            changed
            if self.start < index < end and index % intervals[min(index // length, len(intervals) - 1)] == 0
            else KEEP
            for index in range(num_layers)
        ]


class Schedule(StrictModel):
    """One generator by its name.

    Attributes:
        shifted_cosine: Image tokens decay along half a cosine (p-MoD).
        linear: Image tokens decay along a line.
        fastv: Fewer image tokens from one layer on (FastV).
        interval: A choice in every I-th layer (ima-lmms).
    """

    model_config = ConfigDict(json_schema_extra=ONE_KEY)

    shifted_cosine: ShiftedCosine | None = None
    linear: Linear | None = None
    fastv: FastV | None = None
    interval: Interval | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        check_one(self)
        return self

    def choices(self, num_layers: int) -> list[LayerChoice]:
        """What every layer does, first to last."""
        return next(generator.choices(num_layers) for _, generator in self if generator is not None)


def check_order(least: float, most: float) -> None:
    """Refuse a decay whose smallest share is above its largest.

    Raises:
        ValueError: with both.
    """
    if least > most:
        raise ValueError(f"found min {least:g} above max {most:g}, expected min to be the lower one")


def check_one(schedule: StrictModel) -> None:
    """Refuse a mapping that names no generator, or several.

    Raises:
        ValueError: with what was found.
    """
    given = [name for name, generator in schedule if generator is not None]
    if len(given) != 1:
        known = ", ".join(type(schedule).model_fields)
        raise ValueError(f"found {' and '.join(given) or 'no generator'}, expected exactly one of {known}")
