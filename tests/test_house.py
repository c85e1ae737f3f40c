"""The house: rooms import what is below them, nothing runs in circles, and the loop draws nothing."""

import re
import subprocess
import sys

import house
import pytest

# Modules that any room of the search may import, or none does.
HELPERS = {"evaluation_space", "examples", "signals"}


def modules(folder):
    """The files of all modules below a folder of the product."""
    return sorted((house.ROOT / folder).rglob("*.py"))


@pytest.fixture(scope="module")
def graph():
    return house.imports()


def test_no_import_points_up(graph):
    assert not house.upward({module: known for module, known in graph.items() if ".search." in module})


def test_no_imports_run_in_a_circle(graph):
    assert not house.circle(graph)


def test_each_room_of_the_search_has_a_layer():
    rooms = {path.relative_to(house.ROOT / "search").with_suffix("").parts[0] for path in modules("search")}
    assert rooms - {"__init__"} - {room for layer in house.layers() for room in layer} == HELPERS


def test_each_folder_of_packages_is_on_the_map():
    """A folder within a room, such as `search/space/models`, goes with its room; so do the targets of `exports/`."""
    text = (house.ROOT / "CONTRIBUTING.md").read_text()
    places = re.findall(r"^([a-z_/]+/) {2,}", text, re.MULTILINE)
    assert len(places) == len({*places})
    rooms = [one for one in house.packages() if one.count("/") < 2]
    wanted = {f"{one}/" for one in rooms if one.split("/")[0] not in ("exports", "spaces")}
    assert wanted <= {*places} and all((house.ROOT / place).is_dir() for place in places)


def test_the_table_of_the_search_names_all_that_lies_in_it():
    text = (house.ROOT / "search" / "README.md").read_text()
    table = text[: text.index("\n## ")]
    folder = house.ROOT / "search"
    names = [f"`{path.parent.name}/`" for path in folder.glob("*/__init__.py")]
    names += [f"`{path.name}`" for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert [name for name in names if name not in table] == []


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
    paths = [
        path.relative_to(house.ROOT / "search") for room in ("driver", "workers") for path in modules(f"search/{room}")
    ]
    # Progress draws, and Ray Tune loads rich for itself.
    others = [path for path in paths if path.as_posix() not in ("driver/progress.py", "driver/ray_tune.py")]
    names = [".".join(path.with_suffix("").parts) for path in others]
    found = subprocess.run([sys.executable, "-c", LOADS, *names], capture_output=True, text=True, check=True)
    assert len(names) > 30 and found.stdout.splitlines() == names
