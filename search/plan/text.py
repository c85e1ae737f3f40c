"""Prints a plan."""

from collections.abc import Iterator
from typing import Any

from ..driver.forecast_text import phase_text, span
from ..driver.phases import PROPOSING
from ..space.units import amount, phrase
from ..times.noise import noise_sentence, time_noise
from .plan import Plan, memory_peak


def plan_lines(plan: Plan, name: str, device: dict[str, Any]) -> Iterator[str]:
    """A plan in lines of text.

    Args:
        plan: The plan.
        name: The space's name.
        device: The description of a worker.
    """
    forecast, measured = plan.forecast, plan.measured
    yield f"{name}: {device['num_layers']} layers, {device['parameters']:,} parameters on {device['device']}"
    yield (
        f"one trial: every {span(forecast.pace(PROPOSING))}; dense, on all examples: "
        f"{span(plan.before - plan.load - measured.statistics)} with dense against dense"
    )
    yield (
        f"the search: {span(plan.seconds)} for {plan.outline.space.search.trials} trials: start and dense "
        f"{span(plan.before)}, {phase_text(forecast)}"
    )
    minutes = plan.outline.space.search.stop.minutes
    if minutes is not None and 60 * minutes < plan.seconds:
        yield f"search.stop.minutes ends it after {span(60 * minutes)}"
    for one in plan.hours:
        room = "" if one.fits else "  (more than this cluster has room for)"
        trials = "" if one.trials is None else f"  {one.trials:,} trials fit"
        yield f"  {one.workers} worker{'s' if one.workers > 1 else ' '}  {span(one.seconds):>12}{trials}{room}"
    yield f"model work: {amount(plan.model_share, 'fraction')} of the workers' time is forward passes"
    yield f"memory of a worker: {memory_text(plan)}"
    yield f"disk: {amount(plan.disk_bytes, 'bytes')} for the study's folder"
    yield from time_sentences(plan)


def memory_text(plan: Plan) -> str:
    """The memory of a worker in words."""
    found = memory_peak(plan.measured.memory)
    parts = [f"{amount(found[name], 'bytes')} {text}" for name, text in (
        ("peak_bytes", "peak so far"), ("gpu_peak_bytes", "peak on the GPU"), ("weights_bytes", "weights"),
        ("batch_cache_bytes", "keys and values of a batch"), ("prepared_bytes", "prepared inputs and image features"),
        ("states_bytes", "hidden states"), ("caches_limit_bytes", "at most for both caches"),
    ) if found.get(name)]  # fmt: skip
    return ", ".join(parts)


def time_sentences(plan: Plan) -> Iterator[str]:
    """The noise of each time, and what it lets tell apart."""
    for name, difference in plan.differences.items():
        entries = plan.measured.noise[name]
        yield noise_sentence(name, time_noise(entries) or 0.0, len(entries))
        yield (
            f"At the repeats of this space, two policies whose {phrase(name)} differs by less than "
            f"{amount(difference, 'fraction')} of dense cannot be told apart by one measurement each."
        )
