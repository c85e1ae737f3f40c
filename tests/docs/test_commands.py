"""Every command and every piece of code on the front page and in docs/, run as it stands there, each once."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pages import LESS, LESS_TIME, ROOT, blocks, clone, is_script, page_names
from PIL import Image
from searching import cluster
from transformers import AutoProcessor

from skipsearch.policies.document import Document
from skipsearch.policies.errors import PolicyError, SpaceError
from skipsearch.policies.policy import Policy
from skipsearch.search import api
from skipsearch.search.cli import main
from skipsearch.search.options import parse_options
from skipsearch.search.space.load import read_spaces

PATIENCE = 400
# Programs of others, which a reader installs or has: their commands are not run.
FOREIGN = {"pip", "python", "git", "curl", "docker", "vllm", "llama-cli", "optuna-dashboard", "tensorboard", "mlflow",
           "wandb", "jupyter", "source", "eval", "autoload", "export", "cd", "xdg-open", "open", "twine"}  # fmt: skip
SHELL = {"printf", "cat", "echo", "ls", "mkdir", "cp"}
PLACEHOLDER = re.compile(r"\b[A-Z][A-Z_]+\b|…|\.\.\.")
HEAVY = {"llava", "llama", "draft"}  # spaces of models that tests cannot load
FILE = re.compile(r"(\./)?[\w.-]+(/[\w.-]+)+|[\w.-]+\.(yaml|txt|json)")  # also an id of the hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A clone, with a Ray whose workers start in it: paths of data are relative to there."""
    folder = clone(tmp_path_factory.mktemp("clone"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with cluster():
            yield folder


@pytest.fixture(scope="module")
def done():
    """The commands that ran."""
    return set()


@pytest.fixture(scope="module")
def inputs(folder):
    """What `inputs` stands for in the code: a question about a picture."""
    processor = AutoProcessor.from_pretrained(ROOT / "spaces/digits/model")
    prompt = "USER: <image> Which digit is at the top left? ASSISTANT:"
    return {**processor(text=prompt, images=Image.new("RGB", (56, 56)), return_tensors="pt"), "max_new_tokens": 2}


@pytest.fixture
def small_searches(monkeypatch):
    """Searches of Python code measure as little as those of commands."""
    whole = api.load
    monkeypatch.setattr(api, "load", lambda space, given: whole(space, {**given, **less([space])}))


@pytest.mark.parametrize("page", page_names())
def test_the_code_of_a_page_runs(page, folder, done, inputs, small_searches, monkeypatch):
    """From top to bottom: files are written, Python is executed, commands are run."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    names = {"inputs": inputs}
    for block in blocks(page, "bash", "python", "yaml"):
        if block.title:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, page, "exec"), names)
        elif block.language == "yaml":
            check_yaml(block.text, page)
        elif not is_script(block):
            for command in block.commands:
                if command not in done:
                    done.add(command)
                    run(command, folder)


def check_yaml(text, page):
    """A whole space or policy is valid; anything else is YAML."""
    given = yaml.safe_load(text)
    schema = given.get("schema") if isinstance(given, dict) else None
    if schema == "skipsearch/policy/v1":
        Document(text, page, PolicyError).validate(Policy)
    elif schema:
        read_spaces(Document(text, page, SpaceError), ROOT / "spaces" / "page.yaml", {})


def run(command, folder):
    program, *arguments = shlex.split(command, comments=True)
    if {">", ">>", "|"} & {*arguments}:
        shell(command, folder)
    elif program == "skipsearch":
        run_skipsearch(arguments)
    elif program == "make":
        shell(f"make --dry-run PYTHON={sys.executable} {shlex.join(arguments)}", folder)
    elif program in SHELL:
        shell(command, folder)
    elif command.startswith("python -m "):
        run_module(*arguments[1:])
    else:
        assert program in FOREIGN or program == "ray", f"{command}: how is this one tested?"


def run_skipsearch(arguments):
    """Run the command in this process; parse it where it names a thing that a test does not have."""
    if any(PLACEHOLDER.search(word) for word in arguments) or HEAVY & {*arguments} or is_elsewhere(arguments):
        parse_options(arguments)
        return
    try:
        status = main([*arguments, *(fewer(arguments) if arguments[0] == "run" else [])])
    except SystemExit as end:  # of `--help`, and of lm-eval
        status = end.code or 0
    assert status == 0, arguments


def is_elsewhere(arguments):
    """True for a command on a cluster, and for one that reads a file or a bucket of the reader's, or a hub's model."""
    written = {word for before, word in zip(arguments, arguments[1:], strict=False) if before in ("--out", "-o")}
    named = [word for word in arguments if FILE.fullmatch(word) and word not in written]
    is_remote = "--address" in arguments or any(word.startswith("s3://") for word in arguments)
    return is_remote or not all(Path(word).exists() for word in named)


def fewer(arguments):
    """Options of a search that measures less, and goes on where an earlier page began the same study."""
    settings = less(arguments) | ({} if "--trials" in arguments else {"search.trials": 3})
    name = arguments[arguments.index("--name") + 1] if "--name" in arguments else Path(arguments[1]).stem
    again = ["--resume"] if Path("results", name).exists() and "--resume" not in arguments else []
    return [*(f"--set={key}={value}" for key, value in settings.items()), *again]


def less(arguments):
    """Settings of a search that measures less."""
    return {key: str(value) for key, value in {**LESS, **(LESS_TIME if "digits" in arguments else {})}.items()}


def run_module(name, *arguments):
    """Run pytest on a file that the page wrote; of other modules, and tests of the repository, see that they exist."""
    assert importlib.util.find_spec(name), name
    if name == "pytest" and Path(arguments[0]).exists():
        assert pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir=.", "-c", "/dev/null", *arguments]) == 0
    elif name == "pytest":
        assert (ROOT / arguments[0]).exists()


def shell(command, folder):
    """Run a command in a shell of its own, whose home is the folder: no page touches the files of its reader."""
    environment = {**os.environ, "HOME": str(folder), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert done.stdout or ">" in command or command.startswith(("mkdir", "cp"))


def test_the_first_pages_leave_a_study_behind(folder):
    """So their commands were run, and not only parsed."""
    for path in (
        "results/first/report.html",
        "results/mine/report.html",
        "results/exported/policy.yaml",
        "dropped.yaml",
    ):
        assert (folder / path).exists(), path
