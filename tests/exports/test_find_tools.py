"""`make exports` names the tools that are missing, and does not pass without them."""

import os
import subprocess
import sys
from pathlib import Path

import find_tools


def test_missing_tools_are_named_and_an_error():
    environment = {key: value for key, value in os.environ.items() if key not in find_tools.INTERPRETERS}
    environment["SKIPSEARCH_VLLM_PYTHON"] = "/nowhere/python"
    script = Path(find_tools.__file__)
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    first, *lines = done.stderr.splitlines()
    assert first == "error: tools of `make exports` are missing" and lines[-1].startswith("hint: ")
    assert lines[:3] == [
        "  vllm: not in /nowhere/python, which SKIPSEARCH_VLLM_PYTHON names",
        "  llama_cpp: SKIPSEARCH_LLAMA_PYTHON names no interpreter",
        "  lmms_eval: SKIPSEARCH_LMMS_PYTHON names no interpreter",
    ]


def test_an_interpreter_with_the_module_is_enough(monkeypatch):
    monkeypatch.setattr(find_tools, "PACKAGES", ("json",))
    monkeypatch.setattr(find_tools, "INTERPRETERS", {"SOME_PYTHON": "json"})
    monkeypatch.setenv("SOME_PYTHON", sys.executable)
    assert find_tools.missing() == []
