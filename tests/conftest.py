"""One thread, files that stay compiled, and the option that writes the table of what works."""

import os
import sys
from pathlib import Path

import pytest

# Two threads on a shared processor wait for each other longer than they work, in what tests start too.
os.environ["OMP_NUM_THREADS"] = "1"
# Else each process that a test starts compiles all that it imports anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_addoption(parser):
    parser.addoption("--ways", type=Path, help="write what came of all ways of calling into this page")
    parser.addoption("--table", type=Path, help="write what the contract suite found into this page")


def pytest_configure(config):
    path = config.getoption("--table")
    if path is not None and not hasattr(config, "workerinput"):
        from support import Recorder

        config.pluginmanager.register(Recorder(path))


# Files of more than some ten seconds, the longest first; `make check` leaves them out.
SLOW = (
    "test_policy_contract", "test_commands", "test_cluster_commands", "test_run", "test_benchmarks",
    "test_shipped_spaces", "test_early_stopping", "test_ways_of_calling", "test_skip_sampler", "test_machine",
    "test_accuracy", "test_fuzzed_files", "test_study", "test_closed_form", "test_guided", "test_divergence_search",
    "test_space", "test_apply", "test_cache", "test_files", "test_ties_and_bans", "test_times", "test_draft",
    "test_site", "test_targets", "test_implementations", "test_scores", "test_shorter", "test_transfer",
    "test_image_tasks", "test_shared_prompts", "test_states", "test_gradients", "test_recover",
    "test_recover_command", "test_init", "test_examples",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Mark slow files, and run the longest first: the last file runs alone, and a short one is soon over.

    With xdist that takes `--no-loadscope-reorder`, or it begins with the files of most tests.
    """
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker("slow")
    items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))


@pytest.fixture
def here(world, monkeypatch):
    """The working directory: the folder `world` of a module whose commands are given mistakes; the hub is not asked."""
    monkeypatch.chdir(world)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return world
