"""Writes trials as runs of an MLflow experiment."""

import time
from collections.abc import Sequence
from typing import Any

from .entry import Entry

MAX_VALUE = 5000  # characters of a parameter or tag that every MLflow store takes
STATUS = {"failed": "FAILED"}  # of a run; all other states are finished


class MLflowLogger:
    """Writes a run for each trial; a promotion goes on with the run of its trial.

    Args:
        uri: Of the tracking store, such as `sqlite:///mlflow.db` or `http://host:5000`.
        study: The study's name, which names the experiment.
    """

    def __init__(self, uri: str, study: str) -> None:
        from mlflow import MlflowClient

        self._client: Any = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(study)
        self._experiment = self._client.create_experiment(study) if found is None else found.experiment_id
        self._runs: dict[int, str] = {}
        self._steps: dict[int, int] = {}

    def log(self, entry: Entry) -> None:
        """Write one trial."""
        if entry.number not in self._runs:
            run = self._client.create_run(self._experiment, run_name=f"trial-{entry.number}").info.run_id
            self._runs[entry.number] = run
            self._write(entry, 0, {name: str(value)[:MAX_VALUE] for name, value in entry.parameters.items()})
            return
        self._steps[entry.number] = self._steps.get(entry.number, 0) + 1
        self._write(entry, self._steps[entry.number], {})

    def _write(self, entry: Entry, step: int, parameters: dict[str, str]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        now, run = round(1e3 * time.time()), self._runs[entry.number]
        tags = {"kind": entry.kind, "state": entry.state, "failure": entry.failure[:MAX_VALUE]}
        self._client.log_batch(
            run,
            metrics=[Metric(name, value, now, step) for name, value in entry.metrics.items()],
            params=[Param(name, value) for name, value in parameters.items()],
            tags=[RunTag(name, value) for name, value in tags.items() if value],
        )
        self._client.set_terminated(run, STATUS.get(entry.state, "FINISHED"))

    def log_front(self, front: Sequence[Entry]) -> None:
        """Tag the runs of the front with their places, and write what was confirmed of them."""
        for place, entry in enumerate(front):
            self.log(entry)
            self._client.set_tag(self._runs[entry.number], "front", str(place))

    def close(self) -> None:
        """Nothing is buffered."""
