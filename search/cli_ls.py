"""The command `skipsearch ls`, which loads neither Optuna nor torch."""

import argparse
import json

from ..policies.wording import escape_invisible
from .places import shipped_models, study_databases
from .study.database import progress_of


def ls(options: argparse.Namespace) -> int:
    """`skipsearch ls`."""
    spaces = shipped_models()
    studies = {str(file.parent): progress_of(file) for file in study_databases(options.out)}
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
