"""Links: a page links to files of the repository by their paths, and the site has a page for each of these."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
DOCS, SOURCE = "docs", "source"
INCLUDE = re.compile(r"^<!-- include: (.+?) -->$", re.M)
FENCE = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2 *$", re.M | re.S)
TARGET = re.compile(r"(?<=\]\()([^)\s#]*)(#[^)\s]*)?(?=\))")
LONG_FENCE = "`````"
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".sh": "bash", ".toml": "toml", ".csv": "text"}


class Repository:
    """Which page of the site shows which file of the repository.

    Attributes:
        pages: Paths in the repository by path of a page below `docs`: of the page, or of the file that it includes.
        texts: The text of each page with the file that it includes.
    """

    def __init__(self) -> None:
        self.pages: dict[str, str] = {}
        self.texts: dict[str, str] = {}

    def read(self, pages: Mapping[str, str]) -> None:
        """Read all pages of the site.

        Args:
            pages: The path of each page's file, by its path below `docs`.
        """
        self.__init__()  # type: ignore[misc]  # `mkdocs serve` reads again what has changed.
        for uri, path in pages.items():
            text = Path(path).read_text(encoding="utf-8")
            included = INCLUDE.search(text)
            self.pages[uri] = included[1] if included else f"{DOCS}/{uri}"
            self.texts[uri] = with_included(text)

    def uri(self, path: str) -> str:
        """The path below `docs` of the page that shows a file or folder of the repository."""
        of_page = {shown: uri for uri, shown in self.pages.items()}
        for known in (path, f"{path}/README.md"):
            if known in of_page:
                return of_page[known]
        if path.startswith(f"{DOCS}/"):
            return path.removeprefix(f"{DOCS}/")
        if (ROOT / path).is_dir():
            return f"{SOURCE}/{path}/index.md"
        return f"{SOURCE}/{path}" if is_picture(path) else f"{SOURCE}/{path}.md"

    def linked_files(self) -> dict[str, str | bytes]:
        """By path below `docs`, a page for each file of the repository that a page links to and that has no page."""
        waiting = [path for uri, text in self.texts.items() for path in self.targets(text, self.pages[uri])]
        found: dict[str, str | bytes] = {}
        while waiting:
            path = waiting.pop()
            uri = self.uri(path)
            if uri in found or not uri.startswith(f"{SOURCE}/"):
                continue
            found[uri] = self.page_of(path)
            if (ROOT / path).is_dir():
                waiting += files_below(path)
        return found

    def targets(self, text: str, path: str) -> Iterator[str]:
        """The files of the repository that a text links to, which stands in the file `path`."""
        for part, is_code in parts(text):
            for found in TARGET.finditer("" if is_code else part):
                if is_relative(found[1]) and (ROOT / resolved(path, found[1])).exists():
                    yield resolved(path, found[1])

    def page_of(self, path: str) -> str | bytes:
        """What the site shows of a file or a folder of the repository."""
        if is_picture(path):
            return (ROOT / path).read_bytes()
        head = f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n"
        if (ROOT / path).is_dir():
            links = {file: os.path.relpath(self.uri(file), f"{SOURCE}/{path}") for file in files_below(path)}
            return head + "".join(f"- [`{file}`]({link})\n" for file, link in links.items())
        text = (ROOT / path).read_text(encoding="utf-8").rstrip()
        return f"{head}{LONG_FENCE}{LANGUAGES.get(Path(path).suffix, 'text')}\n{text}\n{LONG_FENCE}\n"


def with_included(text: str) -> str:
    """A page with the files that its `include` comments name."""
    return INCLUDE.sub(lambda found: (ROOT / found[1]).read_text(encoding="utf-8"), text)


def rewritten(repository: Repository, text: str, uri: str) -> str:
    """The text of a page with what it includes, and with links that are relative to the page in the site."""
    base = repository.pages.get(uri, f"{DOCS}/{uri}")
    above = str(PurePosixPath(uri).parent)

    def link(found: re.Match[str]) -> str:
        if not is_relative(found[1]):
            return found[0]
        return os.path.relpath(repository.uri(resolved(base, found[1])), above) + (found[2] or "")

    pieces = parts(with_included(text))
    return "".join(part if is_code else TARGET.sub(link, part) for part, is_code in pieces)


def parts(text: str) -> Iterator[tuple[str, bool]]:
    """The text in pieces, each with whether it is a block of code."""
    end = 0
    for found in FENCE.finditer(text):
        yield text[end : found.start()], False
        yield found[0], True
        end = found.end()
    yield text[end:], False


def is_relative(target: str) -> bool:
    """True for a link to another file; False for an address, and for a place on the same page."""
    return bool(target) and "://" not in target and not target.startswith("mailto:")


def resolved(path: str, target: str) -> str:
    """The path in the repository of a link's target, for a link in the file `path`."""
    return os.path.normpath(PurePosixPath(path).parent / target)


def is_picture(path: str) -> bool:
    """True for a file that is shown as it is."""
    return path.endswith((".png", ".svg"))


def files_below(path: str) -> list[str]:
    """The files of a folder of the repository that are worth a page."""
    below = sorted((ROOT / path).rglob("*"))
    return [str(file.relative_to(ROOT)) for file in below if file.suffix in {*LANGUAGES, ".png", ".svg", ".md"}]
