"""Where a study is whose database is not in its folder: the file `storage.json` of the folder."""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import sqlalchemy

from ....policies.errors import StudyError
from ...places import STORAGE
from ...space.space import Space
from ...storage_url import sqlite_file
from ..database import budget_of, finished_trials
from .connect import connected, study_id


class Address(NamedTuple):
    """A study in a database that a URL names.

    Attributes:
        url: As written in the space, with an absolute path: variables stand for passwords.
        name: The study's name, which is unique in a database.
    """

    url: str
    name: str

    def __str__(self) -> str:
        return f"{self.url}, study {self.name}"


def address_of(space: Space, name: str) -> Address | None:
    """Where a study is that the space stores in a database of its own; None for one that its folder holds."""
    return None if space.study.storage is None else Address(space.study.storage, name)


def read_address(folder: Path) -> Address | None:
    """The address in a study's folder; None where its database is in the folder.

    Raises:
        StudyError: the file was not written by a search.
    """
    file = folder / STORAGE
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return Address(str(found["storage"]), str(found["study"]))
    except (OSError, ValueError, KeyError, TypeError):
        expected = 'expected {"storage": URL, "study": NAME}'
        raise StudyError(f"{file} was not written by a search", [expected], "restore it, or write it by hand") from None


def write_address(folder: Path, address: Address) -> None:
    """Write the address into a study's folder, which is created where it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"storage": address.url, "study": address.name}, indent=1)
    (folder / STORAGE).write_text(text + "\n", encoding="utf-8")


def study_exists(address: Address) -> bool:
    """True where the database has a study of this name.

    Raises:
        StudyError: the database cannot be used.
    """
    file = sqlite_file(address.url)
    if file is not None and not file.exists():
        return False  # SQLite would create it.
    with connected(address.url) as connection:
        return study_id(connection, address.name) is not None


def attribute_text(address: Address, key: str) -> str | None:
    """The JSON text of a study's attribute; None where the study or the attribute does not exist.

    Raises:
        StudyError: the database cannot be used.
    """
    if not study_exists(address):
        return None
    query = "SELECT value_json FROM study_user_attributes WHERE study_id = :study AND key = :key"
    with connected(address.url) as connection:
        values = {"study": study_id(connection, address.name), "key": key}
        found: str | None = connection.execute(sqlalchemy.text(query), values).scalar()
    return found


@functools.cache
def why_unusable(url: str) -> str | None:
    """Why a database cannot be used, asked once a process so that one dead server costs one wait; None where it can."""
    try:
        with connected(url):
            return None
    except StudyError as error:
        return f"{error.what}: {'; '.join(error.details)}"


def progress_at(address: Address) -> str:
    """How many of its trials a study has finished, or why it cannot be read, in a few words."""
    problem = why_unusable(address.url)
    if problem is not None:
        return problem
    try:
        if not study_exists(address):
            return f"{address} does not exist"
        with connected(address.url) as connection:
            study = str(study_id(connection, address.name))
            budget = budget_of(connection.exec_driver_sql, study)
            if budget is None:
                return f"{address} holds no search that skipsearch began"
            return f"{finished_trials(connection.exec_driver_sql, study)} of {budget} trials"
    except StudyError as error:
        return error.what
    except (ValueError, LookupError, TypeError):
        return f"{address} is damaged"
