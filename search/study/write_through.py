"""An Optuna storage that reads from memory and writes to memory and to the database.

A search reads all trials several times per proposal. Optuna's cached storage reads every running trial from the
database again, with all its parameters; with 64 workers and 80 layers that takes longer than everything else.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any

import sqlalchemy
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite

from .remote.remote_study import copy_study

# Optuna's tables of a trial's parameters and attributes, and the column that names an entry; names are unique.
PARAMETERS, USER, SYSTEM = "trial_params", "trial_user_attributes", "trial_system_attributes"
NAMES = {PARAMETERS: "param_name", USER: "key", SYSTEM: "key"}
TRIALS = sqlalchemy.Table(
    "trials",
    sqlalchemy.MetaData(),
    sqlalchemy.Column("trial_id", sqlalchemy.Integer, primary_key=True),
    sqlalchemy.Column("study_id", sqlalchemy.Integer),
    sqlalchemy.Column("number", sqlalchemy.Integer),
    sqlalchemy.Column("state", sqlalchemy.Enum(TrialState)),
    sqlalchemy.Column("datetime_start", sqlalchemy.DateTime),
)
INSERTS: Mapping[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}  # those that can update a row


class WriteThrough(InMemoryStorage):
    """Holds a study in memory, and writes every change to its database too.

    The process must be the only one that writes to the study. Parameters and attributes of a trial are written in one
    commit, before the trial's state changes or when `write` is called. One commit takes longer than all their rows, and
    after a kill the database has all of them or none.

    Args:
        database: The database.
        name: The study's name.
    """

    def __init__(self, database: RDBStorage, name: str) -> None:
        super().__init__()
        self._database, self._name = database, name
        self._database_study = database.get_study_id_from_name(name)
        # By trial and table, the rows that are not written yet.
        self._unwritten: defaultdict[int, defaultdict[str, list[dict[str, Any]]]]
        self._unwritten = defaultdict(lambda: defaultdict(list))
        trials = copy_study(database, self._database_study, self, name)
        # In memory, ids of trials count from 0; the list has the ids in the database.
        self._database_trials = [trial._trial_id for trial in trials]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the database alone, because Ray Tune pickles a search after every trial."""
        return type(self), (self._database, self._name)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Write a user attribute of the study."""
        self._database.set_study_user_attr(self._database_study, key, value)
        super().set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Write a system attribute of the study."""
        self._database.set_study_system_attr(self._database_study, key, value)
        super().set_study_system_attr(study_id, key, value)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Start a trial, or add the template as a trial."""
        if template_trial is not None:
            self._database_trials.append(self._database.create_new_trial(self._database_study, template_trial))
            return super().create_new_trial(study_id, template_trial)
        # Optuna would lock the study and count its trials in case another process writes; that takes four times as
        # long.
        trial_id = super().create_new_trial(study_id)
        started = self.get_trial(trial_id).datetime_start
        row = {
            "study_id": self._database_study,
            "number": len(self._database_trials),
            "state": TrialState.RUNNING,
            # Optuna stores UTC without a time zone.
            "datetime_start": started and started.astimezone(UTC).replace(tzinfo=None),
        }
        with self._database.engine.begin() as connection:
            inserted = connection.execute(sqlalchemy.insert(TRIALS).returning(TRIALS.c.trial_id), row)
            self._database_trials.append(inserted.scalar_one())
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Set a parameter of a trial, to be written later."""
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        columns = {"param_value": param_value_internal, "distribution_json": distribution_to_json(distribution)}
        self._write_later(PARAMETERS, trial_id, param_name, columns)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Write the state of a trial, after its parameters and attributes."""
        self.write(trial_id)
        changed = self._database.set_trial_state_values(self._database_trials[trial_id], state, values)
        return changed and super().set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Write an intermediate value of a trial."""
        self._database.set_trial_intermediate_value(self._database_trials[trial_id], step, intermediate_value)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a user attribute of a trial, to be written later."""
        super().set_trial_user_attr(trial_id, key, value)
        self._write_later(USER, trial_id, key, {"value_json": json.dumps(value)})

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a system attribute of a trial, to be written later."""
        super().set_trial_system_attr(trial_id, key, value)
        self._write_later(SYSTEM, trial_id, key, {"value_json": json.dumps(value)})

    def write(self, trial_id: int) -> None:
        """Write the parameters and attributes of a trial that are not written yet, in one commit."""
        if trial_id not in self._unwritten:
            return
        with self._database.engine.begin() as connection:
            for table, rows in self._unwritten.pop(trial_id).items():
                insert = INSERTS[connection.dialect.name](sqlalchemy.table(table, *map(sqlalchemy.column, rows[0])))
                update = {name: insert.excluded[name] for name in rows[0]}
                connection.execute(
                    insert.on_conflict_do_update(index_elements=["trial_id", NAMES[table]], set_=update), rows
                )

    def _write_later(self, table: str, trial_id: int, name: str, columns: dict[str, Any]) -> None:
        row = {"trial_id": self._database_trials[trial_id], NAMES[table]: name, **columns}
        self._unwritten[trial_id][table].append(row)
