"""Studies side by side: their fronts, tests and spaces, and what is refused because it measures something else."""

import json
import re
from dataclasses import replace

import pytest
from made_databases import made_study
from made_studies import without_library

from skipsearch.policies.errors import StudyError
from skipsearch.policies.policy import Policy
from skipsearch.search.analysis.compare.axes import axis_differences
from skipsearch.search.analysis.compare.fronts import common_reference, coordinate, front_volume
from skipsearch.search.analysis.load_study import read_record
from skipsearch.search.cli import main
from skipsearch.search.report.compare.comparison import compare_studies
from skipsearch.search.report.compare.page import comparison_page
from skipsearch.search.trial.paired_tests import mcnemar


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """By name, studies of one model; `ffn` allows less, and `fast` ran on another machine."""
    folder = tmp_path_factory.mktemp("results")
    ffn = {"layers": "[{range: 2-last, choices: [keep, skip_ffn]}]", "search.trials": "12"}
    return {
        "all": made_study(folder / "all"),
        "ffn": made_study(folder / "ffn", ffn),
        "fast": made_study(folder / "fast", {"search.seed": "5"}, {"processor": "Huge CPU", "cores": 64}),
        "few": made_study(folder / "few", {"evaluate.accuracy.search.limit": "30", "search.trials": "4"}),
    }


@pytest.fixture(scope="module")
def comparison(studies):
    return compare_studies([studies["all"], studies["ffn"]])


def test_hypervolumes_of_one_model_are_those_of_the_studies_themselves(studies, comparison) -> None:
    for name in ("all", "ffn"):
        record, volume = read_record(studies[name]), comparison.volumes[name]
        assert volume.search == pytest.approx(record.hypervolume[-1])
        assert volume.policies == volume.confirmed == len(record.front) - 1 > 0
        assert volume.report is not None and volume.report != volume.search
    assert comparison.reference == {"accuracy": 0.25, "prefill_flops": 1.0, "ttft_ms": 1.0}


def test_chosen_policies_are_tested_on_the_same_examples(studies, comparison) -> None:
    [test] = comparison.tests
    one, other = (comparison.chosen[name].report["accuracy"].detail["per_example"] for name in ("all", "ffn"))
    pairs = list(zip(one, other, strict=True))
    better, worse = (sum((a > b) if up else (a < b) for a, b in pairs) for up in (True, False))
    assert (test.split, test.n, test.only_one, test.only_other) == ("report", 120, better, worse)
    assert test.p == pytest.approx(mcnemar(better, worse))
    assert test.difference.value == pytest.approx((better - worse) / 120)
    picked = compare_studies([studies["all"], studies["ffn"]], ["prefill_flops<=0.7*dense"])
    record = read_record(studies["all"])
    cheap = [trial for trial in record.trials if trial.feasible and trial.search["prefill_flops"].value <= 1.4e9]
    best = max(trial.search["accuracy"].value for trial in cheap)
    assert picked.chosen["all"].search["accuracy"].value == best
    none = compare_studies([studies["all"], studies["ffn"]], ["prefill_flops<=0.1*dense"])
    assert not none.tests and "ffn: no measured policy keeps prefill_flops <=0.1*dense" in none.not_chosen


def test_several_tasks_have_a_column_each_with_their_examples(comparison) -> None:
    counts, rows = comparison.tasks["report"]
    assert counts == {"arc_easy": 60, "piqa": 60}
    chosen = comparison.chosen["all"]
    assert (
        rows[f"all, trial {chosen.number}"]["piqa"].value == chosen.report["accuracy"].detail["tasks"]["piqa"]["value"]
    )
    assert "On the report split, 120 examples: 60 from arc_easy, 60 from piqa." in comparison_page(comparison)


def test_spaces_are_compared_layer_by_layer_and_key_by_key(comparison) -> None:
    assert comparison.allowed["attention: skip"] == ["1-last", "nowhere"]
    assert comparison.allowed["ffn: skip"] == ["1-last", "2-last"]
    assert "keep" not in comparison.allowed
    assert comparison.settings["search.trials"] == ["14", "12"]
    assert comparison.settings["layers[0].range"] == ["1-last", "2-last"]
    assert not any(key.startswith(("evaluate", "environment")) for key in comparison.settings)


@pytest.mark.parametrize(
    ("name", "lines", "hint"),
    [
        ("fast", ["ttft_ms, processor: expected Tiny CPU (all), found Huge CPU (fast)",
                  "ttft_ms, cores: expected 2 (all), found 64 (fast)"], "accuracy,prefill_flops"),
        ("few", ["accuracy, evaluate.accuracy.search.limit: expected 40 (all), found 30 (few)"],
         "prefill_flops,ttft_ms"),
    ],
)  # fmt: skip
def test_axes_that_measure_something_else_are_refused_by_name(studies, name, lines, hint) -> None:
    folders = [studies["all"], studies[name]]
    with pytest.raises(StudyError) as refused:
        compare_studies(folders)
    assert list(refused.value.details) == lines
    assert refused.value.hint == f"compare the others alone: `--axes {hint}`"
    assert compare_studies(folders, axes=hint.split(",")).axes == hint.split(",")


def changed(study, name, **fields):
    """A study with another dense measurement."""
    record = study.record
    dense = replace(record.dense, search={**record.dense.search, name: replace(record.dense.search[name], **fields)})
    return replace(study, record=replace(record, trials=(dense, *record.trials[1:])))


def test_every_part_of_an_axis_counts(comparison) -> None:
    one, other = comparison.studies
    assert not any(axis_differences(one, other, name) for name in comparison.axes)
    dense = replace(other.record.dense, report={})
    unconfirmed = replace(other, record=replace(other.record, trials=(dense, *other.record.trials[1:])))
    assert axis_differences(one, unconfirmed, "accuracy") == []
    prompt = changed(other, "prefill_flops", detail={"prompt": "another"})
    assert axis_differences(one, prompt, "prefill_flops") == [
        "prefill_flops, prompt: expected a prompt of 61 tokens (all), found another (ffn)"
    ]
    detail = {"tasks": {"mmlu": {"metric": "acc,none", "n": 40}}}
    tasks = axis_differences(one, changed(other, "accuracy", detail=detail), "accuracy")
    assert "accuracy, search split, task piqa: expected 40 examples by acc,none (all), found none (ffn)" in tasks
    metrics = {**other.record.metrics, "prefill_flops": replace(other.record.metrics["prefill_flops"], unit="ms")}
    unit = replace(other, record=replace(other.record, metrics=metrics))
    assert "prefill_flops, unit: expected flops (all), found ms (ffn)" in axis_differences(one, unit, "prefill_flops")


def of_another_model(study):
    """A study with another model in its space."""
    named = study.space.model.model_copy(update={"id": "another/model"})
    return replace(study, space=study.space.model_copy(update={"model": named}))


def test_what_is_measured_against_its_own_dense_model_is_no_axis_of_two(comparison) -> None:
    one, other = comparison.studies
    evaluate = {**one.space.evaluate, "divergence": {"tasks": ["arc_easy"]}}
    spaces = [replace(study, space=study.space.model_copy(update={"evaluate": evaluate})) for study in (one, other)]
    assert axis_differences(spaces[0], of_another_model(spaces[1]), "divergence") == [
        "divergence: measured against each study's own dense model; those of all and ffn differ"
    ]


def test_costs_of_another_model_are_scaled_to_the_first_ones(comparison) -> None:
    one, other = comparison.studies
    larger = of_another_model(
        changed(other, "prefill_flops", value=2 * other.record.dense.search["prefill_flops"].value)
    )
    policy = larger.record.trial(larger.record.front[-1])
    share = policy.search["prefill_flops"].value / one.record.dense.search["prefill_flops"].value
    assert coordinate(one, larger, policy, "prefill_flops", "search") == pytest.approx(share)
    assert coordinate(one, larger, larger.record.dense, "prefill_flops", "search") == 2.0
    reference = common_reference([one, larger])
    assert reference["prefill_flops"] == 2.0 and reference["ttft_ms"] == 1.0
    assert front_volume(one, one, reference).search > comparison.volumes["all"].search


def test_the_page_stands_alone_and_leads_to_every_policy(studies, comparison) -> None:
    text = without_library(comparison_page(comparison))
    assert not re.search(r"<(link|img|iframe|object)|@import|url\(", text)
    for place, study in enumerate(comparison.studies):
        for number in study.record.front:
            assert f'id="trial-{place}-{number}"' in text
            assert f'"{place}-{number}"' in text  # in a plot
        for number, file in study.files.items():
            assert f'id="map-{place}-{number}"' in text
            assert f"skipsearch eval {study.folder}/policies/{file}" in text
    hostile = replace(comparison.studies[0], name="<script>alert(1)</script>")
    chosen = {hostile.name: comparison.chosen["all"], "ffn": comparison.chosen["ffn"]}
    volumes = {hostile.name: comparison.volumes["all"], "ffn": comparison.volumes["ffn"]}
    attacked = replace(comparison, studies=[hostile, comparison.studies[1]], chosen=chosen, volumes=volumes, tests=[],
                       combined=[(hostile, hostile.record.dense)])  # fmt: skip
    assert "<script>alert" not in comparison_page(attacked)


def test_equal_names_are_told_apart_and_a_policy_file_of_another_time_is_not_offered(studies, tmp_path) -> None:
    folder = made_study(tmp_path / "all", {"search.trials": "6"})
    comparison = compare_studies([studies["all"], folder])
    assert [study.name for study in comparison.studies] == [str(studies["all"]), str(folder)]
    files = [folder / "policies" / file for file in comparison.studies[1].files.values()]
    assert f"skipsearch eval {files[0]}<" in comparison_page(comparison)
    Policy().save(files[0])
    assert f"skipsearch eval {files[0]}<" not in comparison_page(comparison)


def test_the_command_prints_a_table_or_json_and_writes_a_page(studies, tmp_path, capsys) -> None:
    under = ["--out", str(studies["all"].parent)]
    assert main(["compare", "all", "ffn", *under, "-o", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr()
    for text in ("hypervolume", "pareto-0", "on the report split:", "attention: skip", "search.trials"):
        assert text in printed.out
    assert f"wrote {tmp_path}/page.html" in printed.err and (tmp_path / "page.html").exists()
    assert main(["compare", "all", "ffn", *under, "--json", "--axes", "accuracy"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in data["studies"]] == ["all", "ffn"] and data["axes"] == {"accuracy": "maximize"}
    assert all(0 < one["accuracy"] <= 1 for study in data["studies"] for one in study["front"])
    assert "ffn has not ended, so its front may still change." in data["notes"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["all"], "two studies or more"),
        (["all", "all"], "given twice"),
        (["all", "nowhere"], "holds no study"),
        (["all", "ffn", "--axes", "acuracy"], "the nearest known one is 'accuracy'"),
        (["all", "ffn", "--pick", "accuracy"], "expected a metric and a bound"),
        (["all", "ffn", "-o", "missing/page.html"], "found no folder"),
    ],
)
def test_mistakes_are_named(studies, arguments, says, capsys) -> None:
    assert main(["compare", *arguments, "--out", str(studies["all"].parent)]) == 2
    assert says in capsys.readouterr().err
