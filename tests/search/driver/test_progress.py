"""What a user sees of a search: phases with their counts, a total of all, the time left, and a log without echoes."""

import io
import re

import planted_times
import pytest
import searching
from planted_times import PolicyEvaluator
from rich.console import Console

from skipsearch.evaluators.base import Measurement
from skipsearch.policies.policy import Policy
from skipsearch.search.driver.phases import CONFIRMING, LOADING, PROMOTING, PROPOSING
from skipsearch.search.driver.progress import Progress
from skipsearch.search.trial.trial_result import TrialResult

OBJECTIVES = {"accuracy": "maximize", "prefill_flops": "minimize"}


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self):
        return self.now


def made(trials=10, terminal=False):
    text, clock = io.StringIO(), Clock()
    console = Console(file=text, force_terminal=terminal, width=140, legacy_windows=False)
    return Progress(trials, OBJECTIVES, console=console, clock=clock), text, clock


def trials(count):
    found = []
    for number in range(count):
        policy = Policy.model_validate({"layers": {number: {"ffn": "skip"}}}) if number else Policy()
        search = {"accuracy": Measurement(0.9 - number / 100), "prefill_flops": Measurement(100.0 - number)}
        found.append(TrialResult(number, "complete", policy, search))
    return found


def lines(text):
    return [line.rstrip() for line in text.getvalue().splitlines() if line.strip()]


def test_a_log_says_where_a_phase_begins_and_every_tenth_step_and_nothing_twice() -> None:
    progress, text, clock = made(40)
    with progress:
        progress.phase(PROPOSING)
        progress.update([], 0)
        for measured in range(1, 41):
            clock.now += 2
            for _ in range(3):  # A promotion in between shows the same again.
                progress.update(trials(measured), measured)
        progress.phase(CONFIRMING, 12)
        for _ in range(12):
            progress.advance()
    found = lines(text)
    assert len(found) == len({*found})
    begun = [" ".join(line.split()[:2]) for line in found]
    assert begun == ["loading the", "proposing 0/40", "proposing 10/40", "proposing 20/40", "proposing 30/40",
                     "proposing 40/40", "confirming 0/12", "confirming 10/12"]  # fmt: skip
    assert "front 10  best saving 9% of prefill_flops  left 0:01:00" in found[2]


def test_loading_ends_when_the_model_is_loaded() -> None:
    progress, text, _ = made(4, terminal=True)
    with progress:
        assert LOADING in shown(progress)
        progress.phase("preparing the study")
        assert LOADING not in shown(progress)
        progress.phase(PROPOSING)
        assert shown(progress).startswith("proposing 0/4")


def shown(progress):
    [task] = progress.bar.tasks
    return f"{task.description} | {task.completed:g}/{task.total:g} | {task.fields['left']}"


def test_the_total_counts_every_phase_and_the_time_left_is_that_of_all() -> None:
    progress, _, clock = made(10, terminal=True)
    with progress:
        clock.now += 60  # The load is no step of anything.
        progress.phase(PROPOSING)
        progress.update([], 0)
        for measured in range(1, 11):
            clock.now += 3
            progress.update(trials(measured), measured)
        assert shown(progress) == "proposing 10/10 | 10/10 | left 0:00:00"
        progress.expect_more(PROMOTING, 4)
        progress.expect_more(CONFIRMING, 5)
        progress.phase(PROMOTING)
        assert shown(progress) == "promoting 0/4 | 10/19 | left 0:00:27"
        for left in (3, 2):
            clock.now += 10
            progress.advance(PROMOTING)
            progress.expect_more(PROMOTING, left)
        # Promotions at their own pace; what has not begun at the slowest pace known.
        assert shown(progress) == "promoting 2/4 | 12/19 | left 0:01:10"
        progress.guess(CONFIRMING, 1.0)
        progress.phase(CONFIRMING, 5)
        assert shown(progress) == "confirming 0/5 | 12/19 | left 0:00:25"


@pytest.mark.parametrize(("slow", "factor"), [([0], 1.8), ([0, 1], 2.0), ([20, 60], 1.7)])
def test_the_end_is_forecast_within_a_factor_from_step_to_step(slow, factor) -> None:
    """Steps of a second as forecast, but some of 30: the first, that of each of two workers, or a few late ones."""
    progress, _, clock = made(140, terminal=True)
    with progress:
        progress.guess(PROPOSING, 1.0)
        progress.phase(PROPOSING)
        progress.update([], 0)
        ends = []
        for step in range(140):
            clock.now += 30 if step in slow else 1
            progress.update([], step + 1)
            ends.append(clock.now + progress.state.seconds_left)
    assert ends[-1] == clock.now
    jumps = [max(one, other) / min(one, other) for one, other in zip([140.0, *ends], ends, strict=False)]
    assert max(jumps) < factor
    assert all(end < factor * clock.now and clock.now < factor * end for end in ends)


def test_a_forecast_that_is_wrong_is_given_up_after_some_steps() -> None:
    progress, _, clock = made(140)
    progress.guess(PROPOSING, 1.0)
    progress.phase(PROPOSING)
    progress.update([], 0)
    for step in range(10):
        clock.now += 30
        progress.update([], step + 1)
    assert progress.state.seconds_left == pytest.approx(130 * (10 * 30 + 4) / 14)


def test_a_phase_of_a_caller_is_one_call() -> None:
    progress, text, clock = made(10)
    with progress:
        progress.phase("probing", 25)
        for _ in range(25):
            clock.now += 1
            progress.advance()
    assert [line.split("  ")[0] for line in lines(text)] == ["loading the model", "probing 0/25", "probing 10/25",
                                                             "probing 20/25"]  # fmt: skip


def test_a_search_that_goes_on_does_not_count_what_was_done_before() -> None:
    progress, _, clock = made(10, terminal=True)
    with progress:
        progress.phase(PROPOSING)
        progress.update(trials(8), 8)
        assert shown(progress) == "proposing 8/10 | 8/10 | "
        clock.now += 5
        progress.update(trials(9), 9)
        assert shown(progress) == "proposing 9/10 | 9/10 | left 0:00:05"


def test_a_narrow_terminal_shows_counts_and_time_left() -> None:
    text, clock = io.StringIO(), Clock()
    progress = Progress(80, OBJECTIVES, console=Console(file=text, force_terminal=True, width=80), clock=clock)
    with progress:
        progress.phase("timing the front again", 147)
        clock.now += 4
        progress.update(trials(20), 20)
        progress.advance()
        progress.bar.refresh()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
    assert "timing the front again 1/147" in plain and " 21/227 " in plain and "left 0:13:44" in plain


def test_silence_is_silent() -> None:
    text = io.StringIO()
    progress = Progress(3, OBJECTIVES, shown=False, console=Console(file=text))
    with progress:
        progress.phase(PROPOSING)
        progress.update(trials(3), 3)
        progress.note("a note")
    assert text.getvalue() == "" and not progress.is_shown


@pytest.mark.parametrize("terminal", [False, True])
def test_a_whole_search_shows_its_phases_in_order(tmp_path, terminal) -> None:
    path, text = searching.tiny_space(tmp_path / "space"), io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=160)
    driver = planted_times.search(path, tmp_path, PolicyEvaluator(), console=console, search__trials=14)
    [task] = driver.progress.bar.tasks
    further = sum(key.startswith(("random:", "patches:")) for key in driver.study.study.user_attrs)
    assert task.completed == task.total == 4 + 14 + len(confirmed(driver)) * 8 + further
    if not terminal:
        found = lines(text)
        assert len(found) == len({*found})
        phases = [match[1] for line in found if (match := re.match(r"([a-z ]+) \d+/\d+", line))]
        assert list(dict.fromkeys(phases)) == [
            "dense against dense",
            "proposing",
            "confirming",
            "timing the front again",
            "measuring random choices of tokens",
            "drawing kept patches",
        ]
        assert any("Noise of this machine" in line for line in found)


def confirmed(driver):
    return [key for key in driver.study.study.user_attrs if key.startswith("report:")]
