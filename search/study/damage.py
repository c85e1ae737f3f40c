"""What is wrong with the file of a study: pages, texts and entries that are not as a search writes them."""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ...policies.errors import StudyError

USER, SYSTEM = "trial_user_attributes", "trial_system_attributes"
OF_STUDY: Final = ("study_user_attributes", "study_system_attributes")
TABLES: Final = ("studies", "study_directions", *OF_STUDY, "trials", USER, SYSTEM, "trial_params", "trial_values")
ESSENTIAL: Final = ("space", "facts", "model_id")  # attributes of a study that nothing can be read without
OF_A_TRIAL: Final = ("policy", "fingerprint", "measurements", "seconds")
TWICE: Final = ("policy", "measurements", "estimates")  # JSON in a JSON text
FINISHED: Final = ("COMPLETE", "PRUNED", "FAIL")

Fault = tuple[int | None, str]  # the number of a trial, None for the study, and what is wrong


def refuse_damage(memory: sqlite3.Connection, path: Path) -> None:
    """Refuse a database with faults.

    Raises:
        StudyError: with the first of them.
    """
    missing = {*TABLES} - tables(memory)
    if len(missing) == len(TABLES):
        raise StudyError(f"{path} is not a study's database", [f"expected the tables {', '.join(TABLES[:4])} …"])
    if missing and ("studies" in missing or not memory.execute("SELECT count(*) FROM studies").fetchone()[0]):
        return  # Optuna makes its tables one by one: a search begins at this moment, or was killed at it.
    found = faults(memory)
    if found:
        told = [text if number is None else f"trial {number}: {text}" for number, text in found]
        more = [f"and {len(told) - 5} more"] if len(told) > 5 else []
        raise StudyError(f"{path} is damaged", [*told[:5], *more], hint_for(path))


def hint_for(path: Path) -> str:
    """What to do about a damaged database."""
    return f"restore it from a copy, or write what is whole to a new study: `skipsearch report --salvage {path.parent}`"


def tables(connection: sqlite3.Connection) -> set[str]:
    """The names of its tables."""
    return {str(name) for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def faults(connection: sqlite3.Connection) -> list[Fault]:
    """Everything that is wrong: with the file, with the study, and by number with its trials."""
    factory, connection.text_factory = connection.text_factory, bytes
    try:
        missing: list[Fault] = [(None, f"the table {name} is missing") for name in {*TABLES} - tables_of(connection)]
        checked = [line for (line,) in connection.execute("PRAGMA quick_check(5)")]
        broken: list[Fault] = [(None, line.decode(errors="replace")) for line in checked if line != b"ok"]
        return missing or broken or [*study_faults(connection), *trial_faults(connection)]
    except sqlite3.Error as cause:
        return [(None, str(cause))]
    finally:
        connection.text_factory = factory


def tables_of(connection: sqlite3.Connection) -> set[str]:
    """The names of its tables, where texts are read as bytes."""
    found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    return {name.decode(errors="replace") for (name,) in found}


def study_faults(connection: sqlite3.Connection) -> Iterator[Fault]:
    """What is wrong with the study's own attributes."""
    keys = set()
    for table in OF_STUDY:
        for key, text in connection.execute(f"SELECT key, value_json FROM {table}"):
            keys.add(bytes(key).decode(errors="replace"))
            if reason := unreadable(key, text):
                yield None, f"the study's attribute {bytes(key).decode(errors='replace')!r} {reason}"
    begun = connection.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone()[0]
    yield from ((None, f"the study's attribute {key!r} is missing") for key in ESSENTIAL if begun and key not in keys)


def trial_faults(connection: sqlite3.Connection) -> Iterator[Fault]:
    """What is wrong with trials."""
    numbers = dict(connection.execute("SELECT trial_id, number FROM trials").fetchall())
    places = sorted(numbers.values())
    if places != list(range(len(places))):
        yield None, f"found {len(places)} trials up to number {places[-1]}"
    held: defaultdict[int, set[str]] = defaultdict(set)
    for table in (USER, SYSTEM):
        for trial, key, text in connection.execute(f"SELECT trial_id, key, value_json FROM {table}"):
            name = bytes(key).decode(errors="replace")
            held[trial].add(name)
            if reason := unreadable(key, text):
                yield numbers.get(trial), f"{name} {reason}"
    for trial, text in connection.execute("SELECT trial_id, distribution_json FROM trial_params"):
        if reason := unreadable(b"", text):
            yield numbers.get(trial), f"a parameter {reason}"
    yield from incomplete(connection, held)


def incomplete(connection: sqlite3.Connection, held: dict[int, set[str]]) -> Iterator[Fault]:
    """Trials that lack what their kind has: attributes, values, parameters."""
    values = dict(connection.execute("SELECT trial_id, count(*) FROM trial_values GROUP BY trial_id").fetchall())
    counts = dict(connection.execute("SELECT trial_id, count(*) FROM trial_params GROUP BY trial_id").fetchall())
    wanted = connection.execute("SELECT count(*) FROM study_directions").fetchone()[0]
    every = max(counts.values(), default=0)
    for trial, number, state in connection.execute("SELECT trial_id, number, state FROM trials ORDER BY number"):
        kind, has = bytes(state).decode(errors="replace"), held.get(trial, set())
        ours = bool(has & {*OF_A_TRIAL})
        if kind not in (*FINISHED, "RUNNING", "WAITING"):
            yield number, f"its state is {kind!r}"
        elif kind in FINISHED and (ours or kind != "FAIL"):
            # What only the sampler knows, a policy that the space forbids, failed and has none of these.
            yield from ((number, f"{key} is missing") for key in OF_A_TRIAL if key not in has)
            if kind == "COMPLETE" and values.get(trial, 0) != wanted:
                yield number, f"found {values.get(trial, 0)} values, expected {wanted}"
            if counts.get(trial, 0) != every:
                yield number, f"found {counts.get(trial, 0)} parameters, expected {every}"


def unreadable(key: bytes, text: Any) -> str | None:
    """Why the text of an attribute cannot be read; None where it can."""
    try:
        value = json.loads(bytes(text).decode() if isinstance(text, bytes) else str(text))
        if bytes(key).decode() in TWICE:
            json.loads(value)
    except UnicodeDecodeError as cause:
        return f"is not UTF-8: {cause.reason}"
    except (ValueError, TypeError, RecursionError) as cause:
        return f"is not JSON: {str(cause).splitlines()[0]}"
    return None
