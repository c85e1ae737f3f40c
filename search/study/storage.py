"""The database of a study: a SQLite file that Optuna writes, and how its trials are read back as plain values."""

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from ...evaluators.base import Measurement
from ...policies.errors import StudyError
from ...policies.policy import Policy
from ...policies.wording import visible
from ..space.space import Space
from ..trial.trial_result import TrialResult
from .damage import hint_for, refuse_damage, tables
from .samplers import quiet

DATABASE = "study.db"
# How many seconds to wait for another process that holds the database: one that begins, or ends, on a busy machine.
PATIENCE = 60.0
UNWRITABLE = (sqlite3.Error, sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)
UNREADABLE = (sqlite3.DatabaseError, sqlalchemy.exc.DatabaseError, optuna.exceptions.OptunaError, RuntimeError)


def storage(path: Path) -> optuna.storages.RDBStorage:
    """The database of a study, to write to; it is made if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return stored(partial(writing, path.absolute()), sqlalchemy.pool.QueuePool)


def stored(creator: Callable[[], sqlite3.Connection], pool: type[sqlalchemy.pool.Pool]) -> optuna.storages.RDBStorage:
    """Optuna's storage over connections of our own, so that a path may hold what means something in a URL."""
    return optuna.storages.RDBStorage("sqlite://", {"creator": creator, "poolclass": pool})


def writing(path: Path) -> sqlite3.Connection:
    """A connection to write by.

    Write-ahead logging takes a write from tens of milliseconds to under one, and survives a kill at any instant.
    """
    connection = sqlite3.connect(path, timeout=PATIENCE, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def reading(path: Path) -> sqlite3.Connection:
    """A connection to read by."""
    # In somebody else's folder SQLite cannot put the lock of a reader beside the file, and where none is, needs none.
    mode = "rw" if os.access(path.parent, os.W_OK) or Path(f"{path}-wal").exists() else "ro&immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=PATIENCE)


def check_whole(path: Path) -> None:
    """Refuse a database that is damaged, or that is none of Optuna's; one without tables was not begun yet.

    Raises:
        StudyError: with what is damaged.
    """
    with closing(copy_of(path)) as memory:
        if tables(memory):
            refuse_damage(memory, path)


def copy_of(path: Path) -> sqlite3.Connection:
    """The database as it stands, in memory.

    Raises:
        StudyError: it cannot be read, or another program holds it.
    """
    memory = sqlite3.connect(":memory:", check_same_thread=False)
    try:
        with closing(reading(path)) as file:
            # Python's copying waits for ever for who holds the file; a transaction of our own waits so long only.
            file.execute("BEGIN")
            file.execute("SELECT count(*) FROM sqlite_master").fetchone()
            file.backup(memory)
    except sqlite3.Error as cause:
        if "locked" in str(cause) or "busy" in str(cause):
            hint = "close the program that holds it: a viewer, a copy or backup that runs, or one that hangs"
            found = f"{cause}, for {PATIENCE:g} s"
            raise StudyError(f"another program holds {path}", [found], hint) from None
        what = "is not a study's database" if "not a database" in str(cause) else "is damaged"
        raise StudyError(f"{path} {what}", [str(cause)], hint_for(path)) from None
    return memory


def copied(path: Path) -> optuna.storages.RDBStorage:
    """The database of a study as it stands, in memory.

    Optuna makes tables where it misses some, also to read: a search that begins at that moment would find them made.

    Raises:
        StudyError: it is damaged, is no study's, or another program holds it.
    """
    memory = copy_of(path)
    if tables(memory):
        refuse_damage(memory, path)
    return stored(lambda: memory, sqlalchemy.pool.StaticPool)


def open_study(path: Path) -> optuna.Study:
    """A study as it stands at one instant, to read from; whoever writes to it meanwhile does not notice.

    Raises:
        StudyError: there is none.
    """
    quiet()
    if not path.exists():
        raise StudyError(f"{path.parent} holds no study", [f"expected {path}"], "`skipsearch ls` lists the studies")
    try:
        database = copied(path)
        names = optuna.get_all_study_names(database)
        found = [optuna.load_study(study_name=name, storage=database) for name in names]
    except UNREADABLE as cause:
        raise StudyError(f"{path} is not a study's database", [str(cause).splitlines()[0]]) from None
    if not found or "space" not in found[0].user_attrs:
        hint = "begin it again: remove the folder, or go on with the same command and `--resume`"
        raise StudyError(f"{path} holds no search that skipsearch began", [f"studies in it: {len(found)}"], hint)
    return found[0]


def space_of(path: Path) -> Space:
    """The space that a study was made for, its paths absolute."""
    return Space.model_validate(open_study(path).user_attrs["space"])


def commit_of(path: Path) -> str | None:
    """The commit of the model on the hub that a study began with; None of a local one, or before it began."""
    with closing(copy_of(path)) as memory:
        if "study_user_attributes" not in tables(memory):
            return None
        found = memory.execute("SELECT value_json FROM study_user_attributes WHERE key = 'facts'").fetchone()
    commit: str | None = json.loads(found[0]).get("commit") if found else None
    return commit


def progress_of(path: Path) -> str:
    """How far a study is, in a few words."""
    try:
        study = open_study(path)
    except StudyError as cause:
        return cause.what
    done = [trial.user_attrs for trial in study.get_trials(deepcopy=False) if "seconds" in trial.user_attrs]
    own = sum("shared_from" not in attrs and "continues" not in attrs for attrs in done)
    return f"{own} of {study.user_attrs['space']['search']['trials']} trials"


def trial_record(trial: FrozenTrial, study_attrs: Mapping[str, Any] = MappingProxyType({})) -> TrialResult:
    """Read a trial from its attributes, and what its policy measured on the report split from those of the study."""
    attrs = trial.user_attrs
    policy = Policy.model_validate(json.loads(attrs["policy"]))
    states = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "complete", TrialState.FAIL: "failed"}
    return TrialResult(
        number=trial.number,
        state=states.get(trial.state, "running"),  # type: ignore[arg-type]
        policy=policy,
        search=measurements_from(attrs.get("measurements")),
        report={
            **measurements_from(study_attrs.get(f"times:{attrs['fingerprint']}")),
            **measurements_from(study_attrs.get(f"report:{attrs['fingerprint']}")),
        },
        violations=dict(trial.constraints),
        failure=shown(attrs.get("failure")),
        early_stopped=attrs.get("dropped"),
        estimates=measurements_from(attrs.get("estimates")),
        seconds=attrs.get("seconds", {}),
        worker=attrs.get("worker"),
        duplicate_of=attrs.get("shared_from"),
        continues=attrs.get("continues"),
        baseline=attrs.get("rule"),
        is_probe=attrs.get("probe", False),
        predicted=tuple(attrs.get("predicted", ())),
        traceback=shown(attrs.get("traceback")),
        setbacks=tuple(entry["failure"] for entry in json.loads(study_attrs.get(setback_key(trial.number), "[]"))),
    )


def shown(text: str | None) -> str | None:
    """What an exception said, which may hold anything, as it can be shown."""
    return None if text is None else visible(text)


def setback_key(number: int) -> str:
    """Where a study keeps how a trial failed that was to answer more; the trial itself stays as it was."""
    return f"setbacks:{number}"


def folded(records: Iterable[TrialResult]) -> list[TrialResult]:
    """Each trial once, by its first number: one that was set aside and gone on with as it stands by now."""
    found: dict[int, TrialResult] = {}
    for record in records:
        first = record.number if record.continues is None else record.continues
        if first != record.number and record.state == "failed":
            continue  # What the trial had measured before counts as ever.
        found[first] = record if first == record.number else replace(record, number=first)
    return list(found.values())


def measurements_from(text: str | None) -> dict[str, Measurement]:
    """Measurements as they stand in an attribute."""
    return {name: Measurement(**entry) for name, entry in json.loads(text or "{}").items()}


def measurements_text(found: Mapping[str, Measurement]) -> str:
    """Measurements as an attribute holds them."""
    return json.dumps({name: asdict(entry) for name, entry in found.items()})


def is_own(trial: FrozenTrial) -> bool:
    """True where a trial has ended by itself, and shares no measurements."""
    return trial.state.is_finished() and "seconds" in trial.user_attrs and "shared_from" not in trial.user_attrs


def running_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """Wall-clock seconds in which some trial ran: trials that ran at the same time count once.

    Args:
        spans: Beginning and end of every trial, in seconds.
    """
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


class Ledger:
    """The trials of a study as plain values; only those that have changed are read anew.

    Args:
        study: The study.
    """

    def __init__(self, study: optuna.Study) -> None:
        self.study = study
        self._read: dict[int, tuple[FrozenTrial, TrialResult]] = {}
        self._seen: list[FrozenTrial] = []
        self._open: list[int] = []
        self._records: dict[int, TrialResult] = {}
        self._ended: dict[int, FrozenTrial] = {}

    def record(self, number: int) -> TrialResult:
        """A trial that was asked for, by its number."""
        return self.read(self.frozen(number))

    def records(self) -> list[TrialResult]:
        """Every trial that was asked for, by number, without the figures of the report split."""
        self._follow()
        return [self._records[number] for number in sorted(self._records)]

    def _follow(self) -> None:
        """Take note of what has changed: trials that are new, and those that were under way."""
        before, self._seen = self._seen, self.study.get_trials(deepcopy=False)
        numbers = [*self._open, *range(len(before), len(self._seen))]
        self._open = [number for number in numbers if not self._seen[number].state.is_finished()]
        changed = [self._seen[number] for number in numbers]
        asked = [self.read(trial) for trial in changed if "policy" in trial.user_attrs]
        self._records |= {record.number: record for record in folded(asked)}
        self._ended |= {trial.number: trial for trial in changed if is_own(trial)}

    def _spent(self) -> list[FrozenTrial]:
        self._follow()
        return [trial for trial in self._ended.values() if trial.user_attrs.keys().isdisjoint({"continues", "probe"})]

    def measured(self) -> int:
        """How much of the budget is spent: trials that finished or failed by themselves, without duplicates."""
        return len(self._spent())

    def ended(self) -> list[TrialResult]:
        """Trials that ended by themselves, and each time that one answered more, in the order in which they ended."""
        self._follow()
        numbered = sorted((str(trial.datetime_complete), trial.number) for trial in self._ended.values())
        return [self.record(number) for _, number in numbered]

    def spent_seconds(self) -> float:
        """How long trials ran so far, apart from what an interruption lasted: those at the same time count once."""
        spans = []
        self._follow()
        for trial in self._ended.values():
            if trial.datetime_start is None or trial.datetime_complete is None:
                continue
            begin, end = trial.datetime_start.timestamp(), trial.datetime_complete.timestamp()
            # What was told after an interruption had ended before it; what was gone on with has the seconds of both.
            own = end - begin if "continues" in trial.user_attrs else trial.user_attrs["seconds"].get("total", 0.0)
            spans.append((begin, begin + own))
        return running_seconds(spans)

    def frozen(self, number: int) -> FrozenTrial:
        """Optuna's own trial, by its number."""
        return self.study.get_trials(deepcopy=False)[number]

    def read(self, trial: FrozenTrial) -> TrialResult:
        """A trial of Optuna's as a plain value."""
        # Optuna replaces a trial that changes.
        before, record = self._read.get(trial.number, (None, None))
        if record is None or before is not trial:
            record = trial_record(trial)
            self._read[trial.number] = trial, record
        return record
