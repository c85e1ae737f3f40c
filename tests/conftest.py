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
