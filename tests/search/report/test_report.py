"""The report of a study, from seeded made-up studies: what it says, and that it stands alone."""

import csv
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_studies import DRAWN, METRICS, changed, refronted, study, trained, with_gap, without_library

from skipsearch.evaluators.base import Measurement
from skipsearch.policies.choice import CHOICES, KEEP, LayerChoice
from skipsearch.policies.policy import Policy
from skipsearch.policies.scores.token_selection import TokenSelection
from skipsearch.search.analysis.study_record import StudyRecord, percent_of_dense, policy_files
from skipsearch.search.report.figures import hover_text
from skipsearch.search.report.folder import write_policies
from skipsearch.search.report.html.front_map import front_map
from skipsearch.search.report.html.page import page, write_report, write_trials_csv
from skipsearch.search.report.html.templates import render
from skipsearch.search.report.planes import baseline_dots, dots, planes, staircase
from skipsearch.search.report.sections import headline, headline_trial
from skipsearch.search.report.terminal import print_summary, summary_data

DRAWN.append(LayerChoice(ffn="skip", token_ratio=0.5))


class Loads(HTMLParser):
    """Collects what a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "data", "srcset")]


PAGES: dict[str, StudyRecord] = {}


def text_of(name: str) -> tuple[StudyRecord, str]:
    """A made-up study and its page without the plotly library, which is large and not ours."""
    if name not in PAGES:
        cases = {
            "one": lambda: study(objectives=("accuracy",)),
            "two": lambda: study(objectives=("accuracy", "prefill_flops")),
            "three": study,
            "four": lambda: study(500, 80, ("accuracy", "prefill_flops", "ttft_ms", "kv_cache_bytes")),
            "costs": lambda: study(objectives=("prefill_flops", "ttft_ms")),
        }
        PAGES[name] = cases[name]()
    return PAGES[name], without_library(page(PAGES[name]))


@pytest.mark.parametrize("name", ["one", "two", "three", "four", "costs"])
def test_every_front_policy_is_in_the_table_and_in_the_map(name: str) -> None:
    record, text = text_of(name)
    assert policy_files(record)
    for number, file in policy_files(record).items():
        assert f'href="policies/{file}"' in text
        assert f'id="trial-{number}"' in text
        assert f'href="#trial-{number}"' in text
    cells = re.findall(r'title="layer \d+: ', text)
    assert len(cells) == len(policy_files(record)) * record.num_layers


def test_a_policy_in_a_gap_stands_beside_the_front_with_its_file_and_its_map(tmp_path: Path, capsys) -> None:
    record = with_gap(study())
    [number] = record.in_gaps
    text = without_library(page(record))
    assert f'id="trial-{number}"' in text and f'id="map-{number}"' in text and "policies/gap-01.yaml" in text
    assert f"trial {number}, in a gap of the front" in text
    write_policies(record, tmp_path)
    assert [file.name for file in sorted(tmp_path.glob("gap-*.yaml"))] == ["gap-01.yaml"]
    assert Policy.load(tmp_path / "gap-01.yaml").fingerprint == record.trial(number).policy.fingerprint
    print_summary(record, tmp_path)
    said = capsys.readouterr().out
    assert "gap-01" in said and "report split shows which of the two to take" in " ".join(said.split())
    assert [entry["trial"] for entry in summary_data(record, tmp_path)["in_gaps"]] == [number]
    write_policies(replace(record, in_gaps=()), tmp_path)
    assert not [*tmp_path.glob("gap-*.yaml")]


def test_what_trainings_changed_is_said_once_beside_their_table() -> None:
    text = without_library(page(trained(study())))
    assert "After a short training" in text and text.count("Recovery: ") == 1
    assert "then those in its wide gaps" not in text


@pytest.mark.parametrize(("name", "count"), [("one", 1), ("two", 1), ("three", 3), ("four", 6), ("costs", 1)])
def test_every_pair_of_objectives_has_its_plane(name: str, count: int) -> None:
    record, text = text_of(name)
    assert len(planes(record)) == count
    assert all(f'id="plane-{index}"' in text for index in range(count))
    assert f'id="plane-{count}"' not in text


def test_the_page_stands_alone() -> None:
    record = study()
    text = page(record)
    parsed = Loads(text)
    allowed = {"trials.csv", *(f"policies/{file}" for file in policy_files(record).values())}
    assert {target for target in parsed.found if not target.startswith("#")} == allowed
    assert not {"link", "iframe", "img", "object", "embed"} & set(parsed.tags)
    assert "@import" not in without_library(text)
    assert "url(" not in without_library(text)
    assert len(re.findall(r"plotly\.js v\d", text)) == 1


def test_hostile_text_is_escaped() -> None:
    attack = "<script>alert(1)</script>"
    record = replace(study(), name=attack, model_id=attack, space_text=f"{attack} $name", environment={attack: attack})
    broken = next(t.number for t in record.trials if t.state == "failed")
    text = without_library(page(changed(record, broken, failure=attack)))
    assert attack not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 6
    assert "&lt;/script&gt; $name" in text


def test_the_reference_point_is_printed() -> None:
    _, text = text_of("three")
    dense = PAGES["three"].dense.search
    assert f"Reference point: accuracy 0.0 %, prefill FLOPs 8.40 TFLOPs, TTFT {dense['ttft_ms'].value:.0f} ms." in text


def test_the_headline_is_picked_on_the_search_split_and_told_on_the_report_split() -> None:
    record = study()
    trial = headline_trial(record)
    assert trial is not None
    dense = record.dense
    near = [
        record.trial(number)
        for number in policy_files(record)
        if dense.search["accuracy"].value - record.trial(number).search["accuracy"].value <= 0.01
    ]
    assert trial.search["prefill_flops"].value == min(t.search["prefill_flops"].value for t in near)
    loss = dense.report["accuracy"].value - trial.report["accuracy"].value
    share = 100 * trial.search["prefill_flops"].value / dense.search["prefill_flops"].value
    assert headline(record) == (
        f"The policy of trial {trial.number} needs {share:.0f}\u00a0% of the dense prefill FLOPs and "
        f"loses {100 * loss:.1f} points of accuracy on examples the search never saw."
    )
    said = f"it has {100 * trial.report['accuracy'].value:.1f} % ± 1.2, dense 81.0 % ± 1.2, n = 1000."
    # No line breaks within a number with its unit and error.
    assert said.replace(" %", "\u00a0%").replace(" ± ", "\u00a0±\u00a0") in page(record)
    for luck in (0.5, -0.5):
        lucky = changed(record, trial.number, report={"accuracy": replace(trial.report["accuracy"], value=luck)})
        assert headline_trial(lucky) == lucky.trial(trial.number)


def test_an_unconfirmed_front_says_so() -> None:
    record = refronted(study(), confirm=False)
    text = without_library(page(record))
    assert text.count("not confirmed</em>") == len(policy_files(record)) + 1
    assert "it is not confirmed on others" in headline(record)
    assert "No policy of the front is confirmed" in text


def test_the_winners_curse_is_the_mean_gap_against_dense() -> None:
    record = study()
    for number in policy_files(record):
        trial = record.trial(number)
        shifted = replace(trial.search["accuracy"], value=trial.search["accuracy"].value - 0.034)
        gain = shifted.value - record.dense.search["accuracy"].value
        honest = replace(trial.search["accuracy"], value=record.dense.report["accuracy"].value + gain)
        record = changed(record, number, report={"accuracy": honest})
    assert f"{len(policy_files(record))} confirmed policies look 3.4 points of accuracy better" in page(record)


@pytest.mark.parametrize(
    ("trials", "says"),
    [
        ("none", "no trial besides the dense baseline has finished"),
        ("failed", "9 of 9 trials failed"),
        ("infeasible", "9 broke <code>accuracy &gt;= 0.75 * dense</code>"),
        ("dominated", "9 kept every constraint but are no better than dense"),
    ],
)
def test_an_empty_front_says_why(trials: str, says: str, tmp_path: Path) -> None:
    record = study(1 if trials == "none" else 10)
    worse = {name: replace(entry, value=entry.value * 1.1) for name, entry in record.dense.search.items()}
    worse["accuracy"] = Measurement(0.1, n=200)
    fates: dict[str, dict[str, object]] = {
        "failed": {"state": "failed", "failure": "out of memory", "search": {}, "violations": {}},
        "infeasible": {"state": "complete", "search": worse, "violations": {"accuracy": 0.5}},
        "dominated": {"state": "complete", "search": worse, "violations": {}},
        "none": {},
    }
    for trial in record.trials[1:]:
        record = changed(record, trial.number, **fates[trials])
    record = refronted(record)
    write_report(record, tmp_path)
    text = without_library((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert record.front == (0,)
    assert says in text
    assert "What helps:" in text
    assert "No policy was found" in text


def test_a_trial_without_a_figure_or_with_a_nan_is_left_out_of_the_plane_alone() -> None:
    record = study()
    front = list(policy_files(record))
    short = {name: entry for name, entry in record.trial(front[0]).search.items() if name != "ttft_ms"}
    record = changed(record, front[0], search=short)
    nan = record.trial(front[1]).search | {"prefill_flops": Measurement(math.nan)}
    record = changed(record, front[1], search=nan)
    drawn = {(plane.x, plane.y): {dot.trial.number for dot in dots(record, plane)} for plane in planes(record)}
    assert front[0] in drawn["prefill_flops", "accuracy"]
    assert front[0] not in drawn["ttft_ms", "accuracy"]
    assert front[1] not in drawn["prefill_flops", "accuracy"]
    assert front[1] in drawn["ttft_ms", "accuracy"]
    text = without_library(page(record))
    assert "not measured</em>" in text
    assert "not a number" in text


def test_a_paused_trial_has_a_dot_only_as_a_baseline_at_its_estimate() -> None:
    record = study(12, objectives=("accuracy", "prefill_flops"))
    whole = [trial for trial in record.trials[1:] if trial.feasible]
    for trial, rule in zip(whole, ("uniform: skip_ffn in 3 layers", None), strict=False):
        search = dict(trial.search)
        part = replace(search.pop("accuracy"), n=50, detail={"total": 200})
        record = changed(record, trial.number, search=search, estimates={"accuracy": part}, baseline=rule)
    aside = {trial.number for trial in whole[:2]}
    for plane in planes(record):
        assert aside.isdisjoint(dot.trial.number for dot in dots(record, plane))
        assert [dot.trial.number for dot in baseline_dots(record, plane)] == [whole[0].number]
    lost = sum(trial.state == "complete" and trial.number not in aside for trial in record.trials) - len(
        dots(record, planes(record)[0])
    )
    assert f"measured on all examples: {lost + 1} trial" in without_library(page(record))


def test_roles_in_a_plane_follow_the_record() -> None:
    record = study(200)
    roles = {dot.trial.number: dot.role for dot in dots(record, planes(record)[0])}
    assert roles[0] == "dense"
    assert {number for number, kind in roles.items() if kind == "front"} == set(policy_files(record))
    assert all(record.trials[n].violations["accuracy"] > 0 for n, kind in roles.items() if kind == "infeasible")
    assert not any(record.trials[n].state == "failed" for n in roles)
    assert set(roles.values()) == {"dense", "front", "dominated", "infeasible"}
    confirmed = {dot.trial.number for dot in dots(record, planes(record)[0]) if dot.confirmed}
    assert confirmed == set(policy_files(record))


def test_the_pointer_shows_figures_and_policy() -> None:
    record = study()
    policy = Policy.of([KEEP, CHOICES["skip_ffn"], *[LayerChoice(token_ratio=0.5)] * 3])
    figures = {"accuracy": Measurement(0.7, n=200), "<i>_flops": Measurement(4.2e12)}
    record = replace(record, metrics=METRICS | {"<i>_flops": METRICS["prefill_flops"]})
    record = changed(record, 5, policy=policy, search=figures, report={"accuracy": Measurement(0.68)})
    shown = hover_text(record, record.trial(5)).replace("\u00a0", " ")
    for text in ("<b>trial 5</b>", "accuracy: 70.0 %", "report split: 68.0 %", "1: skip_ffn, 2-4: token_ratio 0.5"):
        assert text in shown
    assert "&lt;i&gt; FLOPs: 4.20 TFLOPs" in shown


def test_the_staircase_rises_with_cost() -> None:
    record = study(200)
    plane = planes(record)[0]
    steps = staircase(dots(record, plane), record, plane)
    assert len(steps) > 3
    assert all(a.x < b.x and a.y < b.y for a, b in zip(steps, steps[1:], strict=False))


def test_latency_is_in_percent_of_the_interleaved_dense() -> None:
    record = changed(study(), 1, search={"ttft_ms": Measurement(50.0, dense=200.0)})
    assert percent_of_dense(record, record.trial(1), "ttft_ms") == pytest.approx(25.0)
    assert percent_of_dense(record, record.dense, "ttft_ms") == 100.0


def test_failures_constraints_and_metrics_are_told() -> None:
    record, text = text_of("three")
    failed = [str(t.number) for t in record.trials if t.failure == "worker lost: node went away"]
    assert failed
    assert f"<dt>failed: worker lost: node went away</dt><dd>trial {', '.join(failed)}</dd>" in text
    assert "&gt;= 0.75 * dense" in text
    assert all(metric.text in text for metric in METRICS.values())
    assert "search split n = 200, report split n = 1000" in text
    assert "Unit ms, minimize, 20 repeats." in text
    assert "Unit bytes, minimize." in text
    assert "<dt>hardware.cores</dt><dd>2</dd>" in text
    assert "some/model}  # &lt;verbatim&gt; &amp; $unharmed" in text
    shared = sum(t.duplicate_of is not None for t in record.trials)
    assert shared > 0
    assert f"<dt>duplicates, measured once</dt><dd>{shared}</dd>" in text


def test_a_figure_that_no_policy_changes_has_no_column() -> None:
    _, text = text_of("three")
    table = text[text.index("<thead>") : text.index("</thead>")]
    assert "KV cache" in table
    assert "vision" not in table


def test_the_csv_reads_back(tmp_path: Path) -> None:
    record = study()
    write_trials_csv(record, tmp_path / "trials.csv")
    with (tmp_path / "trials.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["trial"]) for row in rows] == [trial.number for trial in record.trials]
    for row, trial in zip(rows, record.trials, strict=True):
        assert row["fingerprint"] == trial.policy.fingerprint
        assert row["front"] == str(trial.number in record.front)
        for name in METRICS:
            entry, again = trial.search.get(name), trial.report.get(name)
            assert row[name] == ("" if entry is None else repr(entry.value))
            assert row.get(f"report_{name}", "") == ("" if again is None else repr(again.value))
        assert row["failure"] == (trial.failure or "")


def test_the_picture_is_large_enough_to_paste(tmp_path: Path) -> None:
    record = replace(study(objectives=("accuracy", "prefill_flops")), model_id="models/costs_$5_or_$6")
    write_report(record, tmp_path)
    header = (tmp_path / "front.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(header[16:20]), int.from_bytes(header[20:24])) == (1600, 1000)


def test_the_map_says_when_and_for_whom_a_choice_holds_and_what_is_left() -> None:
    record = study()
    number = next(number for number in record.front if number)
    scoped = Policy.of(
        [
            LayerChoice(ffn="skip", phase="prefill", tokens="text"),
            LayerChoice(token_ratio=0.5),
            LayerChoice(wiring="parallel", norm="shared", phase="decode"),
        ],
        TokenSelection(reselect="once"),
    )
    before = render("layer_map.html", layer_map=front_map(record, ()))
    only = replace(changed(record, number, policy=scoped), front=(0, number))
    drawn = render("layer_map.html", layer_map=front_map(only, [number]))
    legend, _, grid = drawn.partition('<div class="map"')
    assert "only" not in before and "once" not in before
    assert '<i class="skip_ffn" title="layer 0: skip_ffn (prefill, text)"><b>pt</b></i>' in grid
    assert '<i class="" title="layer 1: token_ratio 0.5"><u style="--r:0.5"></u></i>' in grid
    title = "layer 2: parallel, shared norm (decode), of the 0.5 left (once)"
    assert f'<i class="parallel_shared" title="{title}"><u class="left" style="--r:0.5"></u><b>d</b></i>' in grid
    for words in ("parallel, shared norm", "in prefill only", "in decode only", "for text tokens only", "(once)"):
        assert words in legend
    assert "for image tokens only" not in legend
