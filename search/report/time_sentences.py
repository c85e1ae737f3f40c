"""What a study says of its clock: noise, what stood in for what, and how the front's times came out again."""

from typing import Any

from ..analysis.study_record import Clock, StudyRecord
from ..space.units import phrase, signed_points
from ..times.noise import noise_line, warning


def time_lines(record: StudyRecord) -> list[str]:
    """All of it in sentences; the selection bias of times is told for the front's policies that were timed again."""
    lines = []
    for name, one in record.clocks.items():
        if one.noise is not None:
            lines.append(noise_line(name, one.noise, one.blocks))
            if one.spread is not None and name in record.objectives and (said := warning(name, one.noise, one.spread)):
                lines.append(said)
        lines += [f"{one.text[0].upper()}{one.text[1:]}."] if one.text else []
        lines += [gap_line(name, one)] if one.gap is not None else []
    return lines


def gap_line(name: str, one: Clock) -> str:
    """The mean gap between what the search took times for, and what they are when they are measured again."""
    gap, raw = one.gap or 0.0, one.raw_gap
    lucky = "" if raw is None else f"; as it was measured, without the model, by {signed_points(raw)}"
    return (
        "Selection bias of times: timed again, in turns with dense and with each other, the "
        f"{one.again} policies of the front differ in {phrase(name)} by {signed_points(gap)} of dense from what the search "
        f"took them for, on average{lucky}; {one.within} of {one.again} are within their 95 % intervals."
    )


def time_data(record: StudyRecord) -> dict[str, Any]:
    """The same as plain data."""
    return {
        name: {
            "noise": one.noise,
            "measurements_of_noise": one.blocks,
            "spread": one.spread,
            "predicted_by": one.cost,
            "gap": one.gap,
            "raw_gap": one.raw_gap,
            "timed_again": one.again,
            "within_interval": one.within,
        }
        for name, one in record.clocks.items()
    }
