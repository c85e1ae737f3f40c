"""`skipsearch.search` and `load_study`: what they take, what they refuse, and what a notebook draws of a study."""

import base64
import csv
import html
import io
import pickle
import re
import subprocess
import sys
from pathlib import Path

import made_studies
import pytest
import searching
from PIL import Image

import skipsearch
from skipsearch import Policy, Space
from skipsearch.policies.errors import ModelError, SkipsearchError, SpaceError, StudyError, UsageError
from skipsearch.search.analysis.assessment import assess
from skipsearch.search.analysis.study_record import policy_files
from skipsearch.search.api import as_yaml, load
from skipsearch.search.cli import main
from skipsearch.search.init.searched_model import names_model
from skipsearch.search.places import shipped_spaces
from skipsearch.search.report.console import Output
from skipsearch.search.report.folder import exported
from skipsearch.search.report.html.page import write_trials_csv
from skipsearch.search.report.layer_map import layer_map
from skipsearch.search.report.notebook import Study
from skipsearch.search.report.terminal import print_summary
from skipsearch.search.space.load import load_space
from skipsearch.search.study.study import SearchStudy

HEAVY = {"torch", "transformers", "optuna", "ray", "rich", "numpy"}
ORDERS = [
    "from skipsearch import search",
    "import skipsearch.search.places; from skipsearch import search",
    "import skipsearch; search = skipsearch.search",
    "from skipsearch import search; import skipsearch.search.space.load as load; assert load.load_space",
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return searching.tiny_space(tmp_path_factory.mktemp("space"))


@pytest.fixture(scope="module")
def study():
    return Study(assess(made_studies.study()), Path("results/made"))


@pytest.mark.parametrize("order", ORDERS)
def test_search_is_one_thing_in_whatever_order_it_is_imported(order):
    """Python binds the subpackage of this name in the package, so both must be the same."""
    code = f"{order}\nimport sys, skipsearch\nassert callable(search) and search is skipsearch.search\n"
    code += "from skipsearch import search as again\nassert again is search is sys.modules['skipsearch.search']\n"
    code += f"print(*{HEAVY} & {{*sys.modules}})" if "load" not in order else ""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def test_search_can_be_sent_to_another_process():
    assert pickle.loads(pickle.dumps(skipsearch.search)) is skipsearch.search


@pytest.mark.parametrize("name", shipped_spaces())
def test_a_space_is_the_same_as_a_name_a_path_a_value_and_a_mapping(name):
    file = shipped_spaces()[name]
    [loaded] = load(name, {})
    space = loaded.space
    assert all(load(same, {})[0].space == space for same in (file, str(file), space))
    keys = space.model_dump(mode="json", by_alias=True)
    keys.pop("schema")
    [loaded] = load(keys, {})
    assert loaded.space == space and loaded.name == Path(space.model.id).name
    assert Space.model_validate(space.model_dump(by_alias=True)) == space


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [("search.trials", 7, "7"), ("constraints", {"accuracy": ">= 0.8 * dense"}, "{accuracy: '>= 0.8 * dense'}"),
     ("layers", [{"range": "all", "choices": ["keep", {"token_ratio": (0.5, 0.25)}]}],
      "[{range: all, choices: [keep, {token_ratio: [0.5, 0.25]}]}]"),
     ("search.seed", 0, "0"), ("evaluate.flops", None, ""), ("model.trust_remote_code", False, "false")],
    ids=lambda part: str(part)[:16],
)  # fmt: skip
def test_a_value_means_what_set_means(key, value, text, path):
    assert load(path, {key: as_yaml(key, value)})[0].space == load_space(str(path), {key: text}).space


@pytest.mark.parametrize("number", [1e-5, 0.1, 3, float("inf"), True])
def test_numbers_stay_numbers(number, path):
    with pytest.raises(SpaceError) as told:
        load(path, {"search.sampler": as_yaml("search.sampler", number)})
    assert "found '" not in str(told.value)


MODELS = [
    ("llava-hf/llava-1.5-7b-hf", True), ("s3://bucket/folder", True), ("./llava", True), ("digits", False),
    ("spaces/mine.yaml", False), ("./mine", False), ("of/no/hub", False), ("image_gen.yaml", False),
]  # fmt: skip


@pytest.mark.parametrize(("given", "is_model"), MODELS)
def test_a_model_is_told_from_a_space(given, is_model, path, monkeypatch):
    monkeypatch.chdir(path.parent)
    assert names_model(given) == is_model
    (path.parent / "spaces").mkdir(exist_ok=True)
    assert not names_model("../" + path.parent.name) and not names_model("spaces")


def test_the_space_of_a_model_is_that_of_init(path, monkeypatch, capsys):
    monkeypatch.chdir(path.parent)
    asked = {"search.trials": "7", "evaluate.accuracy.tasks": "[image_mc.yaml]", "model.dtype": "float32"}
    [found] = load("llava", asked)
    assert main(["init", "./llava", "--tasks", "image_mc.yaml", "--dtype", "float32", "--trials", "7", "-o", "-"]) == 0
    (path.parent / "written.yaml").write_text(capsys.readouterr().out)
    assert found.space == load_space("written.yaml").space
    assert (found.name, found.space.model.id) == ("llava", str(path.parent / "llava"))
    assert found.space.evaluate["accuracy"]["tasks"] == [str(path.parent / "image_mc.yaml")]
    [again] = load("llava", asked)
    assert again.text == found.text, "a search that was interrupted goes on with the same space"


WRONG = {
    "a name that is none": (("digit",), {}, SpaceError, "no space is called 'digit'"),
    "a number": ((3,), {}, UsageError, "found int"),
    "a key that is none": (({"model": {"id": "x"}, "layer": []},), {}, SpaceError, "the nearest known one is 'layers'"),
    "a value of the wrong type": (("digits",), {"trials": "many"}, SpaceError, "search.trials"),
    "a value that YAML has no form for": (("digits",), {"search__seed": object()}, UsageError, "search.seed"),
    "a model that the hub has not": (("no-body/no-model",), {}, ModelError, "no-body/no-model"),
    "an override of a model that is wrong": (("no-body/no-model",), {"model__dtype": "int3"}, SpaceError, "dtype"),
    "an override that leads nowhere": (("digits",), {"search__trails": 3}, SpaceError, "search.trails"),
    "a name that is no folder's": (("digits",), {"name": "a/b"}, UsageError, "one folder's name"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_refused_as_on_the_command_line(case, tmp_path):
    arguments, options, error, text = WRONG[case]
    with pytest.raises(error, match=re.escape(text)) as told:
        skipsearch.search(*arguments, out=tmp_path, **options)
    assert isinstance(told.value, SkipsearchError) and not [*tmp_path.iterdir()]


def test_code_of_tasks_needs_consent(path, tmp_path):
    (tmp_path / "own.yaml").write_text("task: own\nprocess_docs: !function utils.steal\n")
    tasks = {"evaluate__accuracy__tasks": [tmp_path / "own.yaml"]}
    with pytest.raises(SpaceError, match="task files run code"):
        skipsearch.search(path, out=tmp_path, **tasks)


def test_a_study_that_is_there_is_not_begun_again_where_that_is_wished(path, tmp_path):
    SearchStudy(tmp_path / "mine" / "study.db", "mine", searching.loaded(path).space, 4)
    with pytest.raises(StudyError, match="already holds a study"):
        skipsearch.search(path, out=tmp_path, name="mine", resume=False)
    with pytest.raises(StudyError, match="no dense trial yet"):
        skipsearch.load_study("mine", out=tmp_path)
    with pytest.raises(StudyError, match="holds no study"):
        skipsearch.load_study("other", out=tmp_path)


def test_the_front_is_a_list_of_policies_with_their_measurements(study):
    record = study.record
    numbers = [*policy_files(record)]
    assert len(study.front) == len(numbers) > 2
    assert [policy.provenance.trial for policy in study.front] == numbers
    assert [*study.front[1:3]] == [study.front[1], study.front[2]] and study.front[-1] in study.front
    for policy, number in zip(study.front, numbers, strict=True):
        assert policy == exported(record, record.trial(number))
        entry, measured = policy.measured["accuracy"], record.trial(number).report["accuracy"]
        assert (entry.value, entry.dense, entry.split) == (
            measured.value,
            record.dense.report["accuracy"].value,
            "report",
        )
        assert entry.interval == pytest.approx((entry.value - 1.96 * 0.012, entry.value + 1.96 * 0.012))
        assert policy.measured["prefill_flops"].interval is None
    assert study.dense.is_dense and study.dense.measured["accuracy"].value == record.dense.report["accuracy"].value
    assert study.trials == record.trials
    assert "60 trials" in repr(study) and len(repr(study)) < 120


def test_the_data_frame_has_what_the_table_has(study, tmp_path):
    pandas = pytest.importorskip("pandas")
    write_trials_csv(study.record, tmp_path / "trials.csv")
    with (tmp_path / "trials.csv").open(newline="") as stream:
        rows = [*csv.DictReader(stream)]
    frame = study.to_dataframe()
    assert [*frame.columns] == [*rows[0]] and len(frame) == len(rows) == len(study.trials)
    for name in frame.columns:
        told = ["" if pandas.isna(value) else value for value in frame[name]]
        for value, text in zip(told, (row[name] for row in rows), strict=True):
            assert str(value) == text or float(value) == float(text), name


def test_a_data_frame_without_pandas_is_refused_by_name(study, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(StudyError, match=r"needs the package pandas.*\nhint: pip install 'skipsearch\[pandas\]'"):
        study.to_dataframe()


def text_of(markup):
    return html.unescape(re.sub(r"<[^>]+>", "", markup))


def test_a_notebook_draws_the_layer_map_of_the_terminal(study):
    policy = study.front[0]
    console = Output(file=io.StringIO(), width=100)
    console.print(layer_map(policy, 12))
    assert text_of(policy._repr_html_()).split() == console.file.getvalue().split()
    hostile = policy.model_copy(update={"model": policy.model.model_copy(update={"id": "<script>alert(1)</script>"})})
    assert "<script" not in hostile._repr_html_() and "<script>" in text_of(hostile._repr_html_())


def test_a_notebook_draws_the_front_and_the_summary(study):
    console = Output(file=io.StringIO(), width=100)
    print_summary(study.record, study.folder, console)
    names = " ".join(Path(file).stem for file in policy_files(study.record).values())
    for thing, text in ((study, console.file.getvalue()), (study.front, names)):
        markup = thing._repr_html_()
        picture = base64.b64decode(re.search(r'src="data:image/png;base64,([^"]+)"', markup)[1])
        assert Image.open(io.BytesIO(picture)).size == (720, 450)
        assert {*text.split()} <= {*text_of(markup).split()}
        assert len(markup) < 150_000 and "<script" not in markup and "<style" not in markup


def test_a_policy_is_plain_text_without_the_packages_that_draw():
    code = "import sys; sys.modules['rich'] = None\nfrom skipsearch import Policy\nprint(Policy()._repr_html_())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "None\n"
    assert Policy()._repr_html_() is not None
