"""The folder of a training's checkpoints, from which an interrupted training goes on."""

import json
import os
from pathlib import Path
from typing import Final

from transformers.trainer import TRAINER_STATE_NAME

from ..policies.errors import UsageError

CHECKPOINTS: Final = "checkpoints"
RUN_FILE: Final = "run.json"


def prepare(checkpoints: Path, run: str, resume: bool) -> str | None:
    """Make the folder of checkpoints, and find where to go on.

    Returns:
        The last checkpoint; None where training starts anew.

    Raises:
        UsageError: the folder has another training, or one that was not to be resumed.
    """
    file = checkpoints / RUN_FILE
    if int(os.environ.get("RANK", "0")):
        # The first process of a distributed run makes the folder, and refuses what is to be refused.
        return last_checkpoint(checkpoints) if resume and checkpoints.is_dir() else None
    if file.exists():
        if not resume:
            hint = "go on with --resume, or give another folder with --out"
            raise UsageError(f"{checkpoints.parent} has a training that was interrupted", hint=hint)
        if file.read_text(encoding="utf-8") != run:
            hint = "repeat the command that it began with, and add --resume; or give another folder with --out"
            details = [f"found {file.read_text(encoding='utf-8')}", f"expected {run}"]
            raise UsageError(f"{checkpoints.parent} has the training of other settings or data", details, hint)
        return last_checkpoint(checkpoints)
    checkpoints.mkdir(parents=True, exist_ok=True)
    file.write_text(run, encoding="utf-8")
    return None


def last_checkpoint(checkpoints: Path) -> str | None:
    """The last whole checkpoint; None without one. The state of the trainer is the last file of a checkpoint."""
    found = [path for path in checkpoints.glob("checkpoint-*") if is_json(path / TRAINER_STATE_NAME)]
    return str(max(found, key=lambda path: int(path.name.rpartition("-")[2]))) if found else None


def is_json(file: Path) -> bool:
    """True for a whole JSON file."""
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
