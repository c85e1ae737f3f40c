"""Finds damage in a study's database: unreadable pages, missing attributes, and values that are not JSON."""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from ...policies.errors import StudyError

USER_ATTRS, SYSTEM_ATTRS = "trial_user_attributes", "trial_system_attributes"
STUDY_ATTR_TABLES: Final = ("study_user_attributes", "study_system_attributes")
TABLES: Final = (
    "studies", "study_directions", *STUDY_ATTR_TABLES, "trials", USER_ATTRS, SYSTEM_ATTRS, "trial_params",
    "trial_values",
)  # fmt: skip
REQUIRED_STUDY_ATTRS: Final = ("space", "facts", "model_id")  # no study can be read without them
REQUIRED_TRIAL_ATTRS: Final = ("policy", "fingerprint", "measurements", "seconds")
NESTED_JSON: Final = ("policy", "measurements", "estimates")  # attributes whose value is a JSON text inside JSON
FINISHED: Final = ("COMPLETE", "PRUNED", "FAIL")
MAX_REPORTED = 5  # faults that an error message lists


class Fault(NamedTuple):
    """One fault of a database.

    Attributes:
        trial: The number of the trial that has it; None for the file or the study itself.
        text: What is wrong.
        attribute: The attribute of the study whose value cannot be read, where that is the fault.
    """

    trial: int | None
    text: str
    attribute: str | None = None


def refuse_damage(connection: sqlite3.Connection, path: Path) -> None:
    """Raise an error that lists the first faults of a database; do nothing where it has none.

    Args:
        connection: A connection to the database, or to a copy of it.
        path: The database file, for the message.

    Raises:
        StudyError: the database is damaged, or Optuna did not write it.
    """
    missing = {*TABLES} - table_names(connection)
    if len(missing) == len(TABLES):
        raise StudyError(f"{path} is not a study's database", [f"expected the tables {', '.join(TABLES[:4])} …"])
    if missing and ("studies" in missing or not connection.execute("SELECT count(*) FROM studies").fetchone()[0]):
        return  # Optuna creates its tables one by one: a search is starting, or was killed while it started.
    found = faults(connection)
    if found:
        lines = [fault.text if fault.trial is None else f"trial {fault.trial}: {fault.text}" for fault in found]
        more = [f"and {len(lines) - MAX_REPORTED} more"] if len(lines) > MAX_REPORTED else []
        raise StudyError(f"{path} is damaged", [*lines[:MAX_REPORTED], *more], repair_hint(path))


def repair_hint(path: Path) -> str:
    """The hint of an error about a damaged database."""
    return f"restore it from a copy, or save the intact trials: `skipsearch report --salvage {path.parent}`"


def table_names(connection: sqlite3.Connection) -> set[str]:
    """The names of a database's tables, whether the connection reads text as `str` or as `bytes`."""
    found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    return {name.decode(errors="replace") if isinstance(name, bytes) else str(name) for (name,) in found}


def faults(connection: sqlite3.Connection) -> list[Fault]:
    """All faults of a database: of the file; where it has none, of the study and of its trials."""
    # Damaged text may not be UTF-8, and SQLite would refuse to return it as `str`.
    text_factory, connection.text_factory = connection.text_factory, bytes
    try:
        missing = [Fault(None, f"the table {name} is missing") for name in {*TABLES} - table_names(connection)]
        lines = [line for (line,) in connection.execute("PRAGMA quick_check(5)")]
        corrupt = [Fault(None, line.decode(errors="replace")) for line in lines if line != b"ok"]
        return missing or corrupt or [*study_faults(connection), *trial_faults(connection)]
    except sqlite3.Error as cause:
        return [Fault(None, str(cause))]
    finally:
        connection.text_factory = text_factory


def study_faults(connection: sqlite3.Connection) -> Iterator[Fault]:
    """Attributes of the study that are unreadable or missing."""
    keys = set()
    for table in STUDY_ATTR_TABLES:
        for key, text in connection.execute(f"SELECT key, value_json FROM {table}"):
            name = bytes(key).decode(errors="replace")
            keys.add(name)
            if reason := unreadable(key, text):
                yield Fault(None, f"the study's attribute {name!r} {reason}", name)
    completed = connection.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone()[0]
    if completed:
        missing = (name for name in REQUIRED_STUDY_ATTRS if name not in keys)
        yield from (Fault(None, f"the study's attribute {name!r} is missing") for name in missing)


def trial_faults(connection: sqlite3.Connection) -> Iterator[Fault]:
    """Trials that are missing, and attributes and parameters of trials that are unreadable or missing."""
    numbers = dict(connection.execute("SELECT trial_id, number FROM trials").fetchall())
    ordered = sorted(numbers.values())
    if ordered != list(range(len(ordered))):
        yield Fault(None, f"found {len(ordered)} trials up to number {ordered[-1]}")
    attrs_by_trial: defaultdict[int, set[str]] = defaultdict(set)
    for table in (USER_ATTRS, SYSTEM_ATTRS):
        for trial_id, key, text in connection.execute(f"SELECT trial_id, key, value_json FROM {table}"):
            name = bytes(key).decode(errors="replace")
            attrs_by_trial[trial_id].add(name)
            if reason := unreadable(key, text):
                yield Fault(numbers.get(trial_id), f"{name} {reason}")
    for trial_id, text in connection.execute("SELECT trial_id, distribution_json FROM trial_params"):
        if reason := unreadable(b"", text):
            yield Fault(numbers.get(trial_id), f"a parameter {reason}")
    yield from incomplete_trials(connection, attrs_by_trial)


def incomplete_trials(connection: sqlite3.Connection, attrs_by_trial: dict[int, set[str]]) -> Iterator[Fault]:
    """Finished trials that lack attributes, objective values or parameters, and trials with an unknown state."""
    values = dict(connection.execute("SELECT trial_id, count(*) FROM trial_values GROUP BY trial_id").fetchall())
    params = dict(connection.execute("SELECT trial_id, count(*) FROM trial_params GROUP BY trial_id").fetchall())
    expected_values = connection.execute("SELECT count(*) FROM study_directions").fetchone()[0]
    expected_params = max(params.values(), default=0)
    for trial_id, number, raw in connection.execute("SELECT trial_id, number, state FROM trials ORDER BY number"):
        state, attrs = bytes(raw).decode(errors="replace"), attrs_by_trial.get(trial_id, set())
        if state not in (*FINISHED, "RUNNING", "WAITING"):
            yield Fault(number, f"its state is {state!r}")
        # A proposal that the space forbids is a failed trial without any of the required attributes.
        elif state in FINISHED and (state != "FAIL" or attrs & {*REQUIRED_TRIAL_ATTRS}):
            yield from (Fault(number, f"{name} is missing") for name in REQUIRED_TRIAL_ATTRS if name not in attrs)
            if state == "COMPLETE" and values.get(trial_id, 0) != expected_values:
                yield Fault(number, f"found {values.get(trial_id, 0)} values, expected {expected_values}")
            if params.get(trial_id, 0) != expected_params:
                yield Fault(number, f"found {params.get(trial_id, 0)} parameters, expected {expected_params}")


def unreadable(key: bytes, text: Any) -> str | None:
    """Why the value of an attribute cannot be read; None where it can."""
    try:
        value = json.loads(bytes(text).decode() if isinstance(text, bytes) else str(text))
        if bytes(key).decode() in NESTED_JSON:
            json.loads(value)
    except UnicodeDecodeError as cause:
        return f"is not UTF-8: {cause.reason}"
    except (ValueError, TypeError, RecursionError) as cause:
        return f"is not JSON: {str(cause).splitlines()[0]}"
    return None
