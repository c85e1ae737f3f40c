"""Models in S3 buckets: downloaded once a machine into a cache, and identified by the ETags of their files."""

import functools
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from ...policies.errors import ModelError

SCHEME = "s3://"
INSTALL = "pip install 'skipsearch[s3]'"
DIGEST_LENGTH = 40  # as long as a commit on the hub


def is_bucket(name: str) -> bool:
    """True for a model in a bucket."""
    return name.startswith(SCHEME)


@functools.cache
def fetch(name: str, revision: str | None = None) -> Path:
    """The folder with the files of a model, in the cache of this machine; its name is the revision.

    A process reads one revision, also where the bucket changes meanwhile.

    Args:
        name: Such as `s3://bucket/folder`. Region, endpoint and credentials are those of AWS's own tools: environment
            variables, `~/.aws`, or the role of the machine.
        revision: The revision to take; None takes the one that the bucket has now. A revision in the cache needs no
            network.

    Raises:
        ModelError: s3fs is not installed, the bucket cannot be read, or has another revision.
    """
    place = cache_folder() / name.removeprefix(SCHEME).strip("/")
    if revision is not None and (place / revision).is_dir():
        return place / revision
    with bucket_errors(name):
        bucket = connect()
        files = list_files(bucket, name)
        found = revision_of(files)
        if revision not in (None, found):
            raise changed(name, found, revision)
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / f".{found}.lock"):
            if not (place / found).is_dir():
                download(bucket, name, files, place / found)
    return place / found


def cache_folder() -> Path:
    """The cache of this machine: `skipsearch/s3` in `XDG_CACHE_HOME`, which is `~/.cache` where it is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "skipsearch" / "s3"


def connect() -> Any:
    """A new connection, which remembers nothing of earlier listings."""
    import s3fs

    return s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)


def list_files(bucket: Any, name: str) -> dict[str, Mapping[str, Any]]:
    """The files below a folder of a bucket, by their path in it; hidden ones do not belong to a model.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = name.removeprefix(SCHEME).strip("/")
    found = bucket.find(folder, detail=True)
    relative = {str(PurePosixPath(path).relative_to(folder)): entry for path, entry in found.items() if path != folder}
    files = {
        path: entry
        for path, entry in relative.items()
        if not any(part.startswith(".") for part in PurePosixPath(path).parts)
    }
    if not files:
        raise FileNotFoundError("found no files in it")
    return files


def revision_of(files: Mapping[str, Mapping[str, Any]]) -> str:
    """A digest of the files' names, sizes and ETags."""
    lines = [f"{path}:{entry['size']}:{entry['ETag']}\n" for path, entry in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:DIGEST_LENGTH]


def download(bucket: Any, name: str, files: Mapping[str, Mapping[str, Any]], target: Path) -> None:
    """Download files into a folder, which exists once all of them are there.

    Raises:
        ModelError: the bucket has changed meanwhile.
    """
    partial = target.with_name(f".{target.name}.part")
    shutil.rmtree(partial, ignore_errors=True)  # What a process left that was killed.
    for path in files:
        file = partial / path
        file.parent.mkdir(parents=True, exist_ok=True)
        bucket.get_file(f"{name.strip('/')}/{path}", str(file))
    now = revision_of(list_files(bucket, name))
    if now != target.name:
        raise changed(name, now, target.name)
    partial.rename(target)


def changed(name: str, found: str, expected: str) -> ModelError:
    """The error of a bucket with another revision than is needed."""
    hint = "put the former files back, or leave `model.revision` out; a study of other weights needs another `--name`"
    return ModelError(f"model {name} has changed", [f"found revision {found}, expected {expected}"], hint)


@contextmanager
def bucket_errors(name: str) -> Iterator[None]:
    """Turn what s3fs and botocore raise into one message with a hint.

    Raises:
        ModelError: the model cannot be read.
    """
    try:
        from botocore.exceptions import BotoCoreError, ClientError
        from s3fs import S3FileSystem  # noqa: F401
    except ImportError as cause:
        raise ModelError(f"model {name} needs s3fs, which is not installed", [str(cause)], INSTALL) from None
    try:
        yield
    except (OSError, BotoCoreError, ClientError) as cause:
        text = str(cause).strip().splitlines() or [""]
        hint = "`aws s3 ls` with the same environment shows whether name, region, endpoint and credentials are right"
        raise ModelError(f"model {name} cannot be read", [f"{type(cause).__name__}: {text[0]}"], hint) from None
