"""The shipped spaces for hub models, from end to end with the model and the tasks swapped for tiny local ones."""

import pytest
import searching
from tiers import soak

import tiny
from skipsearch.search.run import run_study
from skipsearch.search.space.load import load_space

LAYERS = 32


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with searching.cluster():
        yield


def swapped(folder, name):
    """`--set` for a shipped space: a random model of as many layers, and a task of its kind."""
    if name == "llava":
        model, task = tiny.tiny_llava(folder, LAYERS), tiny.image_tasks(folder, 8)["image_gen"]
    else:
        tasks = tiny.text_tasks(folder, 8)
        model, task = tiny.tiny_llama(folder, LAYERS), tasks["text_gen" if name == "draft" else "text_mc"]
    shared = {"model.id": str(model), "search.trials": "3", "workers.count": "1"}
    options = f"{{tasks: ['{task}'], search: {{limit: 4}}, report: {{limit: 4}}}}"
    if name != "draft":
        few = {"evaluate.latency.repeats": "2", "evaluate.latency.new_tokens": "4"}
        return {**shared, **few, "evaluate.accuracy": options}
    short = "{draft_tokens: 2, new_tokens: 4, prompts: 2, repeats: 1}"
    return {**shared, "evaluate.divergence": options, "evaluate.speculative": short}


@pytest.mark.parametrize("name", ["llava", soak("llama"), soak("draft")])
def test_a_shipped_space_runs_from_end_to_end(name, tmp_path):
    loaded = load_space(name, swapped(tmp_path, name))
    record = run_study(loaded, tmp_path / name, shown=False)
    assert record.num_layers == LAYERS
    assert [trial.state for trial in record.trials] == ["complete"] * len(record.trials)
    assert set(record.objectives) <= set(record.dense.search)
    assert all(record.trial(number).report for number in (*record.front, *record.in_gaps))
    assert record.environment["workers"][0]["dtype"] == loaded.space.model.dtype != "auto"
