"""The house: rooms import what is below them, nothing runs in circles, and the loop draws nothing."""

import subprocess
import sys

import house
import pytest


@pytest.fixture(scope="module")
def graph():
    return house.imports()


def test_no_import_points_up(graph):
    assert not house.upward({module: known for module, known in graph.items() if ".search." in module})


def test_no_imports_run_in_a_circle(graph):
    assert not house.circle(graph)


def test_a_folder_holds_few_files():
    assert max(house.files_by_folder().values()) <= 17


def test_circles_and_upward_imports_are_found():
    assert set(house.circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}
    assert house.upward(
        {"skipsearch.search.trial.x": {"skipsearch.search.study.y"}, "skipsearch.search.study.y": set()}
    )


LOADS = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(f"skipsearch.search.{name}")
    print(name, *({"rich", "plotly", "matplotlib"} & {*sys.modules}))
"""


def test_what_runs_on_workers_and_in_the_loop_loads_nothing_that_draws():
    modules = ["driver.driver", "workers.ray_pool", "workers.evaluate"]
    found = subprocess.run([sys.executable, "-c", LOADS, *modules], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == modules
