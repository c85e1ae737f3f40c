"""The URL of a database that holds studies: which databases are taken, and where its password comes from."""

import os
import re
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from ..policies.errors import StudyError

VARIABLE = re.compile(r"\$\{(\w+)\}")  # stands for the value of an environment variable
FORM = "expected postgresql://USER@HOST:PORT/DATABASE or sqlite:///PATH"
SHORT_TEXTS = "its text columns hold 64 KiB, and the scores of a trial's examples can be longer"
JOURNAL = "Optuna's journal cannot write a trial with all its measurements in one transaction"
# By the first word of a URL, why no study can be stored there.
REFUSED = {"mysql": SHORT_TEXTS, "mariadb": SHORT_TEXTS, "redis": JOURNAL, "rediss": JOURNAL, "journal": JOURNAL}


def check_storage_url(url: str) -> str:
    """Check the URL of a storage before anything connects to it; the messages never contain a password.

    Raises:
        ValueError: it is no URL of a PostgreSQL or SQLite database, or holds a password.
    """
    if VARIABLE.fullmatch(url):
        return url
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError(f"this URL cannot be read, {FORM}; write / in a name as %2F, and @ as %40") from None
    kind = parts.scheme.partition("+")[0]
    if kind in REFUSED:
        raise ValueError(f"found {kind}, {FORM}: {REFUSED[kind]}")
    if kind not in ("postgresql", "sqlite") or "://" not in url or "@" in parts.path:
        raise ValueError(f"found no database that can hold a study, {FORM}")
    if kind == "sqlite" and (parts.netloc or parts.path in ("", "/", "/:memory:") or VARIABLE.search(url)):
        raise ValueError("found no file, expected sqlite:///PATH, or sqlite:////PATH from the root")
    if any(not VARIABLE.fullmatch(password) for password in passwords(parts)):
        raise ValueError(
            "found a password, which would be stored with the space; write ${NAME} in its place, in single quotes on "
            "a command line, and set the environment variable NAME, or leave it out and keep it in ~/.pgpass"
        )
    return url


def passwords(parts: SplitResult) -> list[str]:
    """The passwords in a URL: after the user's name, and among its options."""
    options = [value for name, value in parse_qsl(parts.query) if "password" in name]
    return [password for password in (parts.password, *options) if password]


def absolute_url(url: str) -> str:
    """The URL with the path of an SQLite file made absolute; a relative one starts where the command runs."""
    file = sqlite_file(url)
    return url if file is None else f"sqlite:///{file.absolute()}"


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite database; None for a server."""
    parts = urlsplit(url)
    return Path(parts.path.removeprefix("/")) if parts.scheme.partition("+")[0] == "sqlite" else None


def resolved_url(url: str) -> str:
    """The URL with its variables replaced; one inside a URL is quoted, one that is the whole URL is not.

    Raises:
        StudyError: an environment variable is not set, or does not hold a URL that can be used.
    """
    whole = VARIABLE.fullmatch(url)
    if whole is None:
        return VARIABLE.sub(lambda match: quote(_variable(match[1], url), safe=""), url)
    found = _variable(whole[1], url)
    if urlsplit(found).scheme.partition("+")[0] != "postgresql":
        expected = "expected postgresql://USER@HOST:PORT/DATABASE"
        raise StudyError(f"the environment variable {whole[1]} holds no URL of a server", [expected])
    return found


def _variable(name: str, url: str) -> str:
    found = os.environ.get(name)
    if not found:
        hint = f"set it, as in `export {name}=…`"
        raise StudyError(f"the environment variable {name} is not set", [f"study.storage: {url}"], hint)
    return found


def without_passwords(text: str, url: str) -> str:
    """A driver's message without the passwords of a resolved URL."""
    for password in passwords(urlsplit(url)):
        text = text.replace(password, "***").replace(unquote(password), "***")
    return text
