"""The report of a search that runs: when it is written, what it says, and that no failure of it stops the search."""

import html
import io
import re
import signal
from types import SimpleNamespace

import made_databases
import pytest
from made_studies import without_library
from rich.console import Console

from skipsearch.policies.policy import Policy
from skipsearch.search.analysis.load_study import read_record
from skipsearch.search.driver.phases import PROPOSING
from skipsearch.search.driver.progress import Progress
from skipsearch.search.report import live
from skipsearch.search.report.html.page import write_page
from skipsearch.search.report.live import INTERVAL, MAX_SHARE, LiveReport
from skipsearch.search.signals import Stopped


class Clock:
    """Seconds that pass when they are told to, and with every reading while something is being written."""

    now, step = 0.0, 0.0

    def __call__(self):
        self.now += self.step
        return self.now


def made(tmp_path, trials=12, jobs=()):
    """A study after some trials, its report, the progress and what that printed, and the clock."""
    study, clock, text = made_databases.begin(tmp_path / "s"), Clock(), io.StringIO()
    made_databases.spend(study, trials)
    progress = Progress(14, study.space.objectives, console=Console(file=text, width=200), clock=clock)
    report = LiveReport(study, tmp_path / "s", progress, made_databases.jobs(*jobs), clock)
    return study, report, progress, text, clock


def page_of(tmp_path):
    return without_library((tmp_path / "s" / "report.html").read_text(encoding="utf-8"))


def test_it_exists_from_the_dense_trial_on_and_never_half_written(tmp_path) -> None:
    study, report, progress, _, _ = made(tmp_path, trials=0)
    with report.watching():
        progress.phase(PROPOSING)
        assert not (tmp_path / "s" / "report.html").exists()
        made_databases.spend(study, 1)
        progress.update(study.results(), 1)
        first = page_of(tmp_path)
        assert "The search is running" in first and 'id="trial-0"' in first
    assert [file.name for file in (tmp_path / "s").glob("*report*")] == ["report.html"]
    assert progress.watcher is None


def test_it_is_written_at_most_once_a_minute_and_for_at_most_a_hundredth_of_the_time(tmp_path) -> None:
    _, report, progress, _, clock = made(tmp_path, trials=1)
    begun, last, clock.step = clock.now, 0.0, 0.75  # A writing reads the clock twice, so that it takes as long.
    with report.watching():
        for _ in range(120):
            clock.now += 3
            before, count = clock.now, len(report.seconds)
            progress.advance(PROPOSING)
            if count and len(report.seconds) > count:
                assert sum(report.seconds) <= MAX_SHARE * (clock.now - begun)
                assert before - last >= INTERVAL
            last = before if len(report.seconds) > count else last
    assert 3 <= len(report.seconds) <= 1 + (clock.now - begun) / INTERVAL


def test_it_says_what_runs_how_long_it_takes_and_what_failed(tmp_path) -> None:
    policy = Policy.model_validate({"layers": {2: {"ffn": "skip"}}})
    job = SimpleNamespace(policy=policy, names=["accuracy", "flops"], split="search")
    study, report, progress, _, clock = made(tmp_path, jobs=[("worker-1", job, 75.0)])
    progress.phase(PROPOSING)
    progress.note("the machine is <noisy>")
    clock.now += 60
    progress.update(study.results(), 7)
    with report.watching():
        clock.now += 10
        progress.advance(PROPOSING)
    text = page_of(tmp_path)
    assert "proposing 8 of 14, about" in text and '<progress max="14" value="8"' in text
    assert "<td>worker-1</td>" in text and "2: skip_ffn" in text and "accuracy, flops on the search split" in text
    assert "for 1 min 15 s" in text
    failed = [result.number for result in study.results() if result.state == "failed"][::-1]
    assert f"out of &lt;memory&gt; (trial {', '.join(map(str, failed))})." in " ".join(text.split())
    assert "the machine is &lt;noisy&gt;" in text


def test_a_policy_of_the_page_is_the_policy_though_it_has_no_file_yet(tmp_path) -> None:
    study, report, _, _, _ = made(tmp_path)
    report.update()
    text = page_of(tmp_path)
    documents = dict(re.findall(r'id="document-(\d+)">(.*?)</pre>', text, re.DOTALL))
    front = [result for result in study.results() if str(result.number) in documents]
    assert len(front) > 2
    for result in front:
        (tmp_path / "policy.yaml").write_text(html.unescape(documents[str(result.number)]))
        assert Policy.load(tmp_path / "policy.yaml").fingerprint == result.policy.fingerprint
        assert f"policies/trial-{result.number}.yaml" in text
    assert 'href="policies/' not in text and 'href="trials.csv"' not in text


@pytest.mark.parametrize(
    ("error", "says"), [(Stopped(signal.SIGTERM), "interrupted"), (ValueError("all <lost>"), "all &lt;lost&gt;")]
)
def test_a_search_that_ends_early_says_so_and_is_not_read_again(tmp_path, error, says) -> None:
    _, report, _, _, _ = made(tmp_path)
    with pytest.raises(type(error)), report.watching():
        report.update()
        assert 'id="refresh"' in page_of(tmp_path) and 'http-equiv="refresh"' in page_of(tmp_path)
        raise error
    text = page_of(tmp_path)
    assert f"ended before it was done</b>: {says}." in text
    assert 'id="refresh"' not in text and 'http-equiv="refresh"' not in text


def test_the_report_of_a_finished_search_is_not_read_again(tmp_path) -> None:
    study, report, _, _, _ = made(tmp_path, trials=None)
    report.update()
    record = read_record(tmp_path / "s")
    write_page(record, tmp_path / "s")
    text = page_of(tmp_path)
    assert "The search is running" not in text and 'id="refresh"' not in text
    assert f"skipsearch eval {tmp_path}/s/policies/pareto-01.yaml" in text
    assert len(study.results()) == len(record.trials)


def test_a_report_that_cannot_be_written_is_noted_once_and_stops_nothing(tmp_path) -> None:
    _, report, progress, text, clock = made(tmp_path)
    (tmp_path / "s" / "report.html").mkdir()  # A file cannot take the place of a folder, as on a disk without room.
    with report.watching():
        for _ in range(3):
            clock.now += 100
            progress.advance(PROPOSING)
    assert len(report.seconds) == 3
    assert text.getvalue().count("report.html was not written, the search goes on: IsADirectoryError") == 1
    assert "Traceback" not in text.getvalue()
    assert [file.name for file in (tmp_path / "s").glob(".report*")] == []


def test_a_mistake_in_the_report_is_noted_with_its_place(tmp_path, monkeypatch) -> None:
    _, report, progress, text, _ = made(tmp_path)
    monkeypatch.setattr(live, "write_page", lambda *arguments: arguments[9])
    with report.watching():
        progress.advance(PROPOSING)
    assert "the search goes on: IndexError: tuple index out of range\nTraceback" in text.getvalue()
    assert "lambda *arguments: arguments[9]" in text.getvalue()


def test_a_quiet_search_has_a_report_all_the_same(tmp_path) -> None:
    study, _, _, _, clock = made(tmp_path)
    quiet = Progress(14, study.space.objectives, shown=False, clock=clock)
    assert not quiet.is_shown
    with LiveReport(study, tmp_path / "s", quiet, made_databases.jobs(), clock).watching():
        assert quiet.is_shown
        quiet.update(study.results(), 12)
    assert "The search is running" in page_of(tmp_path)
