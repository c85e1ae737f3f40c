"""One thread, and the option that writes the table of what works."""

import os
from pathlib import Path

# Two threads on a shared processor wait for each other longer than they work, in what tests start too.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_addoption(parser):
    parser.addoption("--ways", type=Path, help="write what came of all ways of calling into this page")
    parser.addoption("--table", type=Path, help="write what the contract suite found into this page")


def pytest_configure(config):
    path = config.getoption("--table")
    if path is not None and not hasattr(config, "workerinput"):
        from support import Recorder

        config.pluginmanager.register(Recorder(path))


def pytest_collection_modifyitems(items):
    """The longest files first: the last one runs alone, and of short ones that is soon over.

    With xdist that takes `--no-loadscope-reorder`, or it begins with the files of most tests.
    """
    longest = ("test_policy_contract", "test_readme", "test_run", "test_benchmarks", "test_shipped_spaces")
    items.sort(key=lambda item: longest.index(item.path.stem) if item.path.stem in longest else len(longest))
