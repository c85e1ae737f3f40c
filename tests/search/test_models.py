"""Spaces of several models: how they are read, searched one after the other, and shown in one report."""

import json
import re

import pytest
import searching
from made_databases import made_study
from made_studies import without_library

import skipsearch
import tiny
from skipsearch.policies.errors import ModelError, SpaceError, StudyError, UsageError
from skipsearch.search.cli import main
from skipsearch.search.models.folder import write_models_folder
from skipsearch.search.models.run import run_models
from skipsearch.search.places import MODELS, study_folders
from skipsearch.search.run import run_study
from skipsearch.search.space.load import load_space, load_spaces
from skipsearch.search.space.trust import refuse_untrusted_models
from skipsearch.search.workers.evaluate import PolicyEvaluator
from skipsearch.testing.pool import LocalPool

SMALLER = {"processor": "Tiny CPU", "workers": [{"device": "cpu", "threads": 1, "parameters": 600, "dtype": "float32"}]}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A space of two models, the second of half the depth."""
    file = searching.tiny_space(tmp_path_factory.mktemp("space"))
    (file.parent / "small").mkdir()
    tiny.tiny_llava(file.parent / "small", layers=2)
    text = file.read_text().replace("model: {id: ./llava}", "models: [{id: ./llava, name: big}, ./small/llava]")
    file.write_text(text.replace("./small/llava", "{id: ./small/llava, name: small}"))
    return file


def written(path, **changes):
    """The space with some lines changed."""
    text = path.read_text()
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    file = path.with_name("changed.yaml")
    file.write_text(text)
    return file


def test_a_space_stands_for_one_space_a_model(path):
    big, small = load_spaces(str(path), {"search.seed": "7"})
    assert (big.model_name, small.model_name) == ("big", "small") and big.space.model.id != small.space.model.id
    assert big.space.search == small.space.search and not big.space.models
    assert big.text == small.text and big.text.endswith("# --set search.seed=7")
    alone = load_space(str(path), {"models": "[./llava]"})
    assert alone.model_name == "" and alone.space.fingerprint() == load_spaces(str(path))[0].space.fingerprint()
    with pytest.raises(SpaceError, match="names 2 models, expected one here") as refused:
        load_space(str(path))
    assert refused.value.hint == "name one of them: --set 'models=[./llava]'"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("name: small", "name: big", r"models\[1\]: models\[0\] is called 'big' too; give one of them another `name`"),
        ("name: small", "name: a/b", r"models\[1\].name: found 'a/b'"),
        ("./small/llava", "./tall/llava", r"models\[1\].id: there is no folder .*/tall/llava"),
        ("name: small", "dtype: flat", r"models\[1\].dtype: found 'flat'"),
        ("models: [", "model: {id: m}\nmodels: [", "models: found beside `model`; give one of them"),
        ("{id: ./small/llava, name: small}", "3", r"models\[1\]: found 3"),
    ],
)
def test_mistakes_are_named_by_their_model(path, old, new, says):
    with pytest.raises(SpaceError, match=says):
        load_spaces(str(written(path, one=(old, new))))


def test_code_of_each_model_is_allowed_for_itself(path):
    options = type("Options", (), {"trust_task_code": False})()
    spaces = [one.space for one in load_spaces(str(path), {"models.1.trust_remote_code": "true"})]
    with pytest.raises(SpaceError, match="the space runs code of its model") as refused:
        refuse_untrusted_models(spaces, options, ["models.0.trust_remote_code"])
    assert "`--set models.1.trust_remote_code=true`" in str(refused.value.hint)
    refuse_untrusted_models(spaces, options, ["models.1.trust_remote_code"])


def test_no_search_begins_where_a_later_model_cannot_be_searched(path, tmp_path):
    deep = written(path, one=("range: 1-last", "range: 1-3"))
    with pytest.raises(SpaceError, match="names layer 3, the model has layers 0 to 1"):
        run_models(load_spaces(str(deep)), tmp_path / "deep", "deep", shown=False)
    path.with_name("empty").mkdir()
    gone = written(path, one=("./small/llava", "./empty"))
    with pytest.raises(ModelError, match="empty"):
        run_models(load_spaces(str(gone)), tmp_path / "gone", "gone", shown=False)
    both = written(path, one=("./small/llava", "./empty"), two=("range: 1-last", "range: 1-7"))
    with pytest.raises(StudyError, match="2 of 2 models cannot be searched") as refused:
        run_models(load_spaces(str(both)), tmp_path / "both", "both", shown=False)
    assert "names layer 7" in str(refused.value) and "empty" in str(refused.value)
    with pytest.raises(StudyError, match="holds no study to resume"):
        run_models(load_spaces(str(path)), tmp_path / "new", "new", resume=True, shown=False)
    assert not list(tmp_path.rglob("study.db")) and not list(tmp_path.rglob(MODELS))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of two models' studies with made-up measurements; the smaller model costs half."""
    folder = tmp_path_factory.mktemp("results") / "two"
    made_study(folder / "big", name="two/big")
    made_study(folder / "small", {"model.id": "some/small"}, SMALLER, name="two/small", scale=0.5)
    (folder / MODELS).write_text(json.dumps({"models": ["big", "small"]}))
    return folder


def test_the_report_shows_all_models_in_absolute_costs(made):
    studies = write_models_folder(made)
    comparison = studies.comparison
    assert [one.name for one in comparison.studies] == ["big", "small"] and comparison.is_absolute
    text = without_library((made / "report.html").read_text())
    assert 'href="big/report.html"' in text and (made / "small" / "report.html").exists()
    assert "1.00 GFLOPs<small>100.0 % of dense</small>" in text  # the smaller model
    assert "Each model was timed in the processes of its own study" in text
    for place in (0, 1):  # Dense models are stars, and have a row.
        assert f'id="trial-{place}-0"' in text
    assert re.search(r'"symbol":"star"', text) and '"tickformat":"~s"' in text


def test_the_combined_front_is_that_of_all_policies_with_their_absolute_costs(made):
    comparison = write_models_folder(made).comparison
    names = [*comparison.axes]
    signs = [1 if comparison.studies[0].record.objectives[name] == "minimize" else -1 for name in names]

    def point(study, trial):
        return [sign * trial.search[name].value for sign, name in zip(signs, names, strict=True)]

    every = [(study, study.record.trial(n)) for study in comparison.studies for n in {0, *study.record.front}]
    expected = {
        (study.name, trial.number)
        for study, trial in every
        if not any(
            point(*other) != point(study, trial)
            and all(a <= b for a, b in zip(point(*other), point(study, trial), strict=True))
            for other in every
        )
    }
    assert {(study.name, trial.number) for study, trial in comparison.combined} == expected
    assert {name for name, _ in expected} == {"big", "small"}


def test_a_smaller_model_is_tested_against_the_best_policy_at_its_cost(made):
    comparison = write_models_folder(made).comparison
    flops = next(one for one in comparison.equal_costs if one.metric == "prefill_flops")
    big, small = comparison.studies
    assert flops.smaller.name == "small" and [*flops.best] == ["big"]
    budget = small.record.dense.search["prefill_flops"].value
    within = [trial for number in big.record.front if (trial := big.record.trial(number))
              if trial.search["prefill_flops"].value <= budget]  # fmt: skip
    assert flops.best["big"].search["accuracy"].value == max(one.search["accuracy"].value for one in within)
    [test] = flops.tests
    pairs = zip(flops.best["big"].report["accuracy"].detail["per_example"],
                small.record.dense.report["accuracy"].detail["per_example"], strict=True)  # fmt: skip
    assert (test.one, test.other, test.split) == ("big", "small", "report")
    assert test.difference.value == pytest.approx(sum(a - b for a, b in pairs) / test.n)
    assert {one.metric for one in comparison.equal_costs} == {"prefill_flops", "ttft_ms"}


def test_commands_take_the_folder_or_name_what_is_in_it(made, capsys):
    under = ["--out", str(made.parent)]
    assert [str(one.relative_to(made.parent)) for one in study_folders(made.parent)] == ["two/big", "two/small"]
    assert main(["ls", "--json", *under]) == 0
    assert json.loads(capsys.readouterr().out)["studies"] == {
        str(made / "big"): "14 of 14 trials", str(made / "small"): "14 of 14 trials"}  # fmt: skip
    assert main(["report", "two", "--json", *under]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [*data["models"]] == ["big", "small"] and data["missing"] == []
    front = data["comparison"]["combined_front"]
    assert {one["study"] for one in front} == {"big", "small"} and front[0]["prefill_flops"] == 2e9
    assert main(["report", "two", *under]) == 0
    printed = capsys.readouterr().out
    assert "combined front" in printed and f"report {made}/report.html" in printed
    assert "At the prefill FLOPs of small without a policy, 1.00 GFLOPs:" in printed
    assert main(["compare", "two", *under, "--axes", "accuracy,prefill_flops"]) == 0
    assert main(["report", "two/big", *under]) == 0
    capsys.readouterr()
    assert main(["report", "two", "--pick", "accuracy>=0.5", *under]) == 2
    assert f"{made}/small" in capsys.readouterr().err
    for refused in (lambda: skipsearch.load_study("two", made.parent),
                    lambda: skipsearch.search("digits", name="two", out=made.parent)):  # fmt: skip
        with pytest.raises(StudyError, match="holds the studies of 2 models, expected one study"):
            refused()


def test_a_model_that_has_not_begun_is_said(made, tmp_path, capsys):
    made_study(tmp_path / "half/big", name="half/big")
    (tmp_path / "half" / MODELS).write_text(json.dumps({"models": ["big", "small"]}))
    assert main(["report", "half", "--out", str(tmp_path)]) == 0
    assert "small: the search has not begun" in capsys.readouterr().out
    (tmp_path / "half" / MODELS).write_text("[]")
    assert main(["report", "half", "--out", str(tmp_path)]) == 2
    assert "models.json was not written by a search" in capsys.readouterr().err


class PoolHere(LocalPool):
    """One worker in this process."""

    jobs = ()

    def __init__(self, space):
        super().__init__(PolicyEvaluator(space))

    def describe(self):
        return [self.evaluator.describe() | {"node": "here"}]

    def close(self):
        self.running.clear()


def test_a_search_of_two_models_is_resumed_and_the_same_in_python(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("skipsearch.search.run.start_pool", lambda space, *_: PoolHere(space))
    [alone, _] = load_spaces(str(path), {"search.trials": "2"})
    run_study(alone, tmp_path / "two/big", "two/big", shown=False)  # as if interrupted before the second model
    given = {"name": "two", "out": tmp_path, "quiet": True, "search__trials": 2}
    studies = skipsearch.search_models(path, **given)
    assert [*studies] == ["big", "small"]
    assert [one.record.num_layers for one in studies.values()] == [4, 2]
    assert [one.record.name for one in studies.values()] == ["two/big", "two/small"]
    before = [[(trial.policy, trial.search["accuracy"].value) for trial in one.trials] for one in studies.values()]
    assert (tmp_path / "two/space.yaml").read_text().endswith("\n# --set search.trials=2")
    assert (tmp_path / "two/small/space.yaml").read_text().endswith("\n# the study of the model small\n")
    command = ["run", str(path), "--name", "two", "--out", str(tmp_path), "--quiet"]
    assert main(command) == 2 and "already holds a study" in capsys.readouterr().err
    assert main([*command, "--trials", "3", "--resume", "--json"]) == 0
    assert [*json.loads(capsys.readouterr().out)["models"]] == ["big", "small"]
    again = [skipsearch.load_study(f"two/{name}", tmp_path) for name in studies]
    for one, seen in zip(again, before, strict=True):
        assert [(trial.policy, trial.search["accuracy"].value) for trial in one.trials[: len(seen)]] == seen
        assert len(one.trials) == len(seen) + 1
    assert (tmp_path / "two/report.html").exists()
    with pytest.raises(UsageError, match="takes a space of several `models`"):
        skipsearch.search_models("digits")
    with pytest.raises(SpaceError, match="names 2 models"):
        skipsearch.search(path)
