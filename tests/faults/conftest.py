"""What a file of faults installs in this process is gone after it."""

import os
import sys

import pytest


@pytest.fixture(scope="module", autouse=True)
def leaves_nothing_behind():
    path, environment = [*sys.path], dict(os.environ)
    yield
    sys.path[:] = path
    os.environ.clear()
    os.environ.update(environment)
