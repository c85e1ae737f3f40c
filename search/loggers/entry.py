"""What loggers are sent: one trial as plain values, and the interface of a logger."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..trial.trial_result import TrialResult


@dataclass(frozen=True)
class Entry:
    """One trial, as loggers store it.

    Attributes:
        number: Of the trial; a promotion has that of the trial that it continues.
        kind: `dense`, `probe`, `trial` or `promotion`.
        state: `complete`, `failed`, `early-stopped`, or `paused` where only some examples were answered.
        parameters: The policy's fingerprint, what each changed layer does, and the baseline that it is.
        metrics: Measured values by metric; those on some of the examples are named `METRIC_estimate`.
        failure: Why it failed; empty where it did not.
    """

    number: int
    kind: str
    state: str
    parameters: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""

    @classmethod
    def of(cls, result: TrialResult) -> "Entry":
        """The entry of a trial."""
        first = result.promoted_from
        own = "dense" if result.policy.is_dense else "probe" if result.is_probe else "trial"
        state = "early-stopped" if result.early_stopped else "paused" if result.estimates else str(result.state)
        layers = ", ".join(f"{index}: {choice.label}" for index, choice in result.policy.canonical().layers.items())
        parameters = {"fingerprint": result.policy.fingerprint, "policy": layers or "dense"}
        estimates = {f"{name}_estimate": entry.value for name, entry in result.estimates.items()}
        return cls(
            number=result.number if first is None else first,
            kind=own if first is None else "promotion",
            state=state,
            parameters=parameters | ({"baseline": result.baseline} if result.baseline else {}),
            metrics={**{name: entry.value for name, entry in result.search.items()}, **estimates},
            failure=result.failure or "",
        )


def front_entry(result: TrialResult) -> Entry:
    """The entry of a policy of the front; what was confirmed on the report split is named `report_METRIC`."""
    entry = Entry.of(result)
    confirmed = {f"report_{name}": found.value for name, found in result.report.items()}
    return Entry(entry.number, "front", entry.state, entry.parameters, {**entry.metrics, **confirmed})


class Logger(Protocol):
    """Writes entries through one library; it is made, used and closed in a thread of its own."""

    def log(self, entry: Entry) -> None:
        """Write one trial."""

    def log_front(self, front: Sequence[Entry]) -> None:
        """Write the front of the finished search, the most expensive policy first."""

    def close(self) -> None:
        """Write what is buffered."""
