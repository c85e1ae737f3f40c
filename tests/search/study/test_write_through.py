"""What a search has in memory of its study is what stands in the database."""

import pickle

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import NSGAIISampler
from optuna.trial import TrialState, create_trial

from skipsearch.search.study.remote.remote_study import open_url
from skipsearch.search.study.storage import open_storage
from skipsearch.search.study.write_through import NAMES, PARAMETERS, SYSTEM, USER, WriteThrough

CHOICES = ("keep", "skip")
KIND = {"layer": CategoricalDistribution(CHOICES)}


@pytest.fixture(params=["file", "sqlite", "postgresql"])
def database(request, tmp_path):
    """In the study's folder, and where a URL says."""
    if request.param == "file":
        return open_storage(tmp_path / "study.db")
    if request.param == "sqlite":
        return open_url(f"sqlite:///{tmp_path}/of all/studies.db")
    return open_url(request.getfixturevalue("server").new_url())


@pytest.fixture
def study(database):
    optuna.create_study(study_name="one", storage=database, directions=["maximize", "minimize"])
    sampler = NSGAIISampler(population_size=4, seed=0)
    return optuna.load_study(study_name="one", storage=WriteThrough(database, "one"), sampler=sampler)


def told(trials):
    """What trials say; both clocks are read, one after the other."""
    return [
        (trial.number, trial.state, trial.values, trial.params, trial.distributions, trial.user_attrs,
         trial.system_attrs, trial.intermediate_values, trial.datetime_start is None, trial.datetime_complete is None)
        for trial in trials
    ]  # fmt: skip


def written(database):
    """What another process reads."""
    return optuna.load_study(study_name="one", storage=database)


def spend(study):
    """A little of everything that a search does."""
    study.set_user_attr("facts", {"layers": 3})
    with pytest.warns(ExperimentalWarning):
        study.set_metric_names(["accuracy", "flops"])
    study.enqueue_trial({"layer": "keep"}, user_attrs={"rule": "dense"})
    study.add_trial(
        create_trial(state=TrialState.COMPLETE, values=[1, 2], params={"layer": "skip"}, distributions=KIND)
    )
    for number in range(12):
        trial = study.ask()
        trial.suggest_categorical("layer", CHOICES)
        trial.suggest_float("share", 0.0, 1.0)
        trial.set_constraint("accuracy", -0.5)
        trial.set_user_attr("policy", f"{number}")
        failed = number == 5
        study.tell(trial, None if failed else [number, -number], TrialState.FAIL if failed else TrialState.COMPLETE)
    study.ask().suggest_categorical("layer", CHOICES)
    study.enqueue_trial({"layer": "skip"})


def test_memory_and_database_say_the_same(study, database):
    spend(study)
    running = study.get_trials(states=(TrialState.RUNNING,))[0]
    optuna.Trial(study, running._trial_id).set_user_attr("policy", "first")
    study._storage.write(running._trial_id)
    optuna.Trial(study, running._trial_id).set_user_attr("policy", "last")
    study._storage.write(running._trial_id)
    other = written(database)
    assert told(study.trials) == told(other.trials) and len(other.trials) == 15
    assert study.user_attrs == other.user_attrs and study.metric_names == other.metric_names
    ours, theirs = (one._storage.get_study_system_attrs(one._study_id) for one in (study, other))
    assert ours == theirs and ours


def test_a_study_goes_on_from_what_stands_in_the_database(study, database):
    spend(study)
    again = optuna.load_study(study_name="one", storage=WriteThrough(database, "one"), sampler=study.sampler)
    assert told(again.trials) == told(written(database).trials)
    trial = again.ask()
    assert trial.number == 14 and trial.suggest_categorical("layer", CHOICES) == "skip"
    again.tell(trial, [3.0, 4.0])
    assert told(again.trials) == told(written(database).trials)


def test_a_trial_has_all_that_is_known_or_nothing_where_the_process_is_killed(study, database):
    trial = study.ask()
    trial.suggest_categorical("layer", CHOICES)
    trial.suggest_float("share", 0.0, 1.0)
    trial.set_user_attr("policy", "{}")
    assert written(database).trials[0].params == written(database).trials[0].user_attrs == {}
    study._storage.write(trial._trial_id)
    (found,) = written(database).trials
    assert found.params == trial.params and len(trial.params) == 2 and found.user_attrs == {"policy": "{}"}
    assert found.datetime_start == study.trials[0].datetime_start


def test_optuna_s_tables_have_the_columns_that_are_written_to(database):
    """What is written past Optuna's own code has the columns and the keys that Optuna reads."""
    looked = sqlalchemy.inspect(database.engine)
    given = {PARAMETERS: {"param_value", "distribution_json"}, USER: {"value_json"}, SYSTEM: {"value_json"}}
    for table, more in given.items():
        columns = {column["name"] for column in looked.get_columns(table)}
        own = {"trial_id", NAMES[table], *more}
        assert own <= columns
        needed = {column["name"] for column in looked.get_columns(table) if not column["nullable"]}
        assert needed - own == {looked.get_pk_constraint(table)["constrained_columns"][0]}
        assert {*looked.get_unique_constraints(table)[0]["column_names"]} == {"trial_id", NAMES[table]}
    wanted = {"study_id", "number", "state", "datetime_start"}
    assert wanted <= {column["name"] for column in looked.get_columns("trials")}
    assert database._version_manager.get_current_version() == "v3.2.0.a"


def test_a_copy_reads_the_database(study, database):
    spend(study)
    place = pickle.loads(pickle.dumps(study._storage))
    assert told(place.get_all_trials(0)) == told(written(database).trials)
