"""The files of a folder for vLLM: those of the dense model, and the policy in the configuration."""

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

from ..checkpoint.save import save_checkpoint
from ..target import Source

CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"
# What a checkpoint has beside its weights: tokenizers, processors, templates and code.
SMALL = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")


def write_files(source: Source, key: str, value: dict[str, Any], folder: Path) -> str:
    """Write the dense model with a value under a key of its configuration.

    Returns:
        Where the weights are, in one line.
    """
    place = checkpoint_folder(source)
    if place is None:
        config = copy.deepcopy(source.model.config)
        setattr(config, key, value)
        save_checkpoint(source, source.model.state_dict(), config, folder)
        return "the weights are a copy of the dense model's: its files are not on this machine as safetensors"
    config = json.loads((place / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps({**config, key: value}, indent=2) + "\n", encoding="utf-8")
    weights = weight_files(place)
    for file in place.iterdir():
        if file.suffix in SMALL and file.name != CONFIG:
            shutil.copy(file, folder / file.name)
    if source.processor is not None and not (folder / "tokenizer_config.json").exists():
        source.processor.save_pretrained(folder)
    linked = all([link(file, folder / file.name) for file in weights])
    if linked:
        return f"the weights are hard links to the files of {source.id}: this disk holds them once"
    return f"the weights are a second copy of the files of {source.id}, which are on another disk"


def checkpoint_folder(source: Source) -> Path | None:
    """The folder of the dense model's files, its own or in the cache of the hub; None where it is not complete."""
    if source.id is None:
        return None
    place = Path(source.id) if Path(source.id).is_dir() else cached(source.id, source.revision)
    return place if place is not None and (place / CONFIG).exists() and weight_files(place) else None


def cached(name: str, revision: str | None) -> Path | None:
    """The files of a model in the cache of the hub; None where there are none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def weight_files(place: Path) -> list[Path]:
    """The files of weights; empty where one is missing."""
    names = {WEIGHTS}
    if (place / INDEX).exists():
        names = set(json.loads((place / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    files = [place / name for name in sorted(names)]
    return files if all(file.exists() for file in files) else []


def link(file: Path, target: Path) -> bool:
    """Make a hard link to a file; where the disk cannot, copy it and return False."""
    try:
        # The cache of the hub holds symbolic links.
        os.link(file.resolve(), target)
    except OSError:
        shutil.copy(file, target)
        return False
    return True
