"""Writes trials to a run of Weights & Biases."""

from collections.abc import Sequence
from typing import Any

from .entry import Entry


class WandbLogger:
    """Writes one run a study: a history step for each trial, and the front as a table.

    Args:
        project: The project; `WANDB_MODE=offline` keeps the run on this machine.
        study: The study's name, which names the run.
    """

    def __init__(self, project: str, study: str) -> None:
        import wandb

        self._wandb: Any = wandb
        settings = wandb.Settings(silent=True, console="off")
        self._run: Any = wandb.init(project=project, name=study, settings=settings)

    def log(self, entry: Entry) -> None:
        """Write one trial."""
        fields: dict[str, Any] = {"trial": entry.number, "kind": entry.kind, "state": entry.state, **entry.parameters}
        fields |= {"failure": entry.failure} if entry.failure else {}
        self._run.log({**fields, **{f"{entry.kind}/{name}": value for name, value in entry.metrics.items()}})

    def log_front(self, front: Sequence[Entry]) -> None:
        """Write the front as a table, and its size as a summary of the run."""
        names = list(dict.fromkeys(name for entry in front for name in entry.metrics))
        rows = [[entry.number, entry.parameters["policy"], *(entry.metrics.get(name) for name in names)]
                for entry in front]  # fmt: skip
        self._run.log({"front": self._wandb.Table(columns=["trial", "policy", *names], data=rows)})
        self._run.summary["front_size"] = len(front)

    def close(self) -> None:
        """End the run."""
        self._run.finish()
