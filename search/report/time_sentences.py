"""What a study says about its measured times: noise, predicted times, and the front's times measured again."""

from dataclasses import asdict
from typing import Any

from ..analysis.study_record import Clock, StudyRecord
from ..space.units import phrase, signed_points
from ..times.noise import noise_sentence, noise_warning
from ..times.smoothed import PredictionError


def time_lines(record: StudyRecord) -> list[str]:
    """Noise, predictions and selection bias of every time, in sentences."""
    lines = []
    for name, clock in record.clocks.items():
        if clock.noise is not None:
            lines.append(noise_sentence(name, clock.noise, clock.blocks))
            if clock.spread is not None and name in record.objectives:
                lines.append(noise_warning(name, clock.noise, clock.spread))
        if clock.text:
            lines.append(f"{clock.text[0].upper()}{clock.text[1:]}.")
        if clock.model is not None and name in {*record.objectives, *record.constraints}:
            lines.append(model_line(name, clock.model, clock.again))
        if clock.gap is not None:
            lines.append(gap_line(name, clock.gap, clock))
    return [line for line in lines if line]


def model_line(name: str, error: PredictionError, again: int) -> str:
    """The error of the model of a time, in points of dense; `again` policies of the front were timed once more."""
    ranks = "" if error.correlation is None else f", rank correlation {error.correlation:.3f}"
    measured = " The front's times below were measured again; they are not taken from it." if again else ""
    return (
        f"Candidates are ranked by a model of {phrase(name)}, a sum over layers and what is left out in each, fitted "
        f"to {error.policies} measured policies. It predicts a policy that it has not seen to ±{100 * error.rms:.1f} "
        f"points of dense (each policy from the others{ranks}; noise of one measurement "
        f"±{100 * error.noise:.1f}).{measured}"
    )


def gap_line(name: str, gap: float, clock: Clock) -> str:
    """The mean difference between the front's times measured again and the search's estimates of them."""
    raw = "" if clock.raw_gap is None else f", and from the unsmoothed measurements by {signed_points(clock.raw_gap)}"
    one = clock.again == 1
    policies = "policy of the front differs" if one else f"{clock.again} policies of the front differ"
    within = f"{clock.within} of {clock.again} {'is within its' if one else 'are within their'} 95 % interval"
    return (
        f"Selection bias of times: timed again, interleaved with dense and with each other, the {policies} "
        f"in {phrase(name)} from the search's estimates by {signed_points(gap)} of dense on average"
        f"{raw}; {within}{'' if one else 's'}."
    )


def time_data(record: StudyRecord) -> dict[str, Any]:
    """The same as plain data, for JSON."""
    return {
        name: {
            "noise": clock.noise,
            "measurements_of_noise": clock.blocks,
            "spread": clock.spread,
            "predicted_by": clock.cost,
            "gap": clock.gap,
            "raw_gap": clock.raw_gap,
            "timed_again": clock.again,
            "within_interval": clock.within,
            "model": None if clock.model is None else asdict(clock.model),
        }
        for name, clock in record.clocks.items()
    }
