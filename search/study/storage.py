"""Opens Optuna's study in the SQLite database of its folder to write to it, and any study to read it."""

import logging
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path

import optuna
import sqlalchemy

from ...policies.errors import StudyError
from ..space.space import Space
from .damage import refuse_damage, table_names
from .database import LOCK_SECONDS, snapshot
from .remote.address import read_address
from .remote.remote_study import load_remote

# What SQLite, SQLAlchemy and Optuna raise when a database cannot be written, or cannot be read.
UNWRITABLE = (sqlite3.Error, sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)
UNREADABLE = (sqlite3.DatabaseError, sqlalchemy.exc.DatabaseError, optuna.exceptions.OptunaError, RuntimeError)


def open_storage(path: Path) -> optuna.storages.RDBStorage:
    """Open a study's database for writing; create it, and its folder, if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return rdb_storage(partial(connect_for_writing, path.absolute()), sqlalchemy.pool.QueuePool)


def rdb_storage(
    connect: Callable[[], sqlite3.Connection], pool: type[sqlalchemy.pool.Pool]
) -> optuna.storages.RDBStorage:
    """Optuna's storage over our own connections, so that a path may contain characters that a URL reserves."""
    return optuna.storages.RDBStorage("sqlite://", {"creator": connect, "poolclass": pool})


def connect_for_writing(path: Path) -> sqlite3.Connection:
    """Connect to a database with write-ahead logging.

    A write takes under one millisecond instead of tens of milliseconds, and survives a kill at any instant.
    """
    connection = sqlite3.connect(path, timeout=LOCK_SECONDS, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def open_snapshot(path: Path) -> optuna.storages.RDBStorage:
    """Open a copy of a study's database in memory.

    Optuna creates the tables that it misses even when it only reads, which would disturb a search that is creating them
    at that moment.

    Raises:
        StudyError: it is damaged, Optuna did not write it, or another program has locked it.
    """
    copy = snapshot(path)
    if table_names(copy):
        refuse_damage(copy, path)
    return rdb_storage(lambda: copy, sqlalchemy.pool.StaticPool)


def open_study(path: Path) -> optuna.Study:
    """Open a study for reading, as it is now; a search that is writing to it is not disturbed.

    Args:
        path: The database in the study's folder. Where the folder says that the study is elsewhere, it is read there.

    Raises:
        StudyError: there is no study, or it cannot be read.
    """
    quiet_optuna()
    address = read_address(path.parent)
    if address is not None:
        return begun(load_remote(address), str(address))
    if not path.exists():
        raise StudyError(f"{path.parent} holds no study", [f"expected {path}"], "`skipsearch ls` lists the studies")
    try:
        storage = open_snapshot(path)
        studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    except UNREADABLE as cause:
        raise StudyError(f"{path} is not a study's database", [str(cause).splitlines()[0]]) from None
    return begun(studies[0] if studies else None, str(path))


def begun(study: optuna.Study | None, place: str) -> optuna.Study:
    """A study that a search has begun.

    Raises:
        StudyError: no search has begun in it, or there is none.
    """
    if study is None or "space" not in study.user_attrs:
        hint = "begin it again: remove the folder, or go on with the same command and `--resume`"
        found = f"studies in it: {int(study is not None)}"
        raise StudyError(f"{place} holds no search that skipsearch began", [found], hint)
    return study


def space_of(path: Path) -> Space:
    """The space of a study, with absolute paths."""
    return Space.model_validate(open_study(path).user_attrs["space"])


def quiet_optuna() -> None:
    """Limit Optuna's log to warnings, because the progress bar shows the trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A pool logs each connection that a server has closed; the query that needed it raises an error, which is shown.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
