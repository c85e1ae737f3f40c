"""Reads the studies of a comparison."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ....policies.errors import UsageError
from ...places import DATABASE
from ...space.space import Space
from ...study.storage import open_study
from ...study.trial_cache import read_trials
from ...trial.pareto import front_trials
from ..load_study import record_of
from ..recovery_outcome import with_trained
from ..study_record import StudyRecord, policy_files


@dataclass(frozen=True)
class ComparedStudy:
    """One study of a comparison.

    Attributes:
        name: Its name, of studies of several models that of the model; its folder where two studies have one name.
        folder: Its folder, as given.
        record: The study, without an assessment.
        space: Its space.
        files: By trial of its own front, the name of the policy file.
    """

    name: str
    folder: Path
    record: StudyRecord
    space: Space
    files: Mapping[int, str]

    @property
    def model(self) -> tuple[Any, ...]:
        """What is equal for studies of one model: name (of a folder without its place), commit, layers, parameters."""
        environment = self.record.environment
        workers = environment.get("workers") or [{}]
        commit = environment.get("commit") or environment.get("revision")
        name = self.space.model.id
        local = Path(name).name if Path(name).is_absolute() else name
        return local, commit, self.record.num_layers, workers[0].get("parameters")


def load_studies(folders: Sequence[Path]) -> list[ComparedStudy]:
    """Read studies, each from a copy of its database at one instant.

    Raises:
        UsageError: fewer than two studies are given, or one of them twice.
        StudyError: one cannot be read, or its dense trial has not finished.
    """
    if len(folders) < 2:
        raise UsageError("compare takes two studies or more", [f"found {len(folders)}"], "`skipsearch ls` lists them")
    paths = [os.path.realpath(folder) for folder in folders]
    twice = [str(folder) for place, folder in enumerate(folders) if paths[place] in paths[:place]]
    if twice:
        raise UsageError("a study is given twice", twice, "name each study once")
    found = []
    for folder in folders:
        study = open_study(folder / DATABASE)
        searched = record_of(study.study_name, study.user_attrs, read_trials(study), folder)
        record = with_trained(searched, study.user_attrs, folder)
        space = Space.model_validate(study.user_attrs["space"])
        found.append(ComparedStudy(record.name, folder, record, space, policy_files(record)))
    above = {PurePosixPath(study.name).parent for study in found}
    if len(above) == 1:
        found = [replace(study, name=PurePosixPath(study.name).name) for study in found]
    names = [study.name for study in found]
    return [study if names.count(study.name) == 1 else replace(study, name=str(study.folder)) for study in found]


def on_axes(study: ComparedStudy, names: Sequence[str]) -> ComparedStudy:
    """A study with some of its objectives alone, and the front by these, within its own constraints."""
    objectives = {name: study.record.objectives[name] for name in names}
    front = front_trials(study.record.trials, objectives)
    return replace(study, record=replace(study.record, objectives=objectives, front=front))
