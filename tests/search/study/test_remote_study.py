"""A study in a database that a URL names: searched, resumed, read, refused; no password is stored or printed."""

import asking
import pytest
import searching
from postgres import PASSWORD

from skipsearch.policies.errors import RunError, SpaceError, StudyError
from skipsearch.search.places import DATABASE, STORAGE
from skipsearch.search.run import database_errors, lock_study
from skipsearch.search.space.load import load_space
from skipsearch.search.study.remote import remote_study
from skipsearch.search.study.remote.address import Address, progress_at, read_address, study_exists
from skipsearch.search.study.remote.remote_study import lock_remote, open_url
from skipsearch.search.study.storage import open_study


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return searching.tiny_space(tmp_path_factory.mktemp("space"))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/studies.db"
    return request.getfixturevalue("server").new_url()


def told(study):
    return [(trial.number, trial.state, trial.values, trial.params) for trial in study.trials]


def test_a_study_at_a_url_is_that_of_a_folder(path, tmp_path, url):
    """The same policies in the same order, also after an interruption; and the same is read."""
    whole = asking.spend(asking.open_study(path, tmp_path / "whole"))
    first = asking.spend(asking.open_study(path, tmp_path / "cut", study__storage=url), stop_after=5)
    assert progress_at(Address(url, "tiny")) == "5 of 12 trials"
    rest = asking.spend(asking.open_study(path, tmp_path / "cut", resume=True, study__storage=url))
    assert first + rest == whole
    read, other = (open_study(tmp_path / name / DATABASE) for name in ("cut", "whole"))
    assert told(read) == told(other)
    assert {*read.user_attrs} == {*other.user_attrs}
    assert progress_at(read_address(tmp_path / "cut")) == "12 of 12 trials"
    assert not (tmp_path / "cut" / DATABASE).exists()
    read.set_user_attr("mine", 1)
    assert "mine" not in open_study(tmp_path / "cut" / DATABASE).user_attrs


def test_studies_of_one_database_are_told_apart_by_name(path, tmp_path, url):
    asking.spend(asking.open_study(path, tmp_path / "a", study__storage=url), stop_after=2)
    with pytest.raises(StudyError, match="already holds a study called tiny") as said:
        asking.open_study(path, tmp_path / "b", study__storage=url)
    assert "--name" in said.value.hint and PASSWORD not in str(said.value)
    with pytest.raises(StudyError, match="made for another space"):
        asking.open_study(path, tmp_path / "b", resume=True, study__storage=url, search__seed=9)
    # Another folder, as on another machine, goes on with the same study.
    assert asking.spend(asking.open_study(path, tmp_path / "b", resume=True, study__storage=url), stop_after=1)
    assert progress_at(Address(url, "tiny")) == "3 of 12 trials"
    assert not study_exists(Address(url, "other"))


def test_a_study_of_another_program_is_left_alone(path, tmp_path, url):
    import optuna

    foreign = optuna.create_study(study_name="tiny", storage=open_url(url))
    foreign.ask()
    with pytest.raises(StudyError, match="is not of skipsearch"):
        asking.open_study(path, tmp_path, resume=True, study__storage=url)
    assert len(foreign.trials) == 1
    assert "holds no search" in progress_at(Address(url, "tiny"))


def test_one_search_at_a_time(url, tmp_path, monkeypatch):
    """The lock is that of the study, whatever the folder."""
    monkeypatch.setattr(remote_study, "LOCK_WAIT", 0.2)
    address = Address(url, "tiny")
    with lock_study(tmp_path / "a", address):
        with pytest.raises(StudyError, match="another search is writing to"), lock_study(tmp_path / "b", address):
            pass
        with lock_remote(Address(url, "other")):
            pass
    with lock_study(tmp_path / "b", address):
        pass


def test_a_folder_and_a_space_that_name_two_places(path, tmp_path, url):
    asking.open_study(path, tmp_path / "file")
    asking.open_study(path, tmp_path / "url", study__storage=url)
    for folder, given in (("file", {"study__storage": url}), ("url", {})):
        for resume in (False, True):
            with pytest.raises(StudyError, match="at another place than the space says"):
                asking.open_study(path, tmp_path / folder, resume=resume, **given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("postgresql://me:secret@host/db", "found a password"),
        ("postgresql://host/db?user=me&password=secret", "found a password"),
        ("postgresql://me:sec/secret@host/db", "cannot be read"),
        ("mysql+pymysql://me@host/db", "text columns hold 64 KiB"),
        ("redis://host", "journal cannot write"),
        ("sqlite://", "found no file"),
        ("sqlite:///${HOME}/x.db", "found no file"),
        ("oracle://me@host/db", "found no database"),
        ("studies.db", "found no database"),
    ],
)
def test_urls_that_are_refused(path, given, said):
    with pytest.raises(SpaceError, match=said) as found:
        load_space(str(path), {"study.storage": f"'{given}'"})
    assert "secret" not in str(found.value) and "study.storage" in str(found.value)
    with pytest.raises(SpaceError) as found:  # The key is missing.
        load_space(str(path), {"study": f"'{given}'"})
    assert "secret" not in str(found.value)


def test_servers_that_cannot_be_used(server, path, tmp_path, monkeypatch):
    def said(url):
        with pytest.raises(StudyError) as found:
            asking.open_study(path, tmp_path, study__storage=f"'{url}'")
        assert PASSWORD not in str(found.value)
        return str(found.value)

    assert "start the server" in said(server.url().replace(str(server.port), "1"))
    assert "createdb" in said(server.url("nowhere"))
    assert "environment variable PG_NONE is not set" in said(server.url().replace("PG_SECRET", "PG_NONE"))
    assert 'pip install "pg8000"' in said(server.url().replace("://", "+pg8000://"))
    monkeypatch.setenv("PG_URL", "mysql://me@host/db")
    assert "holds no URL of a server" in said("${PG_URL}")
    monkeypatch.setenv("PG_SECRET", "guessed")
    assert "password authentication failed" in said(server.url()) and "~/.pgpass" in said(server.url())
    assert not (tmp_path / STORAGE).exists()


def test_a_server_that_is_gone_ends_the_search_and_costs_no_trial(server, path, tmp_path):
    url, folder = server.new_url(), tmp_path / "s"
    whole = asking.spend(asking.open_study(path, tmp_path / "whole"))
    study = asking.open_study(path, folder, study__storage=url)
    first = asking.spend(study, stop_after=4)
    server.stop()
    with pytest.raises(RunError, match="cannot be written") as said, database_errors(folder, Address(url, "tiny")):
        asking.spend(study)
    assert "go on with `--resume`" in said.value.hint and PASSWORD not in str(said.value)
    with pytest.raises(StudyError, match="cannot be used"):
        open_study(folder / DATABASE)
    server.start()
    rest = asking.spend(asking.open_study(path, folder, resume=True, study__storage=url))
    assert first + rest == whole
    study = asking.open_study(path, folder, resume=True, study__storage=url, search__trials=14)
    server.stop()
    server.start()  # Between two writes, a restart is not noticed.
    assert asking.spend(study)
