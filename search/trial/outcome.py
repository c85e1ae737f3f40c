"""What comes back from measuring one policy."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ...evaluators.base import Measurement
from .failures import Fault


@dataclass(frozen=True)
class Outcome:
    """What came of measuring one policy: a small plain value that crosses processes.

    Attributes:
        measurements: By metric; not all of them where the trial stopped early.
        seconds: Wall-clock seconds by part; `total` is all of it, `forward` what the model's forward passes took.
        failure: Why it failed, in one line; None where it did not.
        early_stopped: Why it was given up on few examples; None where it was not.
        estimates: Figures of those few examples, by metric.
        worker: Who measured it.
        fault: Whose failure it is; a machine's says nothing of the policy.
        traceback: Of the exception that it failed with, where there was one.
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
        """This stage of a trial and the next, as one."""
        parts = {*self.seconds, *later.seconds}
        seconds = {part: self.seconds.get(part, 0.0) + later.seconds.get(part, 0.0) for part in sorted(parts)}
        worker = self.worker or later.worker
        if later.failure:
            return replace(later, measurements={}, seconds=seconds, worker=worker)
        measurements = {**self.measurements, **later.measurements}
        return replace(later, measurements=measurements, seconds=seconds, worker=worker)
