"""The SQLite database of a study: reads it, and checks it for damage, without Optuna."""

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from ...policies.errors import StudyError
from .damage import TABLES, USER_ATTRS, refuse_damage, repair_hint, table_names

LOCK_SECONDS = 60.0  # how long to wait for another process that has locked the database; a busy machine is slow
STUDY = "SELECT min(study_id) FROM studies"  # a search makes one; any other comes from another program


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
        raise unreadable(path, cause) from None
    return copy


def unreadable(path: Path, cause: sqlite3.Error) -> StudyError:
    """The error of a database that SQLite cannot read."""
    if "locked" in str(cause) or "busy" in str(cause):
        hint = "close the program that holds it: a viewer, a copy or backup that runs, or one that hangs"
        return StudyError(f"another program holds {path}", [f"{cause}, for {LOCK_SECONDS:g} s"], hint)
    what = "is not a study's database" if "not a database" in str(cause) else "is damaged"
    return StudyError(f"{path} {what}", [str(cause)], repair_hint(path))


def attribute_of(path: Path, key: str) -> str | None:
    """The JSON of an attribute of a study; None for a study that has not begun, or that lacks it."""
    with closing(snapshot(path)) as copy:
        if "study_user_attributes" not in table_names(copy):
            return None
        found = copy.execute("SELECT value_json FROM study_user_attributes WHERE key = ?", (key,)).fetchone()
    return found[0] if found else None


def progress_of(path: Path) -> str:
    """How many of its trials a study has finished, or why it cannot be read, in a few words.

    It reads these numbers alone. Damage elsewhere in the database is found when the study is opened.
    """
    try:
        with closing(connect_for_reading(path)) as file:
            file.execute("BEGIN")  # All numbers are those of one instant.
            tables = table_names(file)
            if tables and not tables & {*TABLES}:
                return f"{path} is not a study's database"
            budget = budget_of(file.execute) if tables >= {*TABLES} else None
            if budget is None:
                return f"{path} holds no search that skipsearch began"
            return f"{finished_trials(file.execute)} of {budget} trials"
    except sqlite3.Error as cause:
        return unreadable(path, cause).what
    except (ValueError, LookupError, TypeError):
        return f"{path} is damaged"


def budget_of(execute: Callable[[str], Any], study: str = STUDY) -> int | None:
    """How many trials a study may spend; None where no search has begun in it.

    Args:
        execute: Executes SQL on a connection to the database.
        study: The study's id, in SQL.
    """
    query = f"SELECT value_json FROM study_user_attributes WHERE study_id = ({study}) AND key = 'space'"
    found = execute(query).fetchone()
    return None if found is None else int(json.loads(found[0])["search"]["trials"])


def finished_trials(execute: Callable[[str], Any], study: str = STUDY) -> int:
    """How many trials of its budget a study has spent: no probes, and none that share or continue another trial's.

    For the arguments see `budget_of`.
    """
    having = f"SELECT 1 FROM {USER_ATTRS} WHERE trial_id = trials.trial_id AND key"
    query = f"SELECT count(*) FROM trials WHERE study_id = ({study}) AND EXISTS ({having} = 'seconds')"
    apart = f"{having} IN ('shared_from', 'continues', 'probe')"
    count: int = execute(f"{query} AND NOT EXISTS ({apart})").fetchone()[0]
    return count
