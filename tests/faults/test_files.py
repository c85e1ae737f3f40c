"""Studies whose files are damaged, held, or cannot be written; and what a file may not make a command do."""

import hashlib
import json
import shutil
import sqlite3
from argparse import Namespace
from contextlib import closing

import pytest
import searching
import sqlalchemy
from asking import open_study, spend

from skipsearch import Policy
from skipsearch.policies.errors import RunError, SpaceError, StudyError
from skipsearch.search.analysis.load_study import read_record
from skipsearch.search.cli import main
from skipsearch.search.report.folder import write_folder, write_policies
from skipsearch.search.run import check_folder, database_errors, lock_study
from skipsearch.search.space.fingerprint import Digests
from skipsearch.search.space.trust import refuse_untrusted
from skipsearch.search.study import database
from skipsearch.search.study.database import check_whole, progress_of
from skipsearch.search.study.salvage import salvage
from skipsearch.search.study.storage import open_study as read_study

LAST = "WHERE rowid = (SELECT max(rowid) FROM trial_user_attributes WHERE key = 'measurements')"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return searching.tiny_space(tmp_path_factory.mktemp("space"))


@pytest.fixture(scope="module")
def whole(path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies") / "whole"
    study = open_study(path, folder, search__trials=12)
    spend(study)
    study._storage._database.engine.dispose()
    (folder / "space.yaml").write_text("")
    sql(folder, "PRAGMA wal_checkpoint(TRUNCATE)")
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "out" / "study")


def sql(folder, *statements):
    with closing(sqlite3.connect(folder / "study.db", isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def flip(folder, share, count):
    file = folder / "study.db"
    data = bytearray(file.read_bytes())
    at = int(len(data) * share)
    data[at : at + count] = bytes(255 - byte for byte in data[at : at + count])
    file.write_bytes(bytes(data))


def cut(folder):
    file = folder / "study.db"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGE = {
    "half": (cut, "is damaged"),
    "text": (lambda folder: (folder / "study.db").write_text("hello\n" * 99), "is not a study's database"),
    "flipped": (lambda folder: flip(folder, 0.6, 4096), "is damaged"),
    "no JSON": (
        lambda folder: sql(folder, f"UPDATE trial_user_attributes SET value_json = '{{' {LAST}"), "is not JSON",
    ),
    "no JSON inside": (
        lambda folder: sql(folder, f"UPDATE trial_user_attributes SET value_json = '\"{{\"' {LAST}"), "is not JSON",
    ),
    "no UTF-8": (
        lambda folder: sql(folder, f"UPDATE trial_user_attributes SET value_json = CAST(x'22ff22' AS TEXT) {LAST}"),
        "measurements is not UTF-8",
    ),
    "rows gone": (lambda folder: sql(folder, f"DELETE FROM trial_user_attributes {LAST}"), "measurements is missing"),
    "values gone": (lambda folder: sql(folder, "DELETE FROM trial_values WHERE trial_id = 3"), "found 0 values"),
    "a trial gone": (lambda folder: sql(folder, "DELETE FROM trials WHERE number = 5"), "trials up to number"),
    "no space": (
        lambda folder: sql(folder, "DELETE FROM study_user_attributes WHERE key = 'space'"), "'space' is missing",
    ),
    "another's": (lambda folder: other(folder), "is not a study's database"),
}  # fmt: skip


def other(folder):
    (folder / "study.db").unlink()
    sql(folder, "CREATE TABLE x (y)")


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_error_that_names_it_and_changes_nothing(copy, name, capsys):
    damage, told = DAMAGE[name]
    damage(copy)
    before = (copy / "study.db").read_bytes()
    shutil.copytree(copy, copy.with_name("beside"))
    for command in (["report", str(copy)], ["ls", "--out", str(copy.parent)]):
        code = main(command)
        said = capsys.readouterr()
        assert code == (2 if command[0] == "report" else 0)
        assert "Traceback" not in said.err and (code == 0 or told in said.err)
    assert "beside" in said.out
    with pytest.raises(StudyError):
        check_folder(copy, resume=True)
    assert (copy / "study.db").read_bytes() == before


@pytest.mark.parametrize("name", ["no JSON", "no UTF-8", "rows gone", "values gone", "a trial gone", "flipped"])
def test_what_is_whole_can_be_saved(whole, copy, name, capsys):
    DAMAGE[name][0](copy)
    before = (copy / "study.db").read_bytes()
    code = main(["report", "--salvage", str(copy)])
    said = capsys.readouterr()
    if name == "flipped" and code == 2:
        assert "too much of" in said.err or "nothing of" in said.err
        return
    assert code == 0, said.err
    assert (copy / "study.db").read_bytes() == before
    kept, every = read_record(copy.with_name("study-salvaged")), read_record(whole)
    original = {trial.number: trial for trial in every.trials}
    assert kept.trials and all(trial == original[trial.number] for trial in kept.trials)
    assert len(kept.trials) >= len(every.trials) - 1 or name == "flipped"
    assert f"of {len(read_study(whole / 'study.db').trials)} trials, which are intact" in said.err
    assert (copy.with_name("study-salvaged") / "report.html").exists()


def test_nothing_is_salvaged_where_nothing_could_be_read_without(copy):
    sql(
        copy,
        "DELETE FROM study_user_attributes WHERE key = 'space'",
        "DELETE FROM trial_user_attributes WHERE trial_id = 1",
    )
    with pytest.raises(StudyError, match="'space'\n.*dense model's trial"):
        salvage(copy)
    assert not copy.with_name("study-salvaged").exists()


def test_a_salvaged_study_goes_on(path, copy):
    sql(copy, f"DELETE FROM trial_user_attributes {LAST}")
    folder, kept, every = salvage(copy)
    assert kept == every - 1
    study = open_study(path, folder, resume=True, search__trials=12)
    spend(study)
    assert study.budget_used() == 12


def test_a_lock_of_another_program_is_waited_for_and_then_an_error(copy, monkeypatch):
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.2)
    with closing(sqlite3.connect(copy / "study.db", isolation_level=None)) as holder:
        holder.execute("PRAGMA locking_mode = EXCLUSIVE")
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StudyError, match=r"another program holds .*study.db\n  database is locked, for 0.2 s"):
            read_study(copy / "study.db")
        assert "another program holds" in progress_of(copy / "study.db")


def test_a_folder_is_checked_before_a_model_is_loaded(copy, tmp_path, monkeypatch):
    with pytest.raises(StudyError, match="already holds a study"):
        check_folder(copy, resume=False)
    check_folder(copy, resume=True)
    with lock_study(copy), pytest.raises(StudyError, match="another search is writing"):
        check_folder(copy, resume=True)
    (copy / "environment.json").write_text("{")
    with pytest.raises(StudyError, match="is not JSON"):
        check_folder(copy, resume=True)
    monkeypatch.setattr("os.access", lambda place, mode: False)
    with pytest.raises(StudyError, match="no file can be written"):
        check_folder(tmp_path / "new" / "study", resume=False)
    monkeypatch.undo()
    monkeypatch.setattr("shutil.disk_usage", lambda place: Namespace(free=1 << 20))
    with pytest.raises(StudyError, match="is full\n  found 1 MiB free"):
        check_folder(tmp_path / "new" / "study", resume=False)


def test_a_disk_that_fills_up_is_one_line(path, tmp_path):
    """A database that may not grow says the same as one on a full disk."""
    study = open_study(path, tmp_path, search__trials=60)
    spend(study, stop_after=4)

    @sqlalchemy.event.listens_for(study._storage._database.engine, "checkout")
    def no_growth(connection, *_):
        connection.execute("PRAGMA max_page_count = 1")

    with (
        pytest.raises(RunError, match=r"study.db cannot be written\n  database or disk is full\nhint: free some space"),
        database_errors(tmp_path),
    ):
        spend(study)
    check_whole(tmp_path / "study.db")
    assert open_study(path, tmp_path, resume=True, search__trials=60).budget_used() >= 4


def test_a_space_alone_runs_no_code(path, tmp_path):
    asked = Namespace(trust_task_code=False)
    plain = searching.loaded(path).space
    refuse_untrusted(plain, asked, {})
    for key, value in (("trust_remote_code", "true"), ("weights", "any")):
        space = searching.loaded(path, **{f"model__{key}": value}).space
        with pytest.raises(SpaceError, match=f"--set model.{key}={value}"):
            refuse_untrusted(space, asked, {})
        refuse_untrusted(space, asked, {f"model.{key}": value})


def test_functions_of_a_task_are_named_before_they_run(path, tmp_path):
    (tmp_path / "base.yaml").write_text("process_docs: !function utils.steal\n")
    (tmp_path / "own.yaml").write_text("include: base.yaml\ntask: own\ndoc_to_text: !function utils.text\n")
    space = searching.loaded(path, evaluate__accuracy__tasks=f"[{tmp_path / 'own.yaml'}]").space
    with pytest.raises(SpaceError) as told:
        refuse_untrusted(space, Namespace(trust_task_code=False), {})
    assert "own.yaml: utils.text" in str(told.value) and "base.yaml: utils.steal" in str(told.value)
    refuse_untrusted(space, Namespace(trust_task_code=True), {})


def test_weights_count_by_all_their_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("skipsearch.search.space.fingerprint.LARGE", 8)
    weights, cache = tmp_path / "model" / "weights", tmp_path / "digests.json"
    weights.parent.mkdir()
    weights.write_bytes(b"0123456789" * 9)
    first = Digests(cache).of_files(weights.parent)
    [kept] = json.loads(cache.read_text()).values()
    assert kept == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert Digests(cache).of_files(weights.parent) == first
    weights.write_bytes(b"0123456789" * 8 + b"012345678X")
    assert Digests(cache).of_files(weights.parent) != first
    cache.write_text("no JSON")
    assert Digests(cache).of_files(weights.parent) == Digests().of_files(weights.parent)


def test_a_task_counts_by_what_it_may_read(tmp_path):
    task, base, other = (tmp_path / name for name in ("own.yaml", "base.yaml", "other.yaml"))
    task.write_text("task: own\ninclude: base.yaml\n")
    base.write_text("dataset_path: json\n")
    (tmp_path / "data.jsonl").write_text("{}")
    first = Digests().of_files(task)
    for name in ("README.md", ".hidden", "other.yaml"):
        (tmp_path / name).write_text("text")
    assert Digests().of_files(task) == first != Digests().of_files(other)
    found = {first}
    for name in ("utils.py", "data.jsonl", "base.yaml", "own.yaml"):
        (tmp_path / name).write_text(f"task: own\ninclude: base.yaml\n# {name}")
        found.add(Digests().of_files(task))
    assert len(found) == 5


def test_only_what_was_written_here_is_replaced_among_the_policies(copy):
    record = write_folder(copy)
    folder = copy / "policies"
    files = sorted(folder.glob("pareto-*.yaml"))
    assert len(files) > 1
    own = Policy.load(files[0]).to_yaml() + "# mine\n"
    files[0].write_text(own)
    (folder / "pareto-99.yaml").write_text("mine too")
    stale = folder / "pareto-77.yaml"
    shutil.copyfile(files[1], stale)
    (folder / ".written.json").write_text(
        json.dumps(
            json.loads((folder / ".written.json").read_text())
            | {stale.name: hashlib.sha256(stale.read_bytes()).hexdigest()}
        )
    )
    write_policies(record, folder)
    assert (folder / f"{files[0].stem}.kept-1.yaml").read_text() == own
    assert (folder / "pareto-99.yaml").read_text() == "mine too"
    assert not stale.exists() and "mine" not in files[0].read_text()
