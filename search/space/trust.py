"""What a space, which may come from anywhere, may not do by itself: run code, or read weights that can run code."""

import re
import site
import sysconfig
from argparse import Namespace
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ...policies.errors import SpaceError
from .space import Space

FUNCTION = re.compile(r"!function\s+([\w.]+)")
INCLUDE = re.compile(r"^include:\s*['\"]?([^'\"\s]+)", re.MULTILINE)


def refuse_untrusted(space: Space, options: Namespace, given: Collection[str]) -> None:
    """Refuse what only the one who types the command may ask for.

    Args:
        space: The space, its paths absolute.
        options: The command line, which has `trust_task_code`.
        given: Keys of the space that the command line set.

    Raises:
        SpaceError: naming what would run.
    """
    if space.model.trust_remote_code and "model.trust_remote_code" not in given:
        found = f"model {space.model.id} with model.trust_remote_code, which runs code that comes with it"
        hint = "read that code, then say it on the command line: `--set model.trust_remote_code=true`"
        raise SpaceError("the space asks to run code of its model", [found], hint)
    if space.model.weights == "any" and "model.weights" not in given:
        hint = "convert them to safetensors, or say it on the command line: `--set model.weights=any`"
        found = f"model {space.model.id} with model.weights any: a pickle can run code when it is read"
        raise SpaceError("the space asks for weights that are no safetensors", [found], hint)
    code = [line for task in task_files(space.evaluate) for line in functions(task, set())]
    if code and not options.trust_task_code:
        hint = "read these functions, then add `--trust-task-code`"
        raise SpaceError("task files run code that comes from no installed package", [*dict.fromkeys(code)], hint)


def task_files(value: Any) -> Iterator[Path]:
    """Every YAML file that options of evaluators name."""
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from task_files(entry)
    elif isinstance(value, str) and value.endswith((".yaml", ".yml")) and Path(value).is_file():
        yield Path(value)


def functions(task: Path, seen: set[Path]) -> Iterator[str]:
    """The functions that a task file names, and those that files name which it includes, one line each."""
    path = task.resolve()
    if path in seen or is_installed(path):
        return
    seen.add(path)
    text = path.read_text(encoding="utf-8", errors="replace")
    yield from (f"{path}: {name}" for name in FUNCTION.findall(text))
    for name in INCLUDE.findall(text):
        if (path.parent / name).is_file():
            yield from functions(path.parent / name, seen)


def is_installed(path: Path) -> bool:
    """True for a file of skipsearch or of another installed package."""
    folders = [Path(__file__).parents[2] / "spaces", *map(Path, site.getsitepackages())]
    folders += [Path(sysconfig.get_paths()[key]) for key in ("purelib", "platlib")]
    return any(path.is_relative_to(folder.resolve()) for folder in folders)
