"""The pages of the documentation and the code in them, and a folder in which their commands run."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Later pages use what earlier ones made.
FIRST = ["README.md", "docs/tutorial/digits.md", "docs/tutorial/own-model.md"]
# What a search finds is not looked at here, so it measures less.
LESS = {
    "evaluate.accuracy.search.limit": 32,
    "evaluate.accuracy.report.limit": 32,
    "evaluate.accuracy.batch_size": 32,
    "search.guide": "none",
}
LESS_TIME = {f"evaluate.latency.{key}": 1 for key in ("batch_size", "repeats", "warmup")} | {
    "evaluate.latency.new_tokens": 2
}


def page_names() -> list[str]:
    """The front page, and every page of the site that is written by hand, in the order in which they run."""
    docs = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "docs").rglob("*.md"))
    return [*FIRST, *(name for name in docs if name not in FIRST)]


@dataclass(frozen=True)
class Block:
    """A block of code on a page."""

    language: str
    title: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The commands of a shell, continued lines put together."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def blocks(name: str, *languages: str) -> list[Block]:
    """The blocks of a page that are in one of these languages."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.findall(r'^```(\w+)(?: title="(.+?)")?\n(.*?)^```$', text, re.S | re.M)
    return [Block(*one) for one in found if one[0] in languages]


def is_script(block: Block) -> bool:
    """True for a file that a batch system runs."""
    return block.text.startswith("#!")


def clone(folder: Path) -> Path:
    """Give a folder what a clone has at hand."""
    for name in ("spaces", "Makefile", "pyproject.toml", "constraints.txt", "mkdocs.yml", "docs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "results").mkdir()
    shutil.copytree(ROOT / "results" / "example", folder / "results" / "example")
    return folder
