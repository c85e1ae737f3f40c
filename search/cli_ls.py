"""The command `skipsearch ls`, which loads neither Optuna nor torch."""

import argparse
import json
from pathlib import Path

from ..policies.errors import StudyError
from ..policies.wording import escape_invisible
from .places import DATABASE, STORAGE, shipped_models, study_folders
from .study.database import progress_of


def ls(options: argparse.Namespace) -> int:
    """`skipsearch ls`."""
    spaces = shipped_models()
    studies = {str(folder): progress_in(folder) for folder in study_folders(options.out)}
    if options.json:
        print(json.dumps({"spaces": spaces, "studies": studies}))
        return 0
    print("spaces")
    for name, model in spaces.items():
        print(f"  {name:<12} {model}")
    print("studies")
    for folder, state in studies.items():
        print(escape_invisible(f"  {folder:<24} {state}"))
    if not studies:
        print(f"  none under {options.out}")
    return 0


def progress_in(folder: Path) -> str:
    """How many of its trials the study of a folder has finished, or why it cannot be read."""
    if not (folder / STORAGE).exists():
        return progress_of(folder / DATABASE)
    from .study.remote.address import progress_at, read_address

    try:
        address = read_address(folder)
    except StudyError as error:
        return error.what
    return "" if address is None else progress_at(address)
