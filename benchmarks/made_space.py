"""The space over a model and tasks that a script has made."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml


def write_space(folder: Path, choices: Sequence[Any], splits: Sequence[str], **accuracy: Any) -> None:
    """Write `space.yaml` beside `model/` and a task file of each split.

    Args:
        folder: Where they are.
        choices: What may happen in each layer.
        splits: The names of the splits, which their task files have too.
        **accuracy: Further options of accuracy.
    """
    space = {
        "schema": "skipsearch/space/v1",
        "model": {"id": "model", "dtype": "float32"},
        "layers": [{"range": "all", "choices": list(choices)}],
        "evaluate": {"accuracy": {split: {"tasks": [f"{split}.yaml"]} for split in splits} | accuracy, "flops": None},
        "objectives": {"accuracy": "maximize", "prefill_flops": "minimize"},
        "search": {"trials": 80, "seed": 0},
    }
    (folder / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
