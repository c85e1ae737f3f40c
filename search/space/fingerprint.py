"""What a local model or task contains, for telling whether a study is still about the same."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

CHUNK = 1 << 24
LARGE = 1 << 26  # bytes of a file whose digest is kept: weights, which take minutes to read


class Digests:
    """Digests of files by all of their bytes; those of large ones are kept in a file for the next time.

    Args:
        cache: That file; None keeps nothing.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache
        self._known: dict[str, str] = {}
        if cache is not None:
            # One that cannot be read is made anew: it is nothing but a cache.
            with suppress(OSError, ValueError, TypeError):
                self._known = {str(key): str(value) for key, value in dict(json.loads(cache.read_text())).items()}

    def of_files(self, path: Path) -> str:
        """Of the files in a folder, or of a file and those beside it: a task's data lies beside its YAML."""
        folder = path if path.is_dir() else path.parent
        found = hashlib.sha256()
        for file in sorted(file for file in folder.iterdir() if file.is_file()):
            found.update(f"{file.name}:{file.stat().st_size}:".encode())
            self._add(found, file)
        return found.hexdigest()[:16]

    def _add(self, found: Any, file: Path) -> None:
        """Add a file's bytes, or the digest of a large file's."""
        state = file.stat()
        if state.st_size <= LARGE:
            found.update(file.read_bytes())
            return
        key = f"{file.resolve()}:{state.st_size}:{state.st_mtime_ns}:{state.st_ino}"
        if key not in self._known:
            with file.open("rb") as stream:
                own = hashlib.sha256()
                while chunk := stream.read(CHUNK):
                    own.update(chunk)
            self._known[key] = own.hexdigest()
            self._keep()
        found.update(self._known[key].encode())

    def _keep(self) -> None:
        if self._cache is not None and self._cache.parent.is_dir():
            with suppress(OSError):
                self._cache.write_text(json.dumps(self._known, indent=1))


def by_content(value: Any, digests: Digests) -> Any:
    """Plain data with each local path in it replaced by a digest of what lies there, so that a study may be moved."""
    if isinstance(value, Mapping):
        return {key: by_content(entry, digests) for key, entry in value.items()}
    if isinstance(value, list):
        return [by_content(entry, digests) for entry in value]
    is_local = isinstance(value, str) and Path(value).is_absolute() and Path(value).exists()
    return f"{Path(value).name}:{digests.of_files(Path(value))}" if is_local else value
