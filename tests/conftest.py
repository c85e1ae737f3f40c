"""One thread, and the option that writes the table of what works."""

from pathlib import Path

import torch

# Two threads on a shared processor wait for each other longer than they work.
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--table", type=Path, help="write what the contract suite found into this page")


def pytest_configure(config):
    path = config.getoption("--table")
    if path is not None and not hasattr(config, "workerinput"):
        from support import Recorder

        config.pluginmanager.register(Recorder(path))


def pytest_collection_modifyitems(items):
    """Files that run whole searches in other processes first: they wait much, and the last file runs alone.

    With xdist that takes `--no-loadscope-reorder`, or it begins with the files of most tests.
    """
    first = ("test_readme", "test_shipped_spaces", "test_run", "test_benchmarks")
    items.sort(key=lambda item: item.path.stem not in first)
