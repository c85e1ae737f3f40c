"""The folder of several models' studies: what is made from them, for each alone and for all together."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...policies.errors import StudyError
from ..analysis.study_record import StudyRecord
from ..places import holds_study, model_folders
from ..report.compare.comparison import Comparison, compare_studies
from ..report.compare.page import write_comparison
from ..report.compare.terminal import comparison_data, print_comparison
from ..report.console import Output
from ..report.folder import write_folder
from ..report.terminal import summary_data


@dataclass(frozen=True)
class ModelStudies:
    """The studies of several models.

    Attributes:
        folder: The folder above theirs.
        records: By the name of a model that has been searched, its study.
        missing: The models whose search has not begun.
        comparison: What compares them; None where fewer than two have begun.
    """

    folder: Path
    records: Mapping[str, StudyRecord]
    missing: tuple[str, ...]
    comparison: Comparison | None


def write_models_folder(folder: Path) -> ModelStudies:
    """Write every file that is derived from the databases of several models' studies.

    Raises:
        StudyError: no study has begun, or see `write_folder` and `compare_studies`.
    """
    found = model_folders(folder)
    begun = [own for own in found if holds_study(own)]
    if not begun:
        raise StudyError(f"{folder} holds no study yet", hint="go on with the search: `skipsearch run … --resume`")
    records = {own.name: write_folder(own) for own in begun}
    comparison = compare_studies(begun, leave_out=True) if len(begun) > 1 else None
    if comparison is not None:
        write_comparison(comparison, folder / "report.html")
    return ModelStudies(folder, records, tuple(own.name for own in found if own not in begun), comparison)


def models_data(studies: ModelStudies) -> dict[str, Any]:
    """The results as plain data, for JSON."""
    models = {name: summary_data(record, studies.folder / name) for name, record in studies.records.items()}
    compared = None if studies.comparison is None else comparison_data(studies.comparison)
    return {"folder": str(studies.folder), "models": models, "missing": studies.missing, "comparison": compared}


def print_models(studies: ModelStudies) -> None:
    """Print what compares the models, and where the files of each are."""
    console = Output()
    if studies.comparison is not None:
        print_comparison(studies.comparison)
    lines = [f"{name}: the search has not begun; go on with `skipsearch run … --resume`" for name in studies.missing]
    lines += [f"report of {name} {studies.folder / name / 'report.html'}" for name in studies.records]
    if studies.comparison is not None:
        lines.append(f"report {studies.folder / 'report.html'}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
