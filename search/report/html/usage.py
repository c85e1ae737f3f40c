"""How a policy of the front is used: commands that a reader can copy, as values for `policies.html`."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from ...analysis.study_record import StudyRecord
from ...trial.trial_result import TrialResult
from ..folder import POLICIES, exported


@dataclass(frozen=True)
class Usage:
    """One policy.

    Attributes:
        file: Where its file is, or is to be written.
        shell: The command that measures it.
        python: The line that puts it into a model.
        document: The policy itself, where it has no file yet; else empty.
    """

    file: str
    shell: str
    python: str
    document: str = ""


def usage(record: StudyRecord, trial: TrialResult, file: str, folder: Path, is_running: bool) -> Usage:
    """The commands that use a policy.

    While the search runs, its front changes and has no files, since a command that was copied a minute ago must not
    measure another policy. The page then holds the policy itself, under a name that stays.

    Args:
        record: The study.
        trial: The trial of the policy.
        file: Its name among the study's policies.
        folder: The study's folder, as given on the command line.
        is_running: True while the search runs.
    """
    path = str(folder / POLICIES / (f"trial-{trial.number}.yaml" if is_running else file))
    return Usage(
        file=path,
        shell=shlex.join(["skipsearch", "eval", path]),
        python=f"skipsearch.apply_policy(model, skipsearch.Policy.load({path!r}))",
        document=exported(record, trial).to_yaml() if is_running else "",
    )
