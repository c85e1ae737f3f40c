"""Where spaces and studies are. It loads nothing heavy, so that listing and completing names is quick."""

from pathlib import Path

import yaml

SPACES = Path(__file__).resolve().parents[1] / "spaces"
RESULTS = Path("results")
DATABASE = "study.db"


def shipped_spaces() -> dict[str, Path]:
    """The spaces that come with skipsearch, by name."""
    return {file.stem: file for file in sorted(SPACES.glob("*.yaml"))}


def shipped_models() -> dict[str, str]:
    """The model of each shipped space, by the space's name: a hub id, or the path of a folder."""
    return {name: _model(file) for name, file in shipped_spaces().items()}


def _model(file: Path) -> str:
    given = str(yaml.safe_load(file.read_text(encoding="utf-8"))["model"]["id"])
    folder = file.parent / given
    return str(folder.resolve()) if folder.exists() else given


def study_databases(out: Path) -> list[Path]:
    """The databases of the studies in a folder, by name."""
    return sorted(out.glob(f"*/{DATABASE}"))
