"""Saves the intact trials of a damaged study to a new study."""

import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from ...policies.errors import StudyError
from ..places import DATABASE, POLICIES, RANKING, STORAGE
from .damage import REQUIRED_STUDY_ATTRS, STUDY_ATTR_TABLES, TABLES, faults
from .database import connect_for_reading
from .storage import open_storage

Rows = dict[int, tuple[Any, ...]]  # by SQLite's rowid
TRIAL_TABLES = ("trial_user_attributes", "trial_system_attributes", "trial_params", "trial_values")


def salvage(folder: Path) -> tuple[Path, int, int]:
    """Copy a damaged study to a new study beside it; damaged trials become failed ones.

    Returns:
        The new study's folder, the number of intact trials, and the number of all trials.

    Raises:
        StudyError: the study's required attributes or its dense trial are damaged, and nothing can be read without
            them; or the new folder exists already.
    """
    path, target = folder / DATABASE, folder.with_name(f"{folder.name}-salvaged")
    if (folder / STORAGE).exists():
        hint = "restore the database from its server's backup"
        raise StudyError(f"the study of {folder} is in another database", [f"see {folder / STORAGE}"], hint)
    if not path.exists():
        raise StudyError(f"{folder} holds no study", [f"expected {path}"], "`skipsearch ls` lists the studies")
    if target.exists():
        raise StudyError(f"{target} exists already", hint="remove it, or rename it")
    rows = read_rows(path)
    if not rows["studies"] or not rows["trials"]:
        raise StudyError(f"nothing of {path} can be read", hint="restore it from a copy")
    try:
        open_storage(target / DATABASE).engine.dispose()
        with closing(sqlite3.connect(target / DATABASE)) as connection, connection:
            intact, total = write_rows(connection, rows, path)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    for name in ("space.yaml", "environment.json", RANKING):
        with suppress(OSError):
            shutil.copyfile(folder / name, target / name)
    for trained in (folder / POLICIES).glob("trained-*"):  # the weights that policies of the study name
        shutil.copytree(trained, target / POLICIES / trained.name)
    return target, intact, total


def read_rows(path: Path) -> dict[str, Rows]:
    """Read the rows of each table that are readable.

    Each table is read from both ends, because SQLite stops at the first damaged page.
    """
    found: dict[str, Rows] = {}
    with closing(connect_for_reading(path)) as connection:
        connection.text_factory = bytes
        for table in TABLES:
            rows = found.setdefault(table, {})
            for order in ("ASC", "DESC"):
                with suppress(sqlite3.Error):
                    for rowid, *row in connection.execute(f"SELECT rowid, * FROM {table} ORDER BY rowid {order}"):
                        rows.setdefault(rowid, tuple(row))
    return found


def write_rows(connection: sqlite3.Connection, rows: Mapping[str, Rows], path: Path) -> tuple[int, int]:
    """Write rows to a new database, and remove the damaged ones.

    Args:
        connection: A connection to the new database, which has Optuna's tables.
        rows: The readable rows by table.
        path: The damaged database, for messages.

    Returns:
        The number of intact trials, and the number of all trials.

    Raises:
        StudyError: see `salvage`.
    """
    for table in TABLES:
        for row in rows[table].values():
            values = [value.decode(errors="replace") if isinstance(value, bytes) else value for value in row]
            # A damaged key can occur twice.
            connection.execute(f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * len(values))})", values)
    fill_gaps(connection)
    found = faults(connection)
    unreadable = {fault.attribute for fault in found if fault.attribute is not None}
    damaged = {fault.trial for fault in found if fault.trial is not None}
    keys = {key for (key,) in connection.execute("SELECT key FROM study_user_attributes")} - unreadable
    lost = [f"the study's attribute {key!r}" for key in REQUIRED_STUDY_ATTRS if key not in keys]
    lost += ["the dense model's trial, which everything is compared with"] if 0 in damaged else []
    if lost:
        raise StudyError(f"too much of {path} is damaged", lost, "restore it from a copy, or begin the search again")
    for table in STUDY_ATTR_TABLES:
        connection.executemany(f"DELETE FROM {table} WHERE key = ?", [(key,) for key in unreadable])
    for number in damaged:
        connection.execute("UPDATE trials SET state = 'FAIL' WHERE number = ?", (number,))
        for table in TRIAL_TABLES:
            trial_id = "(SELECT trial_id FROM trials WHERE number = ?)"
            connection.execute(f"DELETE FROM {table} WHERE trial_id IN {trial_id}", (number,))
    total = connection.execute("SELECT count(*) FROM trials").fetchone()[0]
    return total - len(damaged), total


def fill_gaps(connection: sqlite3.Connection) -> None:
    """Insert a failed trial for each lost one, because Optuna needs trial numbers from 0 without a gap."""
    ids = dict(connection.execute("SELECT number, trial_id FROM trials").fetchall())
    study = connection.execute("SELECT study_id FROM studies").fetchone()[0]
    first = min(trial_id - number for number, trial_id in ids.items())
    for number in {*range(max(ids) + 1)} - ids.keys():
        for table in TRIAL_TABLES:
            connection.execute(f"DELETE FROM {table} WHERE trial_id = ?", (first + number,))
        row = (first + number, number, study)
        connection.execute(
            "INSERT OR IGNORE INTO trials (trial_id, number, study_id, state) VALUES (?, ?, ?, 'FAIL')", row
        )
    for table in TRIAL_TABLES:
        connection.execute(f"DELETE FROM {table} WHERE trial_id NOT IN (SELECT trial_id FROM trials)")
