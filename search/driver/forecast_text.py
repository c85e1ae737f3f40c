"""Says a forecast in words."""

from .forecast import Forecast
from .phases import CONFIRMING, DRAWING, PROBING, PROMOTING, PROPOSING, RANDOMISING, RECOVERING, TRANSFERRING
from .timing import TIMING_AGAIN

# What a step of each phase is called; `s` is added where there are several.
STEPS = {
    PROBING: "probe", PROPOSING: "trial", PROMOTING: "promotion", CONFIRMING: "confirmation",
    TIMING_AGAIN: "second timing", RANDOMISING: "random twin", TRANSFERRING: "transfer measurement",
    DRAWING: "drawn policy", RECOVERING: "recovery",
}  # fmt: skip


def span(seconds: float) -> str:
    """A duration in its two largest units: `45 s`, `4 min 10 s`, `3 h 20 min`, `5 d 3 h`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    for size, name, smaller, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = round((whole % size) / smaller)
            whole_units = whole // size + rest // (size // smaller)
            rest %= size // smaller
            return f"{whole_units} {name}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def phase_text(forecast: Forecast) -> str:
    """The steps and the time of each phase, the longest first."""
    seconds = forecast.seconds
    parts = []
    for name in sorted(seconds, key=lambda name: -seconds[name]):
        steps, noun = round(forecast.phases[name].steps), STEPS[name]
        plural = noun[:-1] + "ies" if noun.endswith("y") else f"{noun}s"
        parts.append(f"{steps} {noun if steps == 1 else plural} {span(seconds[name])}")
    return ", ".join(parts)


def forecast_lines(forecast: Forecast, elapsed: float) -> list[str]:
    """What `run` says after its dense trial, in two lines.

    Args:
        forecast: What comes after the dense trial.
        elapsed: Seconds since the start of the run.
    """
    workers = f"{forecast.workers} worker{'s' if forecast.workers > 1 else ''}"
    whole = f"forecast: {span(elapsed + forecast.total)} in all with {workers}, {span(forecast.total)} to go"
    return [f"{whole}; a new trial every {span(forecast.pace(PROPOSING))}", f"forecast: {phase_text(forecast)}"]
