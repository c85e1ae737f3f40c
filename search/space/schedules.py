"""Schedules in a space: the generators of a policy, each number or word of them one value or a list of options."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from ...policies.choice import Ratio, StrictModel
from ...policies.schedules import ONE_KEY, Changing, Layer, Schedule, Segments, Step, check_one, check_order
from .layer_choices import Options, options


class DecayOptions(StrictModel):
    """The options of `shifted_cosine` and `linear`."""

    ratio: Options[Ratio]
    max: Options[Ratio]
    min: Options[Ratio]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        check_order(max(options(self.min)), min(options(self.max)))
        return self


class FastVOptions(StrictModel):
    """The options of `fastv`."""

    layer: Options[Layer]
    token_ratio: Options[Ratio]


class IntervalOptions(StrictModel):
    """The options of `interval`.

    Attributes:
        interval: I, or a list of options; one that has an interval for each of several parts of the depth is a list
            itself, as in `[2, 4, [2, 4, 8, 2]]`.
    """

    interval: Step | Annotated[list[Step | Segments], Field(min_length=1)]
    start: Options[Layer] = 0
    end: Options[Layer] | None = None
    choice: Options[Changing]
    norm: Options[Literal["own", "shared"]] = "own"
    phase: Options[Literal["both", "prefill", "decode"]] = "both"
    tokens: Options[Literal["all", "image", "text"]] = "all"


class Pattern(StrictModel):
    """One generator by its name; of a list in it the search chooses one.

    Attributes:
        shifted_cosine: Image tokens decay along half a cosine (p-MoD, arXiv:2412.04449).
        linear: Image tokens decay along a line.
        fastv: Fewer image tokens from one layer on (FastV, arXiv:2403.06764, with `reselect: once`).
        interval: A choice in every I-th layer (ima-lmms, arXiv:2410.09454).
    """

    model_config = ConfigDict(json_schema_extra=ONE_KEY)

    shifted_cosine: DecayOptions | None = None
    linear: DecayOptions | None = None
    fastv: FastVOptions | None = None
    interval: IntervalOptions | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        check_one(self)
        return self

    @property
    def generator(self) -> str:
        """Its name."""
        return next(name for name, generator in self if generator is not None)

    def options(self) -> dict[str, list[Any]]:
        """By key of the generator, what it may be."""
        return {key: options(value) for key, value in getattr(self, self.generator)}

    def schedule(self, setting: Mapping[str, Any]) -> Schedule:
        """The schedule of one value a key."""
        return Schedule.model_validate({self.generator: dict(setting)})
