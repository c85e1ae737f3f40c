"""Checks of the models that a space names."""

import re
from pathlib import Path

from ....policies.document import Document, KeyPath, Problem
from ..checks import exists, is_explicit_path
from ..space import Space
from .named_model import NAME


def model_problems(document: Document, space: Space, folder: Path) -> list[Problem]:
    """A model id that is empty, or a relative path without a folder; several models that share a name.

    Args:
        document: The file of the space.
        space: The space.
        folder: The folder of the file.
    """
    if not space.models:
        return id_problems(document, ("model", "id"), space.model.id, folder)
    both = [document.problem(("models",), "found beside `model`; give one of them")] if space.model.id else []
    found = [
        problem
        for place, model in enumerate(space.models)
        for problem in id_problems(document, ("models", place, "id"), model.id, folder)
    ]
    return both + (found or label_problems(document, [model.label for model in space.models]))


def id_problems(document: Document, path: KeyPath, name: str, folder: Path) -> list[Problem]:
    """What is wrong with the id of one model, at its place in the file."""
    if not name:
        return [document.problem(path, "found '', expected a hub id, the path of a folder, or s3://bucket/folder")]
    if is_explicit_path(name) and not exists(folder / name):
        return [document.problem(path, f"there is no folder {(folder / name).absolute()}")]
    return []


def label_problems(document: Document, labels: list[str]) -> list[Problem]:
    """Names of models that are equal, or that cannot name the folder of a study."""
    problems = []
    for place, label in enumerate(labels):
        if label in labels[:place]:
            found = f"models[{labels.index(label)}] is called {label!r} too; give one of them another `name`"
            problems.append(document.problem(("models", place), found))
        elif not re.fullmatch(NAME, label):
            found = f"{label!r} cannot name a folder; give the model a `name` of letters and digits"
            problems.append(document.problem(("models", place), found))
    return problems
