"""One PostgreSQL server for all tests of searches."""

import postgres
import pytest


@pytest.fixture(scope="session")
def server():
    """A server that runs; its password is where the URLs say."""
    made = postgres.Postgres()
    patched = pytest.MonkeyPatch()
    patched.setenv("PG_SECRET", postgres.PASSWORD)
    made.start()
    yield made
    made.remove()
    patched.undo()
