"""Opens a study in a database that a URL names: to write to it, to read it, and for one search at a time."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.storages import InMemoryStorage, RDBStorage

from ....policies.errors import StudyError
from ...storage_url import resolved_url, sqlite_file
from .address import Address, study_exists
from .connect import engine_options, storage_errors, unusable

LOCK_WAIT = 5.0  # seconds in which a server notices that a search was killed


class UrlStorage(RDBStorage):
    """Optuna's storage of a URL; its pickle holds the URL as it is written, without passwords.

    Args:
        url: As written in the space.
        options: Further options of SQLAlchemy's engine.
        create: Create Optuna's tables where they do not exist.
    """

    def __init__(self, url: str, options: dict[str, Any] | None = None, create: bool = True) -> None:
        self._arguments = (url, options, create)
        found = resolved_url(url)
        super().__init__(found, {**engine_options(found), **(options or {})}, skip_table_creation=not create)

    def __reduce__(self) -> tuple[Any, ...]:
        """Make the storage anew from the environment of the process that reads it."""
        return type(self), self._arguments


@contextmanager
def optuna_errors(url: str) -> Iterator[None]:
    """Turn what Optuna raises about a database into one message; see `storage_errors`.

    Raises:
        StudyError: the database of the URL cannot be used.
    """
    try:
        with storage_errors(url):
            yield
    except optuna.exceptions.StorageInternalError as cause:
        raise unusable(url, cause) from None
    except RuntimeError as cause:
        hint = "`optuna storage upgrade --storage URL` brings the tables of a database to the installed Optuna"
        raise StudyError(f"the tables of {url} are of another Optuna", [str(cause).splitlines()[0]], hint) from None


def open_url(url: str) -> UrlStorage:
    """Open the database of a URL for writing; create Optuna's tables in it if they do not exist.

    Raises:
        StudyError: it cannot be used.
    """
    with optuna_errors(url):
        file = sqlite_file(url)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        return UrlStorage(url)


def load_remote(address: Address) -> optuna.Study:
    """Read a study as it is now into memory; a search that is writing to it is not disturbed.

    Raises:
        StudyError: there is no such study, or its database cannot be used.
    """
    if not study_exists(address):
        hint = "correct `storage.json` where the database has moved, or begin the search again"
        raise StudyError(f"{address.url} holds no study {address.name}", hint=hint)
    # All queries of one reading of the trials see one instant.
    options = {} if sqlite_file(address.url) else {"isolation_level": "REPEATABLE READ"}
    with optuna_errors(address.url):
        database = UrlStorage(address.url, options, create=False)
        memory = InMemoryStorage()
        copy_study(database, database.get_study_id_from_name(address.name), memory, address.name)
        database.engine.dispose()
    return optuna.load_study(study_name=address.name, storage=memory)


def copy_study(database: RDBStorage, study: int, memory: InMemoryStorage, name: str) -> list[optuna.trial.FrozenTrial]:
    """Copy a study into memory; its attributes are read before its trials.

    Args:
        database: Where the study is.
        study: Its id there.
        memory: An empty storage.
        name: The study's name.

    Returns:
        The trials, with their ids in the database.
    """
    # The methods of the class are called, because a storage that writes through to a database overrides them.
    copy = InMemoryStorage.create_new_study(memory, database.get_study_directions(study), name)
    for key, value in database.get_study_user_attrs(study).items():
        InMemoryStorage.set_study_user_attr(memory, copy, key, value)
    for key, value in database.get_study_system_attrs(study).items():
        InMemoryStorage.set_study_system_attr(memory, copy, key, value)
    trials = database.get_all_trials(study, deepcopy=False)
    for trial in trials:
        InMemoryStorage.create_new_trial(memory, copy, trial)
    return trials


@contextmanager
def lock_remote(address: Address) -> Iterator[None]:
    """Lock a study for one search at a time, whatever folder and machine it runs in; the lock ends with the process.

    Raises:
        StudyError: another search holds the lock, or the database cannot be used.
    """
    file = sqlite_file(address.url)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{file}.{address.name}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise locked(address) from None
        try:
            yield
        finally:
            lock.release()
        return
    with optuna_errors(address.url):
        found = resolved_url(address.url)
        options = engine_options(found) | {"poolclass": sqlalchemy.NullPool, "isolation_level": "AUTOCOMMIT"}
        holder = sqlalchemy.create_engine(found, **options).connect()
        acquire(holder, address)
    try:
        yield
    finally:
        with suppress(sqlalchemy.exc.SQLAlchemyError):  # The server may be gone, and the lock with it.
            holder.close()


def acquire(holder: sqlalchemy.Connection, address: Address) -> None:
    """Take PostgreSQL's advisory lock of a study, which its server releases when the connection ends.

    Args:
        holder: The connection that holds the lock.
        address: The study.

    Raises:
        StudyError: another search holds it.
    """
    key = int.from_bytes(hashlib.sha256(f"skipsearch {address.name}".encode()).digest()[:8], "big", signed=True)
    deadline = time.monotonic() + LOCK_WAIT
    while not holder.exec_driver_sql(f"SELECT pg_try_advisory_lock({key})").scalar():
        if time.monotonic() > deadline:
            raise locked(address)
        time.sleep(0.1)


def locked(address: Address) -> StudyError:
    """The error of a study that another search is writing to."""
    hint = "wait for it to end, or give this one another name with `--name`"
    return StudyError(f"another search is writing to {address}", hint=hint)
