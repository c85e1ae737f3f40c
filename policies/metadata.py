"""What a policy file says beside its choices: the model it was made for, its measurements, and where it comes from."""

import math
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from .choice import LAST_LAYER, StrictModel
from .quantized.kinds import NONE, Quantization

Z95: Final = 1.96  # standard errors on each side of a 95 % interval


class ModelRef(StrictModel):
    """The model that a policy was made for.

    Attributes:
        id: A hub id, or the path of a folder.
        revision: A branch, tag or commit on the hub.
        num_layers: The number of its decoder layers; another number is refused.
        quantization: What the weights of its decoder are quantised to, such as `int8`. A model that has them otherwise
            is quantised as long as the policy is applied.
    """

    id: str | None = None
    revision: str | None = None
    num_layers: Annotated[int, Field(ge=1, le=LAST_LAYER + 1)] | None = None
    # Left out where there is none, so that files and schemas of policies stay what they were.
    quantization: Annotated[Quantization, Field(exclude_if=lambda kind: kind == NONE)] = NONE


class Measured(StrictModel):
    """The value of one metric that a search measured, beside the dense model's.

    Attributes:
        value: The value; an accuracy is a fraction, the unit of other metrics is the suffix of their name.
        dense: The value of the dense model.
        stderr: Standard error of an accuracy, or of a latency that was measured in several visits or modelled.
        iqr: Interquartile range of a latency.
        n: Number of examples or repeats; 0 for a latency that older releases predicted and did not measure.
        split: The examples: `search` (they guided the search), `report` (the search never saw them), or `transfer`
            (another task). Latencies of the split `report` were measured again at the end of the search.
        modelled: The latency that the search used: a model of all its latencies removes the noise; `stderr` is the
            standard error of this value.
    """

    value: float
    dense: float | None = None
    stderr: float | None = None
    iqr: float | None = None
    n: int | None = None
    split: Literal["search", "report", "transfer"] | None = None
    modelled: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval, `Z95` standard errors on each side; that of a modelled latency is around `modelled`.

        None without a standard error, and where it is 0: examples that all agree say nothing about the spread.
        """
        if not self.stderr:
            return None
        middle = self.value if self.modelled is None else self.modelled
        return middle - Z95 * self.stderr, middle + Z95 * self.stderr


class Provenance(StrictModel):
    """Where a policy comes from.

    Attributes:
        study: The study's name.
        trial: The trial that measured the policy.
        skipsearch: The version that wrote the file.
        unmeasured: What is expected of a policy that was not measured; it has no trial.
    """

    study: str | None = None
    trial: int | None = None
    skipsearch: str | None = None
    unmeasured: str | None = None


def readable_number(value: Any) -> Any:
    """Round a number for the file: whole numbers without a fraction, others to six significant digits."""
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    return int(value) if value.is_integer() and abs(value) < 1e15 else float(f"{value:.6g}")
