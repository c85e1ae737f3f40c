"""What a local model or task contains, for telling whether a study is still about the same."""

import hashlib
from pathlib import Path
from typing import Any

# Weights of many gigabytes are told apart by their size and their beginning.
WHOLE_BYTES = 1 << 26


def by_content(value: Any) -> Any:
    """Plain data with each local path in it replaced by a digest of what lies there, so that a study may be moved."""
    if isinstance(value, dict):
        return {key: by_content(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [by_content(entry) for entry in value]
    is_local = isinstance(value, str) and Path(value).is_absolute() and Path(value).exists()
    return f"{Path(value).name}:{digest(Path(value))}" if is_local else value


def digest(path: Path) -> str:
    """Of the files in a folder, or of a file and those beside it: a task's data lies beside its YAML."""
    folder = path if path.is_dir() else path.parent
    found = hashlib.sha256()
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        found.update(f"{file.name}:{file.stat().st_size}:".encode())
        with file.open("rb") as stream:
            found.update(stream.read(WHOLE_BYTES))
    return found.hexdigest()[:16]
