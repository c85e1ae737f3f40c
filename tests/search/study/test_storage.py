"""A study's database is read without a trace: reading disturbs no process that writes to it, or begins to."""

import os
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import asking
import pytest
import searching

from skipsearch.policies.errors import StudyError
from skipsearch.search.places import DATABASE
from skipsearch.search.study.database import progress_of
from skipsearch.search.study.storage import open_storage, open_study
from skipsearch.search.study.study import SearchStudy

LAYERS = 4


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return searching.tiny_space(tmp_path_factory.mktemp("space"))


def begun(path, database):
    return SearchStudy(database, "tiny", searching.loaded(path).space, LAYERS)


def test_looking_at_what_is_no_study_yet_makes_nothing_in_it(tmp_path):
    database = tmp_path / DATABASE
    database.touch()
    for _ in range(2):
        with pytest.raises(StudyError, match="holds no search that skipsearch began"):
            open_study(database)
    assert database.read_bytes() == b"" and os.listdir(tmp_path) == [DATABASE]


def test_a_search_that_begins_is_not_disturbed_by_a_reader(path, tmp_path):
    """Optuna makes its tables one by one; a reader that made the next of them would end the search."""
    ended = threading.Event()

    def read(databases):
        looks = 0
        while not ended.is_set():
            looks += len([progress_of(database) for database in databases if database.exists()])
            time.sleep(0.001)
        return looks

    databases = [tmp_path / str(number) / DATABASE for number in range(4)]
    with ThreadPoolExecutor() as readers:
        looks = readers.submit(read, databases)
        try:
            studies = [begun(path, database) for database in databases]
        finally:
            ended.set()
    assert looks.result() > 0
    assert all(study.ask().policy.is_dense for study in studies)


def test_a_study_that_is_read_stays_as_it_was_at_that_instant(path, tmp_path):
    written = begun(path, tmp_path / DATABASE)
    read = open_study(tmp_path / DATABASE)
    before = len(read.trials)
    read.set_user_attr("mine", 1)
    written.enqueue_random(())
    assert len(read.trials) == before == len(written.study.trials) - 1
    assert "mine" not in written.study.user_attrs


def test_half_made_tables_are_no_study_and_can_be_gone_on_with(path, tmp_path):
    database = tmp_path / DATABASE
    engine = open_storage(database).engine
    with engine.begin() as connection:
        for table in ("alembic_version", "version_info", "trial_heartbeats", "trial_values"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
    assert "holds no search" in progress_of(database)
    SearchStudy(database, "tiny", searching.loaded(path).space, LAYERS, resume=True)
    assert progress_of(database) == "0 of 12 trials"


def test_a_folder_may_have_any_name(path, tmp_path):
    database = tmp_path / "50% {of}? #1" / DATABASE
    begun(path, database)
    assert database.exists() and progress_of(database) == "0 of 12 trials"


def test_a_study_in_a_folder_of_somebody_else_is_read(path, tmp_path, monkeypatch):
    begun(path, tmp_path / DATABASE).study._storage.remove_session()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    assert progress_of(tmp_path / DATABASE) == "0 of 12 trials"


def by_optuna(database):
    """What `progress_of` says, from Optuna's own reading of the study."""
    study = open_study(database)
    ended = [trial.user_attrs for trial in study.get_trials(deepcopy=False) if "seconds" in trial.user_attrs]
    own = sum(not {"shared_from", "continues", "probe"} & {*attrs} for attrs in ended)
    return own, f"{own} of {study.user_attrs['space']['search']['trials']} trials", len(study.trials)


@pytest.mark.parametrize("sampler", ["auto", "random"])
def test_progress_is_what_optuna_counts(sampler, path, tmp_path):
    """At every stage of a search; the random sampler draws policies again, whose measurements are shared."""
    changes = {"search__trials": 30, "search__sampler": sampler, "layers": "[{range: 0-1, choices: [keep, skip_ffn]}]"}
    study = asking.open_study(path, tmp_path, **changes)
    counts = []
    for _ in range(3):
        own, text, every = by_optuna(tmp_path / DATABASE)
        assert progress_of(tmp_path / DATABASE) == text
        counts.append((own, every))
        asking.spend(study, stop_after=3)
    assert counts[0][0] < counts[1][0] <= counts[2][0]
    if sampler == "random":
        assert counts[2][0] < counts[2][1]  # Shared trials are there, and are not counted.


def test_progress_of_what_cannot_be_read(path, tmp_path):
    begun(path, tmp_path / DATABASE).study._storage.remove_session()
    with closing(sqlite3.connect(tmp_path / DATABASE)) as file, file:
        file.execute("UPDATE study_user_attributes SET value_json = '{' WHERE key = 'space'")
    assert "is damaged" in progress_of(tmp_path / DATABASE)
    with closing(sqlite3.connect(tmp_path / "other.db")) as file, file:
        file.execute("CREATE TABLE mine (x)")
    assert "is not a study's database" in progress_of(tmp_path / "other.db")
    (tmp_path / "text.db").write_text("no database at all, but long enough to have a header of its own" * 9)
    assert "is not a study's database" in progress_of(tmp_path / "text.db")
