"""What a worker sends back about one policy."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ...evaluators.base import Measurement
from .failures import Fault


@dataclass(frozen=True)
class Outcome:
    """Measurements or failure of one policy, from one worker; a small plain value that crosses processes.

    Attributes:
        measurements: By metric; some are missing where the trial stopped early.
        seconds: Wall-clock seconds by part; `total` is the whole trial, `forward` the model's forward passes.
        failure: Why it failed, in one line; None where it succeeded.
        early_stopped: Why it was stopped after few examples; None where it was not.
        estimates: By metric, measurements on those few examples.
        worker: Name of the worker.
        fault: What caused the failure; `machine` says nothing about the policy.
        traceback: Traceback of the exception; None where there was none.
    """

    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    failure: str | None = None
    early_stopped: str | None = None
    estimates: Mapping[str, Measurement] = field(default_factory=dict)
    worker: str | None = None
    fault: Fault = "policy"
    traceback: str | None = None

    def then(self, later: "Outcome") -> "Outcome":
        """Joins this stage of a trial with the next one."""
        parts = {*self.seconds, *later.seconds}
        seconds = {part: self.seconds.get(part, 0.0) + later.seconds.get(part, 0.0) for part in sorted(parts)}
        worker = self.worker or later.worker
        if later.failure:
            return replace(later, measurements={}, seconds=seconds, worker=worker)
        measurements = {**self.measurements, **later.measurements}
        return replace(later, measurements=measurements, seconds=seconds, worker=worker)
