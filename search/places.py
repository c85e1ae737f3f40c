"""Where spaces and studies are. It loads nothing heavy, so that listing and completing names is quick."""

from pathlib import Path

import yaml

from ..policies.errors import UsageError

SPACES = Path(__file__).resolve().parents[1] / "spaces"
RESULTS = Path("results")
DATABASE = "study.db"
RANKING = "energy.safetensors"  # in the folder of a study, and beside its policies
STORAGE = "storage.json"  # in a study's folder, says where its database is if it is not `study.db`
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
    """The folders of the studies in a folder, by name."""
    return sorted({file.parent for name in (DATABASE, STORAGE) for file in out.glob(f"*/{name}")})


def holds_study(folder: Path) -> bool:
    """True for a folder with a study's database, or with a file that says where the database is."""
    return (folder / DATABASE).exists() or (folder / STORAGE).exists()


def study_path(given: str, out: Path) -> Path:
    """The folder of a study, from its path or from its name in the folder above it."""
    path, under_out = Path(given), out / given
    return path if holds_study(path) or (path.is_dir() and not under_out.is_dir()) else under_out


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
