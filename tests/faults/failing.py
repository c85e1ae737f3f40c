"""Searches with an evaluator that goes wrong, over a tiny text model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import tiny
from skipsearch.policies.plugins import installed
from skipsearch.search.space.load import load_space
from skipsearch.search.space.space import LoadedSpace

SPACE = """
schema: skipsearch/space/v1
model: {id: ./llama}
layers: [{range: all, choices: [keep, skip_ffn, skip_attention]}]
evaluate: {flops: {prompt_tokens: 4}, faulty: {folder: FOLDER}}
objectives: {kept: maximize, prefill_flops: minimize}
search: {trials: 10, seed: 3}
workers: {count: 2}
"""


def plugged(folder: Path) -> Path:
    """Install the evaluator for this process and those that it starts; gives the folder to look in."""
    info = folder / "site" / "faulty-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[skipsearch.evaluators]\nfaulty = faulty:Faulty\ntimed = faulty:Timed\n")
    places = [str(folder / "site"), str(Path(__file__).parent)]
    sys.path[:0] = [place for place in places if place not in sys.path]
    installed.cache_clear()
    os.environ["PYTHONPATH"] = os.pathsep.join([*places, os.environ.get("PYTHONPATH", "")])
    return folder


def space(folder: Path) -> Path:
    """Write the model and the space."""
    if not (folder / "llama").exists():
        tiny.tiny_llama(folder)
    path = folder / "failing.yaml"
    path.write_text(SPACE)
    return path


def loaded(path: Path, words: Path, does: str = "nothing", **given: object) -> LoadedSpace:
    """The space, and what goes wrong in it; other keys by their dotted names, a dot written as two underscores."""
    plan = {key: given.pop(key) for key in ("layer", "after", "once") if key in given}
    words.mkdir(exist_ok=True)
    (words / "plan.json").write_text(json.dumps(plan | {"does": does}))
    changes = {key.replace("__", "."): str(value) for key, value in given.items()}
    return load_space(str(path), {"evaluate.faulty.folder": f"'at:{words}'"} | changes)


def measured(words: Path) -> list[str]:
    """The fingerprint of each policy that the evaluator was asked for, once a call."""
    return [file.name.partition(".")[0] for file in sorted(words.glob("*.*.*"))]


def processes(words: Path) -> set[str]:
    """The processes in which the evaluator was asked for something."""
    return {file.name.split(".")[1] for file in words.glob("*.*.*")}


def words_of(words: Path) -> list[dict[str, object]]:
    """What each measurement that has ended left of itself: its device, whether it timed, and its span."""
    return [json.loads(text) for file in sorted(words.glob("*.*.*")) if (text := file.read_text())]


def own_ray() -> dict[str, str]:
    """The environment of a process that starts a Ray of its own."""
    return {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}


def command(*words: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs the command line."""
    return subprocess.run(
        [sys.executable, "-m", "skipsearch", *words], capture_output=True, text=True, timeout=timeout, env=own_ray()
    )
