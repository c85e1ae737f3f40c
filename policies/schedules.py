"""Schedules: generators of published patterns, which expand a few numbers into one choice for each layer.

`l` is the 0-based number of a layer and `L` the number of layers of the model.
"""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator

from .choice import CHOICES, KEEP, LAST_LAYER, LayerChoice, Ratio, StrictModel

Layer = Annotated[int, Field(ge=0, le=LAST_LAYER, strict=True)]
Step = Annotated[int, Field(ge=1, le=LAST_LAYER + 1, strict=True)]
Segments = Annotated[list[Step], Field(min_length=1)]
Changing = Literal["skip_ffn", "skip_attention", "skip_layer", "parallel"]
ONE_KEY: Final[dict[str, JsonValue]] = {"minProperties": 1, "maxProperties": 1}
# Decimals of a ratio from a curve: enough for a readable file that is the same on every machine.
DIGITS = 6


class Decay(StrictModel):
    """Base of schedules in which the share of image tokens falls along a curve from ½ to -½, shifted by a ratio."""

    ratio: Ratio
    max: Ratio
    min: Ratio

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        check_order(self.min, self.max)
        return self

    def curve(self, depth: float) -> float:
        """The curve at a depth `l / (L-1)`, 0 to 1; it is added to the ratio."""
        raise NotImplementedError

    def choices(self, num_layers: int) -> list[LayerChoice]:
        """What every layer does, first to last."""
        depths = [index / max(1, num_layers - 1) for index in range(num_layers)]
        shares = [round(self.curve(depth) + self.ratio, DIGITS) for depth in depths]
        return [KEEP if share > self.max else LayerChoice(token_ratio=max(share, self.min)) for share in shares]


class ShiftedCosine(Decay):
    """Progressive ratio decay of p-MoD (arXiv:2412.04449): `½ cos(π l / (L-1)) + ratio`.

    Attributes:
        ratio: The mean share of the image tokens, before `max` and `min` apply.
        max: A layer with a share above this is kept dense.
        min: A smaller share is raised to this.
    """

    def curve(self, depth: float) -> float:
        """Half a cosine."""
        return math.cos(math.pi * depth) / 2


class Linear(Decay):
    """The linear variant of p-MoD's decay (arXiv:2412.04449): `½ - l / (L-1) + ratio`.

    Attributes:
        ratio: The mean share of the image tokens, before `max` and `min` apply.
        max: A layer with a share above this is kept dense.
        min: A smaller share is raised to this.
    """

    def curve(self, depth: float) -> float:
        """A straight line."""
        return 0.5 - depth


class FastV(StrictModel):
    """Fewer image tokens from one layer on; with `token_selection: {reselect: once}` it is FastV (arXiv:2403.06764).

    Attributes:
        layer: FastV's K, the first layer that processes fewer.
        token_ratio: The share of the image tokens that it processes. FastV's R is the share removed, 1 - token_ratio.
    """

    layer: Layer
    token_ratio: Ratio

    def choices(self, num_layers: int) -> list[LayerChoice]:
        """What every layer does, first to last."""
        fewer = LayerChoice(token_ratio=self.token_ratio)
        return [fewer if index >= self.layer else KEEP for index in range(num_layers)]


class PyramidDrop(StrictModel):
    """Fewer image tokens after each of some equal parts of the depth (PyramidDrop, arXiv:2410.17247).

    Its paper and code have 4 stages and a ratio of 0.5: of 32 layers, half of the tokens from layer 8 on, a quarter
    from 16 and an eighth from 24.

    Attributes:
        stages: The number of parts of the depth; the first has all image tokens.
        token_ratio: The share of the tokens of one part that the next part has.
    """

    selection: ClassVar[Mapping[str, str]] = {"score": "attention", "reselect": "once"}

    stages: Annotated[int, Field(ge=2, le=LAST_LAYER + 1, strict=True)] = 4
    token_ratio: Ratio = 0.5

    def choices(self, num_layers: int) -> list[LayerChoice]:
        """What every layer does, first to last."""
        length = max(1, num_layers // self.stages)
        starts = [length * stage for stage in range(1, self.stages)]
        begun = [sum(start <= index for start in starts) for index in range(num_layers)]
        return [LayerChoice(token_ratio=round(self.token_ratio**count, DIGITS)) if count else KEEP for count in begun]


class VTW(StrictModel):
    """No image tokens from one layer on (VTW, arXiv:2405.05803).

    Attributes:
        layer: VTW's K, the first layer without them; 16 for LLaVA-1.5-7B in its paper.
    """

    selection: ClassVar[Mapping[str, str]] = {"reselect": "once"}

    layer: Layer

    def choices(self, num_layers: int) -> list[LayerChoice]:
        """What every layer does, first to last."""
        return [LayerChoice(token_ratio=0.0) if index >= self.layer else KEEP for index in range(num_layers)]


class DivPrune(StrictModel):
    """The most diverse image tokens from the first layer on (DivPrune, arXiv:2503.02175).

    Attributes:
        token_ratio: The share of the image tokens that remains; 0.098 in its paper.
    """

    selection: ClassVar[Mapping[str, str]] = {"score": "diverse", "reselect": "once"}

    token_ratio: Ratio

    def choices(self, num_layers: int) -> list[LayerChoice]:
        """What every layer does, first to last."""
        return [LayerChoice(token_ratio=self.token_ratio)] * num_layers


class SkipVision(StrictModel):
    """Most image tokens have the attention without the FFN, and leave the cache after the prompt (Skip-Vision).

    As in arXiv:2503.21817, without its training. Which tokens have the FFN is a matter of places there, so `uniform`
    takes them here.

    Attributes:
        token_ratio: The share of the image tokens that have the FFN too and stay in the cache.
    """

    selection: ClassVar[Mapping[str, str]] = {"score": "uniform"}

    token_ratio: Ratio

    def choices(self, num_layers: int) -> list[LayerChoice]:
        """What every layer does, first to last."""
        return [LayerChoice(token_ratio=self.token_ratio, rest="attention", evict=True)] * num_layers


class Interval(StrictModel):
    """A choice in every I-th layer, as in ima-lmms (arXiv:2410.09454): where `start < l < end` and `l mod I = 0`.

    Layer 0 is never selected. ima-lmms's modes are phases: plain is `decode`, context `both`, onlycontext `prefill`;
    its parallel layers share one norm.

    Attributes:
        interval: I, or a list of them: the depth is divided into as many equal parts, one interval each (layers that
            remain belong to the last part).
        start: The last layer before the selected ones.
        end: The first layer after the selected ones; by default the model's last layer.
        choice: What a selected layer does.
        norm: Where the choice is `parallel`, which norm feeds the FFN.
        phase: The phase in which the choice holds.
        tokens: The tokens to which the choice applies.
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
    """One schedule, by its name.

    Attributes:
        shifted_cosine: The share of image tokens falls along half a cosine (p-MoD).
        linear: The share of image tokens falls along a line.
        fastv: Fewer image tokens from one layer on (FastV).
        pyramid_drop: Fewer image tokens after each of some equal parts of the depth (PyramidDrop).
        vtw: No image tokens from one layer on (VTW).
        divprune: The most diverse image tokens from the first layer on (DivPrune).
        skip_vision: Most image tokens have no FFN, and leave the cache after the prompt (Skip-Vision).
        interval: A choice in every I-th layer (ima-lmms).
    """

    model_config = ConfigDict(json_schema_extra=ONE_KEY)

    shifted_cosine: ShiftedCosine | None = None
    linear: Linear | None = None
    fastv: FastV | None = None
    pyramid_drop: PyramidDrop | None = None
    vtw: VTW | None = None
    divprune: DivPrune | None = None
    skip_vision: SkipVision | None = None
    interval: Interval | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        check_one(self)
        return self

    @property
    def selection(self) -> Mapping[str, str]:
        """The `token_selection` that belongs to the schedule, by key; empty where every one does."""
        return next(getattr(pattern, "selection", {}) for _, pattern in self if pattern is not None)

    def choices(self, num_layers: int) -> list[LayerChoice]:
        """What every layer does, first to last."""
        return next(pattern.choices(num_layers) for _, pattern in self if pattern is not None)


def check_order(least: float, most: float) -> None:
    """Refuse a decay with `min` above `max`.

    Raises:
        ValueError: naming both.
    """
    if least > most:
        raise ValueError(f"found min {least:g} above max {most:g}, expected min to be the lower one")


def check_one(schedule: StrictModel) -> None:
    """Refuse a mapping that names no schedule, or several.

    Raises:
        ValueError: naming what was found.
    """
    given = [name for name, value in schedule if value is not None]
    if len(given) != 1:
        known = ", ".join(type(schedule).model_fields)
        raise ValueError(f"found {' and '.join(given) or 'no schedule'}, expected exactly one of {known}")
