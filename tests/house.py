"""Counts what the house looks like: `python tests/house.py` prints files a room, import levels and circles."""

import sys
import tomllib
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median

import grimp

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PRODUCT = ("policies", "evaluators", "exports", "recovery", "search", "testing")


def layers():
    """The rooms of the search from the top, as `lint-imports` has them; those of one list import none of each other."""
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    [found] = [one["layers"] for one in contracts if one.get("containers") == ["skipsearch.search"]]
    return [line.split(" | ") for line in found]


def packages():
    """The folders of all packages below the root, such as `search/space`."""
    names = PROJECT["tool"]["setuptools"]["packages"]
    return [name.removeprefix("skipsearch.").replace(".", "/") for name in names if "." in name]


def imports(package="skipsearch"):
    """By module of the product, the modules that it imports while it runs."""
    graph = grimp.build_graph("skipsearch", exclude_type_checking_imports=True, cache_dir=None)
    found = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    return {module: {one for one in known if one.startswith(package)} for module, known in found.items()
            if module.startswith(package)}  # fmt: skip


def files_by_folder():
    """How many modules stand side by side in each folder of the product."""
    files = (file for top in PRODUCT for file in (ROOT / top).rglob("*.py") if file.name != "__init__.py")
    return Counter(str(file.parent.relative_to(ROOT)) for file in files)


def circle(graph):
    """The modules of one circle of imports; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as found:
        return found.args[1]
    return []


def levels(graph):
    """The length of the longest chain of imports."""
    depth = {}
    for module in TopologicalSorter(graph).static_order():
        depth[module] = 1 + max((depth[one] for one in graph.get(module, ()) if one in depth), default=0)
    return max(depth.values())


def upward(graph):
    """Imports between rooms of the search that do not point down."""
    rank = {room: place for place, rooms in enumerate(layers()) for room in rooms}

    def room(module):
        return module.removeprefix("skipsearch.search.").partition(".")[0]

    pairs = [(one, other) for one, known in graph.items() for other in known]
    known = [(one, other) for one, other in pairs if room(one) in rank and room(other) in rank]
    return [(one, other) for one, other in known if room(one) != room(other) and rank[room(one)] >= rank[room(other)]]


def lines():
    """Lines of product code."""
    return sum(len(file.read_text().splitlines()) for top in PRODUCT for file in (ROOT / top).rglob("*.py"))


def main():
    graph, files = imports(), files_by_folder()
    inside = {module: known for module, known in graph.items() if module.startswith("skipsearch.search")}
    for folder, count in sorted(files.items()):
        print(f"{count:4} {folder}")
    print(f"files a folder: median {median(files.values()):g}, max {max(files.values())}")
    print(f"import levels: {levels(graph)}, of search/ alone {levels(inside)}")
    print(f"upward imports: {len(upward(inside))}; circles: {1 if circle(graph) else 0}")
    print(f"lines of product code: {lines()}")


if __name__ == "__main__":
    sys.exit(main())
