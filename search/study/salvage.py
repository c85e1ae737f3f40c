"""Writing what is whole of a damaged study to a new one."""

import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from ...policies.errors import StudyError
from .damage import ESSENTIAL, OF_STUDY, TABLES, faults
from .storage import DATABASE, reading, storage

Rows = dict[int, tuple[Any, ...]]
OF_TRIALS = ("trial_user_attributes", "trial_system_attributes", "trial_params", "trial_values")


def salvage(folder: Path) -> tuple[Path, int, int]:
    """Write a study's whole trials to a new study beside it; a trial that is damaged stands there as failed.

    Returns:
        The new study's folder, how many of its trials are whole, and how many there were.

    Raises:
        StudyError: what nothing can be read without is damaged: the study's own attributes, or the dense trial.
    """
    path, target = folder / DATABASE, folder.with_name(f"{folder.name}-salvaged")
    if not path.exists():
        raise StudyError(f"{folder} holds no study", [f"expected {path}"], "`skipsearch ls` lists the studies")
    if target.exists():
        raise StudyError(f"{target} exists already", hint="remove it, or rename it")
    found = read_rows(path)
    if not found["studies"] or not found["trials"]:
        raise StudyError(f"nothing of {path} can be read", hint="restore it from a copy")
    try:
        storage(target / DATABASE).engine.dispose()
        with closing(sqlite3.connect(target / DATABASE)) as connection, connection:
            kept, every = write_rows(connection, found, path)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    for name in ("space.yaml", "environment.json"):
        with suppress(OSError):
            shutil.copyfile(folder / name, target / name)
    return target, kept, every


def read_rows(path: Path) -> dict[str, Rows]:
    """The rows of each table that can be read, from both ends up to what is damaged."""
    found: dict[str, Rows] = {}
    with closing(reading(path)) as connection:
        connection.text_factory = bytes
        for table in TABLES:
            rows = found.setdefault(table, {})
            for order in ("ASC", "DESC"):
                with suppress(sqlite3.Error):
                    for number, *row in connection.execute(f"SELECT rowid, * FROM {table} ORDER BY rowid {order}"):
                        rows.setdefault(number, tuple(row))
    return found


def write_rows(connection: sqlite3.Connection, found: Mapping[str, Rows], path: Path) -> tuple[int, int]:
    """Fill a new database, and take out what is damaged.

    Returns:
        How many trials are whole, and how many there are.

    Raises:
        StudyError: see `salvage`.
    """
    for table in TABLES:
        for row in found[table].values():
            texts = [value.decode(errors="replace") if isinstance(value, bytes) else value for value in row]
            # A row whose key was read wrongly may stand twice.
            connection.execute(f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * len(texts))})", texts)
    fill_gaps(connection)
    keys = {key for (key,) in connection.execute("SELECT key FROM study_user_attributes")}
    broken = faults(connection)
    of_study = [text for number, text in broken if number is None]
    for table in OF_STUDY:
        bad = [
            key for (key,) in connection.execute(f"SELECT key FROM {table}") if any(repr(key) in t for t in of_study)
        ]
        keys -= {*bad}
        connection.executemany(f"DELETE FROM {table} WHERE key = ?", [(key,) for key in bad])
    lost = [f"the study's attribute {key!r}" for key in ESSENTIAL if key not in keys]
    damaged = {number for number, _ in broken if number is not None}
    lost += ["the dense model's trial, which everything is compared with"] if 0 in damaged else []
    if lost:
        raise StudyError(f"too much of {path} is damaged", lost, "restore it from a copy, or begin the search again")
    for number in damaged:
        connection.execute("UPDATE trials SET state = 'FAIL' WHERE number = ?", (number,))
        for table in OF_TRIALS:
            of_trial = "(SELECT trial_id FROM trials WHERE number = ?)"
            connection.execute(f"DELETE FROM {table} WHERE trial_id IN {of_trial}", (number,))
    every = connection.execute("SELECT count(*) FROM trials").fetchone()[0]
    return every - len(damaged), every


def fill_gaps(connection: sqlite3.Connection) -> None:
    """Optuna counts trials from 0 without a gap: in the place of one that is lost stands a failed one."""
    ids = dict(connection.execute("SELECT number, trial_id FROM trials").fetchall())
    study = connection.execute("SELECT study_id FROM studies").fetchone()[0]
    first = min(trial - number for number, trial in ids.items())
    for number in {*range(max(ids) + 1)} - ids.keys():
        for table in OF_TRIALS:
            connection.execute(f"DELETE FROM {table} WHERE trial_id = ?", (first + number,))
        row = (first + number, number, study)
        connection.execute(
            "INSERT OR IGNORE INTO trials (trial_id, number, study_id, state) VALUES (?, ?, ?, 'FAIL')", row
        )
    for table in OF_TRIALS:
        connection.execute(f"DELETE FROM {table} WHERE trial_id NOT IN (SELECT trial_id FROM trials)")
