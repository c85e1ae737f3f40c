"""Broken files: every mistake is told in plain words, with its place, and never with a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from bad_files import POLICY, RANGES, SPACE, cases

from skipsearch.policies.document import MAX_BYTES
from skipsearch.search.cli import main


def told(name: str, lines: list[str], hint: str | None) -> str:
    """The whole of what a user should see."""
    count = "a problem" if len(lines) == 1 else f"{len(lines)} problems"
    places = "".join(f"  {name}:{line}\n" for line in lines)
    return f"error: {name} has {count}\n{places}" + (f"hint: {hint}\n" if hint else "")


@pytest.mark.parametrize(("text", "lines", "hint"), cases())
def test_message(text, lines, hint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("f.yaml").write_text(text, encoding="utf-8")
    assert main(["validate", "f.yaml"]) == 2
    out, err = capsys.readouterr()
    assert err == told("f.yaml", lines, hint)
    assert out == ""


def test_the_undamaged_files_are_right(tmp_path, capsys):
    (tmp_path / "space.yaml").write_text(SPACE)
    (tmp_path / "policy.yaml").write_text(POLICY)
    assert main(["validate", str(tmp_path / "space.yaml"), str(tmp_path / "policy.yaml")]) == 0


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("f.yaml").write_text(
        "schema: skipsearch/space/v1\n"
        "model: {id: m, dtyp: float32}\n"
        "layers:\n"
        "  - {range: 5-2x, choices: [keep, skip_fnn]}\n"
        "  - {choices: [{token_ratio: 2}], extra: 1}\n"
        "evaluate: {flosp: , latency: {repeat: 3}}\n"
        "objectives: {prefill_flops: down}\n"
        "search: {trials: -4, trials: -3}\n"
        "surprise: !!set {a}\n"
    )
    lines = [
        "2:16  model.dtyp: unknown key; the nearest known one is 'dtype'",
        f"4:6  layers[0].range: found '5-2x', {RANGES}",
        "4:35  layers[0].choices[1]: unknown choice 'skip_fnn'; the nearest known one is 'skip_ffn'",
        "5:17  layers[1].choices[0].token_ratio: found 2, expected 1 or less, or a list",
        "5:35  layers[1].extra: unknown key; known: attention, choices, evict, ffn, ffn_ratio, head_ratio, norm, "
        "phase, range, rest, token_ratio, tokens, window, wiring",
        "6:12  evaluate.flosp: there is no evaluator 'flosp'; the nearest known one is 'flops'",
        "6:31  evaluate.latency.repeat: unknown key; the nearest known one is 'repeats'",
        "7:14  objectives.prefill_flops: found 'down', expected 'maximize' or 'minimize'",
        "8:10  search.trials: found -3, expected 1 or more",
        "8:22  search.trials: duplicate key",
        "9:1  surprise: found the tag !!set, expected plain values",
    ]
    assert main(["validate", "f.yaml"]) == 2
    assert capsys.readouterr().err == told("f.yaml", lines, None)


def test_a_flood_of_mistakes_is_cut(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("f.yaml").write_text(POLICY + "layers:\n" + "".join(f"  {layer}: skip\n" for layer in range(2000)))
    assert main(["validate", "f.yaml"]) == 2
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "error: f.yaml has 2000 problems"
    assert len(lines) == 51
    assert lines[-1] == "  and 1950 more"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            b"schema: a\nmodel: \xff",
            "error: f.yaml is not UTF-8 text\n  f.yaml:2:8  found the byte 0xff, expected UTF-8\n",
        ),
        (
            "schema: a".encode("utf-16"),
            "error: f.yaml is not UTF-8 text\n  f.yaml:1:1  found the byte 0xff, expected UTF-8\n",
        ),
        (b"#" * (MAX_BYTES + 1), f"error: f.yaml is too large\n  expected at most {MAX_BYTES} bytes\n"),
    ],
    ids=["a byte", "UTF-16", "large"],
)
def test_not_text(raw, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("f.yaml").write_bytes(raw)
    assert main(["validate", "f.yaml"]) == 2
    assert capsys.readouterr().err == message


def test_no_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    assert main(["validate", "nowhere.yaml", "folder", "x" * 5000]) == 2
    assert capsys.readouterr().err == (
        "error: nowhere.yaml does not exist\n"
        "hint: check the path; `skipsearch ls` lists what there is\n"
        "error: folder is a folder\n"
        "  expected a YAML file\n"
        f"error: '{'x' * 56}... cannot be read\n"
        "  File name too long\n"
    )


@pytest.mark.parametrize(
    "text", [POLICY + "layers: {1: skip}\n", "a: &a [*a]\n", SPACE + "search: 5\n"], ids=["policy", "loop", "space"]
)
def test_the_real_command_shows_no_traceback(text, tmp_path):
    (tmp_path / "f.yaml").write_text(text)
    command = [sys.executable, "-m", "skipsearch", "validate", "f.yaml"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.startswith("error: f.yaml has a problem\n  f.yaml:")
    assert "Traceback" not in ran.stderr
