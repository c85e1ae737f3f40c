"""What is published fits together: the image, the workflows, the version, and the packages that are named for it."""

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import yaml
from setuptools import find_packages

from skipsearch import __version__
from skipsearch.search.options import parse_options

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = ("evaluators", "exports", "policies", "recovery", "search", "spaces", "testing")


def test_every_package_is_named():
    """A folder that is not named would be missing in the wheel alone, since a clone has it."""
    found = {f"skipsearch.{name}" for name in find_packages(str(ROOT)) if name.partition(".")[0] in SOURCES}
    assert {"skipsearch", *found} == {*PROJECT["tool"]["setuptools"]["packages"]}


def test_the_image_runs_a_command():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    words = {line.partition(" ")[0]: line.partition(" ")[2] for line in lines}
    assert json.loads(words["ENTRYPOINT"]) == ["skipsearch"]
    assert parse_options(json.loads(words["CMD"])).command == "run"
    left_out = (ROOT / ".dockerignore").read_text().split()
    assert not {*SOURCES, "pyproject.toml", "README.md", "LICENSE", "constraints.txt"} & {*left_out}


def test_a_release_checks_that_the_tag_is_the_version():
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    [check] = [step["run"] for step in jobs["build"]["steps"] if step.get("name") == "The tag is the version"]
    for tag, code in ((f"v{__version__}", 0), ("v0.0.7", 1), (__version__, 1)):
        assert (
            subprocess.run(["bash", "-c", check], cwd=ROOT, env={**os.environ, "GITHUB_REF_NAME": tag}).returncode
            == code
        )
    assert jobs["publish"]["permissions"] == {"id-token": "write"} and jobs["build"]["needs"] == "checks"
    runs = [step["run"] for name in ("ci", "release") for step in steps(name) if "run" in step]
    assert ".ci/run" in runs and "make dist" in runs and "dist:" in (ROOT / "Makefile").read_text()


def steps(name):
    jobs = yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())["jobs"]
    return [step for job in jobs.values() for step in job.get("steps", ())]


def test_constraints_pin_every_package_that_is_named():
    lines = (ROOT / "constraints.txt").read_text().split()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    named = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]
    assert {re.split(r"[\[<>= ]", line)[0].lower() for line in named} <= pinned
