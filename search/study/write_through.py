"""The database of a study as the process has it that alone writes to it.

A search asks for all trials many times a trial, and every one that runs would be read from the database again, with all
its parameters: with 64 workers and 80 layers that takes longer than everything else.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC
from typing import Any

import sqlalchemy
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import sqlite

# Where Optuna keeps what is known of a trial; it has one entry of a kind and name.
PARAMETERS, USER, SYSTEM = "trial_params", "trial_user_attributes", "trial_system_attributes"
TRIALS = sqlalchemy.table(
    "trials",
    *map(sqlalchemy.column, ("study_id", "number", "state")),
    sqlalchemy.column("datetime_start", sqlalchemy.DateTime),
)
NAMES = {PARAMETERS: "param_name", USER: "key", SYSTEM: "key"}


class WriteThrough(InMemoryStorage):
    """Reads the study once; from then on reads come from memory, and what is written goes to the database too.

    Parameters and attributes of a trial are written together, before its state changes or where `write` is called: one
    commit takes longer than all of them, and a trial that was killed meanwhile has all of them or none.

    Args:
        database: The database.
        name: The study's name.
    """

    def __init__(self, database: RDBStorage, name: str) -> None:
        super().__init__()
        self._database, self._name = database, name
        self._row = database.get_study_id_from_name(name)
        self._unwritten: defaultdict[int, defaultdict[str, list[dict[str, Any]]]]
        self._unwritten = defaultdict(lambda: defaultdict(list))
        study = super().create_new_study(database.get_study_directions(self._row), name)
        for key, value in database.get_study_user_attrs(self._row).items():
            super().set_study_user_attr(study, key, value)
        for key, value in database.get_study_system_attrs(self._row).items():
            super().set_study_system_attr(study, key, value)
        trials = database.get_all_trials(self._row, deepcopy=False)
        self._rows = [trial._trial_id for trial in trials]  # By the number here, which counts from 0, theirs.
        for trial in trials:
            super().create_new_trial(study, trial)

    def __reduce__(self) -> tuple[Any, ...]:
        """Everything stands in the database: Ray Tune pickles a search after every trial."""
        return type(self), (self._database, self._name)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Write an attribute of the study."""
        self._database.set_study_user_attr(self._row, key, value)
        super().set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Write what Optuna keeps with the study."""
        self._database.set_study_system_attr(self._row, key, value)
        super().set_study_system_attr(study_id, key, value)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Begin a trial, or add one with all that it is."""
        if template_trial is not None:
            self._rows.append(self._database.create_new_trial(self._row, template_trial))
            return super().create_new_trial(study_id, template_trial)
        # Optuna would lock the study and count its trials, for others may write; that takes four times as long.
        trial_id = super().create_new_trial(study_id)
        begun = self.get_trial(trial_id).datetime_start
        # Optuna writes times of Greenwich, without saying so.
        written = begun and begun.astimezone(UTC).replace(tzinfo=None)
        told = {"study_id": self._row, "number": len(self._rows), "state": TrialState.RUNNING.name}
        with self._database.engine.begin() as connection:
            added = connection.execute(sqlalchemy.insert(TRIALS), {**told, "datetime_start": written})
        self._rows.append(added.lastrowid)
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Keep a parameter, to be written with the others."""
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        told = {"param_value": param_value_internal, "distribution_json": distribution_to_json(distribution)}
        self._later(PARAMETERS, trial_id, param_name, told)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Write the state of a trial."""
        self.write(trial_id)
        changed = self._database.set_trial_state_values(self._rows[trial_id], state, values)
        return changed and super().set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Write what a trial reports meanwhile."""
        self._database.set_trial_intermediate_value(self._rows[trial_id], step, intermediate_value)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Keep an attribute of a trial, to be written with the others."""
        super().set_trial_user_attr(trial_id, key, value)
        self._later(USER, trial_id, key, {"value_json": json.dumps(value)})

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Keep what Optuna notes of a trial, to be written with the others."""
        super().set_trial_system_attr(trial_id, key, value)
        self._later(SYSTEM, trial_id, key, {"value_json": json.dumps(value)})

    def write(self, trial_id: int) -> None:
        """Write the parameters and attributes of a trial that were not written yet."""
        if trial_id not in self._unwritten:
            return
        with self._database.engine.begin() as connection:
            for table, rows in self._unwritten.pop(trial_id).items():
                insert = sqlite.insert(sqlalchemy.table(table, *map(sqlalchemy.column, rows[0])))
                told = {name: insert.excluded[name] for name in rows[0]}
                connection.execute(insert.on_conflict_do_update(["trial_id", NAMES[table]], set_=told), rows)

    def _later(self, table: str, trial_id: int, name: str, told: dict[str, Any]) -> None:
        self._unwritten[trial_id][table].append({"trial_id": self._rows[trial_id], NAMES[table]: name, **told})
