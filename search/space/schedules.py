"""Schedules of a space: the schedules of a policy file, where every key takes a value or a list of options."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from ...policies.choice import LAST_LAYER, Ratio, StrictModel
from ...policies.schedules import ONE_KEY, Changing, Layer, Schedule, Segments, Step, check_one, check_order
from .layer_choices import Options, as_options


class DecayOptions(StrictModel):
    """The options of `shifted_cosine` and `linear`."""

    ratio: Options[Ratio]
    max: Options[Ratio]
    min: Options[Ratio]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        check_order(max(as_options(self.min)), min(as_options(self.max)))
        return self


class FastVOptions(StrictModel):
    """The options of `fastv`."""

    layer: Options[Layer]
    token_ratio: Options[Ratio]


class PyramidDropOptions(StrictModel):
    """The options of `pyramid_drop`."""

    stages: Options[Annotated[int, Field(ge=2, le=LAST_LAYER + 1, strict=True)]] = 4
    token_ratio: Options[Ratio] = 0.5


class VTWOptions(StrictModel):
    """The options of `vtw`."""

    layer: Options[Layer]


class DivPruneOptions(StrictModel):
    """The options of `divprune`."""

    token_ratio: Options[Ratio]


class SkipVisionOptions(StrictModel):
    """The options of `skip_vision`."""

    token_ratio: Options[Ratio]


class IntervalOptions(StrictModel):
    """The options of `interval`.

    Attributes:
        interval: I, or a list of options. An option that gives an interval for each of several equal parts of the depth
            is a list itself: `[2, 4, [2, 4, 8, 2]]` has three options.
    """

    interval: Step | Annotated[list[Step | Segments], Field(min_length=1)]
    start: Options[Layer] = 0
    end: Options[Layer] | None = None
    choice: Options[Changing]
    norm: Options[Literal["own", "shared"]] = "own"
    phase: Options[Literal["both", "prefill", "decode"]] = "both"
    tokens: Options[Literal["all", "image", "text"]] = "all"


class ScheduleOptions(StrictModel):
    """One schedule by its name; the search chooses one value of each list in it.

    Attributes:
        shifted_cosine: The share of image tokens decays along half a cosine (p-MoD, arXiv:2412.04449).
        linear: The share of image tokens decays linearly.
        fastv: A share of the image tokens from one layer on (FastV, arXiv:2403.06764, with `reselect: once`).
        pyramid_drop: Fewer image tokens after each of some equal parts of the depth (PyramidDrop, arXiv:2410.17247).
        vtw: No image tokens from one layer on (VTW, arXiv:2405.05803).
        divprune: The most diverse image tokens from the first layer on (DivPrune, arXiv:2503.02175).
        skip_vision: Most image tokens have no FFN, and no place in the cache after the prompt (arXiv:2503.21817).
        interval: A choice in every I-th layer (ima-lmms, arXiv:2410.09454).
    """

    model_config = ConfigDict(json_schema_extra=ONE_KEY)

    shifted_cosine: DecayOptions | None = None
    linear: DecayOptions | None = None
    fastv: FastVOptions | None = None
    pyramid_drop: PyramidDropOptions | None = None
    vtw: VTWOptions | None = None
    divprune: DivPruneOptions | None = None
    skip_vision: SkipVisionOptions | None = None
    interval: IntervalOptions | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        check_one(self)
        return self

    @property
    def name(self) -> str:
        """The name of the schedule."""
        return next(name for name, schedule in self if schedule is not None)

    def options(self) -> dict[str, list[Any]]:
        """The options of each key."""
        return {key: as_options(value) for key, value in getattr(self, self.name)}

    def schedule(self, setting: Mapping[str, Any]) -> Schedule:
        """The schedule with one value for each key."""
        return Schedule.model_validate({self.name: dict(setting)})
