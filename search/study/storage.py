"""Opens the SQLite database that Optuna keeps a study in, to write to it or to read it at one instant."""

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import optuna
import sqlalchemy

from ...policies.errors import StudyError
from ..space.space import Space
from .damage import refuse_damage, repair_hint, table_names

DATABASE = "study.db"
LOCK_SECONDS = 60.0  # how long to wait for another process that has locked the database; a busy machine is slow
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


def connect_for_reading(path: Path) -> sqlite3.Connection:
    """Connect to a database that exists, also in a folder that cannot be written to."""
    # A reader creates its lock file beside the database. Where the folder is read-only and there is no write-ahead
    # log, `immutable` reads without a lock.
    mode = "rw" if os.access(path.parent, os.W_OK) or Path(f"{path}-wal").exists() else "ro&immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=LOCK_SECONDS)


def check_whole(path: Path) -> None:
    """Check a database for damage; one without tables passes, because no search has written to it yet.

    Raises:
        StudyError: it is damaged, Optuna did not write it, or another program has locked it.
    """
    with closing(snapshot(path)) as copy:
        if table_names(copy):
            refuse_damage(copy, path)


def snapshot(path: Path) -> sqlite3.Connection:
    """Copy a database as it is now into memory.

    Raises:
        StudyError: it cannot be read, or another program has locked it.
    """
    copy = sqlite3.connect(":memory:", check_same_thread=False)
    try:
        with closing(connect_for_reading(path)) as file:
            # `backup` would wait for a lock without limit; this transaction waits for `LOCK_SECONDS`.
            file.execute("BEGIN")
            file.execute("SELECT count(*) FROM sqlite_master").fetchone()
            file.backup(copy)
    except sqlite3.Error as cause:
        if "locked" in str(cause) or "busy" in str(cause):
            hint = "close the program that holds it: a viewer, a copy or backup that runs, or one that hangs"
            found = f"{cause}, for {LOCK_SECONDS:g} s"
            raise StudyError(f"another program holds {path}", [found], hint) from None
        what = "is not a study's database" if "not a database" in str(cause) else "is damaged"
        raise StudyError(f"{path} {what}", [str(cause)], repair_hint(path)) from None
    return copy


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

    Raises:
        StudyError: there is no study, or it cannot be read.
    """
    quiet_optuna()
    if not path.exists():
        raise StudyError(f"{path.parent} holds no study", [f"expected {path}"], "`skipsearch ls` lists the studies")
    try:
        storage = open_snapshot(path)
        studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    except UNREADABLE as cause:
        raise StudyError(f"{path} is not a study's database", [str(cause).splitlines()[0]]) from None
    if not studies or "space" not in studies[0].user_attrs:
        hint = "begin it again: remove the folder, or go on with the same command and `--resume`"
        raise StudyError(f"{path} holds no search that skipsearch began", [f"studies in it: {len(studies)}"], hint)
    return studies[0]


def space_of(path: Path) -> Space:
    """The space of a study, with absolute paths."""
    return Space.model_validate(open_study(path).user_attrs["space"])


def commit_of(path: Path) -> str | None:
    """The commit of the model on the hub that a study began with; None for a local model or a study not yet begun."""
    with closing(snapshot(path)) as copy:
        if "study_user_attributes" not in table_names(copy):
            return None
        found = copy.execute("SELECT value_json FROM study_user_attributes WHERE key = 'facts'").fetchone()
    commit: str | None = json.loads(found[0]).get("commit") if found else None
    return commit


def progress_of(path: Path) -> str:
    """How many of its trials a study has finished, or why it cannot be read, in a few words."""
    try:
        study = open_study(path)
    except StudyError as cause:
        return cause.what
    finished = [trial.user_attrs for trial in study.get_trials(deepcopy=False) if "seconds" in trial.user_attrs]
    own = sum("shared_from" not in attrs and "continues" not in attrs for attrs in finished)
    return f"{own} of {study.user_attrs['space']['search']['trials']} trials"


def quiet_optuna() -> None:
    """Limit Optuna's log to warnings, because the progress bar shows the trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
