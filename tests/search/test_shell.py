"""What a shell shows: completion, the examples of every help, and output in terminals, narrow ones, pipes and logs."""

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import made_databases
import made_studies
import pytest

from skipsearch.search.cli import main
from skipsearch.search.completion import commands, completing_parser
from skipsearch.search.examples import EXAMPLES
from skipsearch.search.options import parse_options
from skipsearch.search.report.console import Output
from skipsearch.search.report.terminal import print_summary

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COLOUR = re.compile(r"\x1b\[[\d;]*m")
ALL = {"", *EXAMPLES, *(parser.prog.removeprefix("skipsearch ") for parser in commands(completing_parser()))}
OWN = sorted(ALL - {"lm-eval"})  # `skipsearch lm-eval --help` is lm-eval's own
QUICK = ("show", "validate", "ls", "completion")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder as a user has it: the spaces, an example study, and a study that holds nothing yet."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "spaces").symlink_to(ROOT / "spaces")
    (folder / "results").mkdir()
    (folder / "results/example").symlink_to(ROOT / "results/example")
    (folder / "results/first").mkdir()
    (folder / "results/first/study.db").touch()
    (folder / "bin").mkdir()
    script = folder / "bin" / "skipsearch"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m skipsearch "$@"\n')
    script.chmod(0o755)
    return folder


def environment(here, **more):
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return {**kept, "PATH": f"{here / 'bin'}:{kept['PATH']}", "HOME": str(here), "TERM": "xterm-256color", **more}


def in_shell(here, *command):
    done = subprocess.run(command, cwd=here, env=environment(here), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


ASKED = {
    "skipsearch repo": {"report"},
    "skipsearch run d": {"digits", "draft"},
    "skipsearch report fi": {"first"},
    "skipsearch show results/example/policies/pareto-0": {"results/example/policies/pareto-01.yaml"},
    "skipsearch eval p.yaml --split s": {"search"},
}
BASH = """eval "$(skipsearch completion bash)"
COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9 COMPREPLY=()
_python_argcomplete skipsearch "${1##* }" ""
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize("line", ASKED)
def test_bash_completes(line, here):
    found = in_shell(here, "bash", "--norc", "-c", BASH, "bash", line).splitlines()
    assert ASKED[line] <= {word.rstrip() for word in found}


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes(here):
    asked = "; ".join(f"complete -C '{line}'" for line in ASKED)
    found = in_shell(here, "fish", "--no-config", "-c", f"skipsearch completion fish | source; {asked}").splitlines()
    assert set().union(*ASKED.values()) <= {line.partition("\t")[0] for line in found}


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_completes(here):
    pexpect = pytest.importorskip("pexpect")
    shell = pexpect.spawn(
        "zsh", ["-f", "-i"], cwd=str(here), env=environment(here, TERM="dumb"), encoding="utf-8", timeout=60
    )
    shell.sendline('autoload -Uz compinit && compinit -u; eval "$(skipsearch completion zsh)"; echo rea""dy')
    shell.expect("ready")
    for typed, completed in (("repo", "report"), ("run dig", "digits"), ("report fir", "first")):
        shell.send(f"skipsearch {typed}\t")
        shell.expect(completed)
        shell.sendcontrol("u")
    shell.close(force=True)


QUICK_CODE = {
    "completion": ("import skipsearch.search.completion", {"pydantic", "rich"}),
    "ls": ("from skipsearch.__main__ import main; main(['ls'])", set()),
}


@pytest.mark.parametrize("name", QUICK_CODE)
def test_what_answers_at_once_loads_nothing_heavy(name, here):
    code, others = QUICK_CODE[name]
    heavy = {"torch", "transformers", "numpy", "optuna", "ray", *others}
    code = f"import sys, atexit; atexit.register(lambda: print('loaded', *{heavy} & {{*sys.modules}})); {code}"
    assert in_shell(here, sys.executable, "-c", code).splitlines()[-1].split() == ["loaded"]


def help_of(command, here, **more):
    return in_shell(here, "skipsearch", *command.split(), "--help")


@pytest.mark.parametrize("command", OWN)
def test_help_ends_with_two_examples_that_parse(command, here):
    lines = help_of(command, here).splitlines()
    assert lines[-3] == "examples:"
    assert [line.strip() for line in lines[-2:]] == list(EXAMPLES[command])
    for line in EXAMPLES[command]:
        words = shlex.split(re.sub(r'^eval "\$\((.*)\)"$', r"\1", line.partition(" > ")[0]))
        assert words[0] == "skipsearch"
        options = parse_options(words[1:])
        assert command in ("", options.command)


@pytest.mark.parametrize("line", [line for command in QUICK for line in EXAMPLES[command]])
def test_quick_examples_run(line, here):
    (here / ".config/fish/completions").mkdir(parents=True, exist_ok=True)
    in_shell(here, "bash", "-c", f"{line} && true")


MERGEKIT = """
slices:
  - {sources: [{model: some/model, layer_range: [0, 30]}]}
  - {sources: [{model: some/model, layer_range: [31, 32]}]}
merge_method: passthrough
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the studies and the files that examples name."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "results").mkdir()
    (folder / "spaces").symlink_to(ROOT / "spaces")
    (folder / "results/example").symlink_to(ROOT / "results/example")
    for name, trials in (("first", "14"), ("second", "8")):
        made_databases.made_study(folder / "results" / name, {"search.trials": trials})
    (folder / "mergekit.yaml").write_text(MERGEKIT)
    (folder / "layer_drop_config.txt").write_text("none\n" * 30 + "attn\nattn+mlp\n")
    return folder


RUN = ["init", "report", "compare", "export", "import", "eval"]
# Parsed alone: a model of the hub, 1,000 examples of digits where the other example of `eval` measures 50, and an
# export that a page of docs/ runs.
PARSED = (EXAMPLES["init"][1], EXAMPLES["eval"][0], EXAMPLES["export"][1])


@pytest.mark.parametrize("line", [line for command in RUN for line in EXAMPLES[command] if line not in PARSED])
def test_examples_run_where_their_files_are(line, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    assert main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert out and (json.loads(out) if "--json" in line else True)
    written = re.search(r"(?:-o|--out) ([\w./]+)", line)
    assert written is None or (workplace / written[1]).exists()


def test_every_file_of_an_example_is_there(here):
    """Examples are tried where the results of the README lie; files that a user brings have no folder."""
    words = [word for lines in EXAMPLES.values() for line in lines for word in shlex.split(line)]
    named = {word for word in words if word.startswith(("spaces/", "results/"))}
    assert named and all((here / word).exists() for word in named)


def in_terminal(command, here, columns, **more):
    """The output of a command in a terminal of some width, and its exit code."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        command, cwd=here, env=environment(here, **more), stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    parts = []
    with contextlib.suppress(OSError):  # Linux ends a terminal whose program has ended with an error.
        while part := os.read(leader, 65536):
            parts.append(part)
    os.close(leader)
    return b"".join(parts).decode(), process.wait()


SHOWN = ["skipsearch", "show", "results/example/policies/pareto-01.yaml"]
BROKEN = ["skipsearch", "run", "no-such-space"]


@pytest.mark.parametrize("command", [["skipsearch", "ls"], ["skipsearch", "--help"], SHOWN, BROKEN], ids=lambda c: c[1])
def test_a_narrow_terminal_shows_the_whole_text(command, here):
    narrow, code = in_terminal(command, here, 40)
    wide, same = in_terminal(command, here, 200)
    assert code == same == (2 if command is BROKEN else 0)
    assert "Traceback" not in narrow
    assert "".join(COLOUR.sub("", narrow).split()) == "".join(COLOUR.sub("", wide).split())


def test_the_layer_map_fits_a_narrow_terminal(here):
    narrow, _ = in_terminal(SHOWN, here, 40)
    lines = [COLOUR.sub("", line) for line in narrow.splitlines()]
    assert max(map(len, lines)) <= 40
    assert sum(len(line.split()) - 1 for line in lines if line.startswith("attention  ")) == 12
    measured = lines.index("  accuracy")
    figures = ["97.5 % ± 0.5", "−0.4 points vs dense 97.9 %", "n 1000 report"]
    assert [line.strip() for line in lines[measured + 1 : measured + 4]] == figures


def test_the_front_fits_a_narrow_terminal():
    """Where its table is too wide, every cell stands below its policy, with nothing cut off."""
    record, text = made_studies.study(), io.StringIO()
    for width in (40, 120):
        print_summary(record, Path("results/x"), Output(width=width, file=text))
    narrow, wide = text.getvalue().split("report results/x/report.html")[:2]
    assert "…" not in narrow and max(map(len, narrow.splitlines())) <= 40
    assert "pareto-01\n  accuracy: " in narrow
    cells = next(line for line in wide.splitlines() if line.startswith("pareto-01")).split("  ")
    block = narrow.partition("pareto-01\n")[2].partition("pareto-02")[0]
    assert [line.partition(": ")[2] for line in block.splitlines()] == [cell.strip() for cell in cells[1:] if cell]


@pytest.mark.parametrize("more", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_no_colour_where_none_is_wanted(more, here):
    plain, _ = in_terminal(SHOWN, here, 100, **more)
    colours = [code for found in COLOUR.findall(plain) for code in re.findall(r"\d+", found) if int(code) >= 30]
    assert colours == []
    coloured, _ = in_terminal(SHOWN, here, 100)
    assert "\x1b[" in coloured
    assert "".join(COLOUR.sub("", plain).split()) == "".join(COLOUR.sub("", coloured).split())


@pytest.mark.parametrize("more", [{}, {"CI": "true", "GITHUB_ACTIONS": "true"}], ids=["pipe", "CI"])
@pytest.mark.parametrize("command", [["skipsearch", "ls"], ["skipsearch", "--help"], SHOWN, BROKEN], ids=lambda c: c[1])
def test_a_pipe_gets_plain_text(command, more, here):
    done = subprocess.run(command, cwd=here, env=environment(here, **more), capture_output=True, text=True)
    assert "\x1b" not in done.stdout + done.stderr and "\r" not in done.stdout + done.stderr


SHOWS_PROGRESS = """
from skipsearch.search.driver.progress import Progress
with Progress(3, {"accuracy": "maximize"}) as progress:
    progress.phase("proposing")
    progress.note("a note")
"""


@pytest.mark.parametrize("more", [{"FORCE_COLOR": "1", "CI": "true"}, {}], ids=["colours wished", "pipe"])
def test_the_progress_in_a_log_is_lines(more, here):
    done = subprocess.run(
        [sys.executable, "-c", SHOWS_PROGRESS],
        env=environment(here, **more),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.splitlines() == ["loading the model", "proposing 0/3", "a note"]


def test_the_progress_on_a_terminal_is_a_bar(here):
    command = [sys.executable, "-c", SHOWS_PROGRESS]
    live, _ = in_terminal(command, here, 40)
    assert "\x1b[2K" in live and "━" in live
    dumb, _ = in_terminal(command, here, 40, TERM="dumb")
    assert dumb.split("\r\n")[:3] == ["loading the model", "proposing 0/3", "a note"]
