"""Checks that a wheel holds every file of the package that git tracks: `python wheel_is_whole.py WHEEL`."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
OUTSIDE = {".ci", ".github", "benchmarks", "docs", "examples", "results", "tests"}
# Descriptions of rooms of the source are for its readers; those of `spaces` are for users.
SOURCE_ONLY = {f"{room}/README.md" for room in ("policies", "evaluators", "exports", "search", "recovery")}


def expected() -> set[str]:
    """Paths of the files that belong to the package, relative to it."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [Path(line) for line in listed.splitlines()]
    inside = [file for file in files if len(file.parts) > 1 and file.parts[0] not in OUTSIDE]
    return {str(file) for file in inside} - SOURCE_ONLY | {"__init__.py", "__main__.py", "py.typed"}


packed = {name.removeprefix("skipsearch/") for name in zipfile.ZipFile(sys.argv[1]).namelist()}
missing = sorted(expected() - packed)
if missing:
    sys.exit("\n".join(["the wheel lacks:", *missing, "name their folders in pyproject.toml, under [tool.setuptools]"]))
