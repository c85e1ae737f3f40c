"""The notebooks in `examples/`: they run from start to end, and what is committed was executed and is small."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from skipsearch import Policy

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ["digits", "evaluator"]
MAX_BYTES = 150_000
PATIENCE = 400


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def printed(notebook):
    return "".join(output.text for output in outputs(notebook) if output.output_type == "stream")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Each notebook after it ran in a folder of its own, by name."""
    found = {}

    def run(name):
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
            NotebookClient(notebook, timeout=PATIENCE, resources={"metadata": {"path": str(folder)}}).execute()
            found[name] = notebook, folder
        return found[name]

    return run


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_was_executed(name):
    file = EXAMPLES / f"{name}.ipynb"
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert not any(output.output_type == "error" for output in outputs(notebook))
    assert file.stat().st_size < MAX_BYTES
    assert "/home/" not in json.dumps(notebook) and "/tmp/" not in json.dumps(notebook)


def test_every_notebook_is_tested():
    assert sorted(file.stem for file in EXAMPLES.glob("*.ipynb")) == NAMES


def test_digits_from_a_search_to_a_server(executed):
    notebook, folder = executed("digits")
    policy = Policy.load(folder / "digits-policy.yaml")
    assert (folder / "results/digits/report.html").exists()
    assert f"under policy {policy.fingerprint}" in printed(notebook)
    answers = dict(line.split(":", 1) for line in printed(notebook).splitlines() if ":" in line)
    assert answers["the server answers"].strip() == answers["under policy"].strip() != ""


def test_an_evaluator_of_ones_own(executed):
    notebook, folder = executed("evaluator")
    assert "agreement 0." in printed(notebook) or "agreement 1." in printed(notebook)
    assert "SpaceError" in printed(notebook) and "the nearest known one is 'prompts'" in printed(notebook)
    assert (folder / "results/agreement/report.html").exists()
