"""Content digests of local models and tasks, which show whether a resumed study is still about the same files."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

CHUNK = 1 << 24
YAML = {".yaml", ".yml"}
LARGE = 1 << 26  # bytes; the digest of a larger file is cached, because hashing weights takes minutes


class Digests:
    """SHA-256 digests of files; the digests of large files are cached on disk.

    Args:
        cache: The JSON file of the cache; None disables it.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache
        self._cached: dict[str, str] = {}
        if cache is not None:
            # An unreadable cache is rebuilt.
            with suppress(OSError, ValueError, TypeError):
                self._cached = {str(key): str(value) for key, value in dict(json.loads(cache.read_text())).items()}

    def of_files(self, path: Path) -> str:
        """Digest of the files in a folder, or of a task and of what it may read: code and data beside it."""
        digest = hashlib.sha256()
        for file in sorted(files_of(path)):
            digest.update(f"{file.name}:{file.stat().st_size}:".encode())
            self._update(digest, file)
        return digest.hexdigest()[:16]

    def _update(self, digest: Any, file: Path) -> None:
        """Add the bytes of a file to a digest, or the cached digest of a large file."""
        state = file.stat()
        if state.st_size <= LARGE:
            digest.update(file.read_bytes())
            return
        key = f"{file.resolve()}:{state.st_size}:{state.st_mtime_ns}:{state.st_ino}"
        if key not in self._cached:
            with file.open("rb") as stream:
                of_file = hashlib.sha256()
                while chunk := stream.read(CHUNK):
                    of_file.update(chunk)
            self._cached[key] = of_file.hexdigest()
            self._write_cache()
        digest.update(self._cached[key].encode())

    def _write_cache(self) -> None:
        if self._cache is not None and self._cache.parent.is_dir():
            with suppress(OSError):
                self._cache.write_text(json.dumps(self._cached, indent=1))


def files_of(path: Path) -> set[Path]:
    """What a local model or task consists of: a folder's files, or a file with the code and data beside it.

    Of other YAML files beside a task, those count that it names, and that these name in turn. Documents and hidden
    files decide nothing.
    """
    folder = path if path.is_dir() else path.parent
    beside = {
        file for file in folder.iterdir() if file.is_file() and file.suffix != ".md" and not file.name.startswith(".")
    }
    if path.is_dir() or path.suffix not in YAML:
        return beside
    tasks = {file for file in beside if file.suffix in YAML}
    named, unread = {path}, [path]
    while unread:
        text = unread.pop().read_text(errors="replace")
        found = {file for file in tasks - named if file.stem in text}
        named |= found
        unread += found
    return beside - tasks | named


def with_digests(value: Any, digests: Digests) -> Any:
    """Plain data with each local path replaced by the digest of its content, so that a study may be moved."""
    if isinstance(value, Mapping):
        return {key: with_digests(entry, digests) for key, entry in value.items()}
    if isinstance(value, list):
        return [with_digests(entry, digests) for entry in value]
    is_local = isinstance(value, str) and Path(value).is_absolute() and Path(value).exists()
    return f"{Path(value).name}:{digests.of_files(Path(value))}" if is_local else value
