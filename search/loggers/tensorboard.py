"""Writes trials as TensorBoard event files."""

from collections.abc import Sequence
from pathlib import Path

from .entry import Entry


class TensorBoardLogger:
    """Writes a scalar for each metric, at the step of the trial's number, and the policies as text.

    Args:
        folder: Where the studies' folders of event files are.
        study: The study's name.
    """

    def __init__(self, folder: str, study: str) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(Path(folder) / study))

    def log(self, entry: Entry) -> None:
        """Write one trial."""
        for name, value in entry.metrics.items():
            self._writer.add_scalar(f"{entry.kind}/{name}", value, entry.number)
        self._writer.add_text(f"{entry.kind}/policy", text_of(entry), entry.number)
        self._writer.flush()

    def log_front(self, front: Sequence[Entry]) -> None:
        """Write the front: a scalar for each metric at the step of the place on it, and one table."""
        for place, entry in enumerate(front):
            for name, value in entry.metrics.items():
                self._writer.add_scalar(f"front/{name}", value, place)
        names = list(dict.fromkeys(name for entry in front for name in entry.metrics))
        rows = [f"| trial | policy | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
        for entry in front:
            values = [f"{entry.metrics[name]:.6g}" if name in entry.metrics else "" for name in names]
            rows.append(f"| {entry.number} | {entry.parameters['policy']} | {' | '.join(values)} |")
        self._writer.add_text("front/policies", "\n".join(rows), 0)

    def close(self) -> None:
        """Write what is buffered."""
        self._writer.close()


def text_of(entry: Entry) -> str:
    """The state and the parameters of a trial as a Markdown list."""
    found = {"state": entry.state, **entry.parameters, **({"failure": entry.failure} if entry.failure else {})}
    return "\n".join(f"- {name}: {value}" for name, value in found.items())
