"""Connects to the database of a URL, and explains why that fails; without Optuna."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy
from sqlalchemy import exc

from ....policies.errors import StudyError
from ...storage_url import resolved_url, sqlite_file, without_passwords
from ..database import LOCK_SECONDS

CONNECT_SECONDS = 10  # how long a server may take to answer
# By the module of a driver, the package that brings it.
DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary"}
# By a part of PostgreSQL's message, what helps.
HINTS = {
    "password": "give the password as ${NAME} in the URL with the environment variable NAME, or in ~/.pgpass",
    "does not exist": "create the database with `createdb`, or the role with `createuser`, or correct the URL",
    "permission denied": "grant the role of the URL the right to create and write tables",
    "too many clients": "close other connections, or raise the server's `max_connections`",
}
UNREACHED = "start the server, or correct host and port in `study.storage`; `pg_isready -h HOST -p PORT` tries them"


def engine_options(url: str) -> dict[str, Any]:
    """Options of SQLAlchemy's engine for a resolved URL."""
    made = sqlalchemy.make_url(url)
    if made.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": LOCK_SECONDS}}
    # A server that was restarted between two trials costs nothing: a broken connection is replaced before its use.
    seconds = {"connect_timeout": CONNECT_SECONDS} if made.get_driver_name() in DRIVERS else {}
    return {"pool_pre_ping": True, "connect_args": seconds}


@contextmanager
def connected(url: str) -> Iterator[sqlalchemy.Connection]:
    """A connection to the database of a URL, for reading.

    Raises:
        StudyError: it cannot be reached or read.
    """
    with storage_errors(url):
        found = resolved_url(url)
        engine = sqlalchemy.create_engine(found, poolclass=sqlalchemy.NullPool, **engine_options(found))
        with engine.connect() as connection:
            yield connection


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn what drivers and SQLAlchemy raise into one message with a hint.

    Raises:
        StudyError: the database of the URL cannot be used.
    """
    try:
        yield
    except ImportError as cause:
        raise missing_driver(url, cause) from None
    except exc.SQLAlchemyError as cause:
        raise unusable(url, cause) from None


def missing_driver(url: str, cause: ImportError) -> StudyError:
    """The error of a driver that is not installed; Optuna raises its own error from the import's."""
    inner = cause.__cause__ if isinstance(cause.__cause__, ImportError) else cause
    module = inner.name or "psycopg"
    hint = f'install it: pip install "{DRIVERS.get(module, module)}"'
    return StudyError(f"the driver {module} of {url} is not installed", [reason_of(url, inner)], hint)


def unusable(url: str, cause: Exception) -> StudyError:
    """The error of a database that cannot be used, with the hint that fits the server's message."""
    reason = reason_of(url, cause)
    if isinstance(cause, exc.ArgumentError):
        return StudyError(f"{url} is no URL that SQLAlchemy can read", [reason], "correct `study.storage`")
    hint = next((text for part, text in HINTS.items() if part in reason), None)
    if isinstance(cause, exc.OperationalError) and sqlite_file(url) is None:
        hint = hint or UNREACHED
    return StudyError(f"{url} cannot be used", [reason], hint)


def reason_of(url: str, cause: Exception) -> str:
    """The first line of what a driver says, without the password."""
    lines = [line for line in str(getattr(cause, "orig", None) or cause).splitlines() if line.strip()]
    try:
        return without_passwords(lines[0].strip(), resolved_url(url)) if lines else type(cause).__name__
    except StudyError:
        return type(cause).__name__


def study_id(connection: sqlalchemy.Connection, name: str) -> int | None:
    """The id of a study in a database; None where there is no such study, or Optuna has no tables yet."""
    if not sqlalchemy.inspect(connection).has_table("studies"):
        return None
    query = sqlalchemy.text("SELECT study_id FROM studies WHERE study_name = :name")
    found = connection.execute(query, {"name": name}).scalar()
    return None if found is None else int(found)
