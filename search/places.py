"""Where spaces and studies are. It loads nothing heavy, so that listing and completing names is quick."""

import json
from pathlib import Path

import yaml

from ..policies.errors import StudyError, UsageError

SPACES = Path(__file__).resolve().parents[1] / "spaces"
RESULTS = Path("results")
DATABASE = "study.db"
RANKING = "energy.safetensors"  # in the folder of a study, and beside its policies
STORAGE = "storage.json"  # in a study's folder, says where its database is if it is not `study.db`
MODELS = "models.json"  # in a folder that holds one study for each of several models
POLICIES = "policies"  # the folder of a study that holds policy files and the folders of trained weights


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


def study_folders(out: Path) -> list[Path]:
    """The folders of the studies in a folder, by name; those of several models stand in a folder of their own."""
    above = [out, *(file.parent for file in out.glob(f"*/{MODELS}"))]
    return sorted({file.parent for one in above for name in (DATABASE, STORAGE) for file in one.glob(f"*/{name}")})


def model_folders(folder: Path) -> list[Path]:
    """The folders of the studies of several models, in the order of their space; empty for another folder.

    Raises:
        StudyError: the list of the models was not written by a search.
    """
    file = folder / MODELS
    if not file.exists():
        return []
    try:
        return [folder / str(name) for name in json.loads(file.read_text(encoding="utf-8"))["models"]]
    except (OSError, ValueError, KeyError, TypeError):
        expected = 'expected {"models": [NAME, …]}'
        raise StudyError(f"{file} was not written by a search", [expected], "restore it, or write it by hand") from None


def holds_study(folder: Path) -> bool:
    """True for a folder with a study's database, or with a file that says where the database is."""
    return (folder / DATABASE).exists() or (folder / STORAGE).exists()


def study_path(given: str, out: Path) -> Path:
    """The folder of a study, or of the studies of several models, from its path or its name in the folder above it."""
    path, under_out = Path(given), out / given
    found = holds_study(path) or (path / MODELS).exists()
    return path if found or (path.is_dir() and not under_out.is_dir()) else under_out


def refuse_several(folder: Path, instead: str) -> None:
    """Refuse a folder that holds the studies of several models where one study is expected.

    Raises:
        StudyError: naming the studies.
    """
    found = model_folders(folder)
    if found:
        what = f"{folder} holds the studies of {len(found)} models, expected one study"
        raise StudyError(what, [str(one) for one in found], instead)


def study_folder(out: Path, name: str) -> Path:
    """The folder of a study.

    Raises:
        UsageError: the name is no folder name, or a file has the path of the folder or of one above it.
    """
    if Path(name).name != name or name in ("", ".."):
        raise UsageError("--name takes one folder's name", [f"found {name!r}"], "use --out for the folder above it")
    folder = out / name
    for above in (folder, *folder.parents):
        if above.exists() and not above.is_dir():
            raise UsageError(f"{above} is a file", [f"expected a folder, for {folder}"], "give another one with --out")
    return folder
