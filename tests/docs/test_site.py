"""The documentation site: it builds strictly, says all that the code says, and loads nothing from elsewhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from pages import ROOT, page_names

import skipsearch
from skipsearch.evaluators.base import BUILT_IN, evaluator_class
from skipsearch.policies.errors import SkipsearchError
from skipsearch.policies.schemas import policy_schema
from skipsearch.search.cli import COMMANDS
from skipsearch.search.space.json_schema import space_schema

ROOMS = ["spaces", "policies", "evaluators", "exports", "search", "results", "benchmarks", "spaces/digits"]
TEXTS = [*page_names(), *(f"{room}/README.md" for room in ROOMS), "CONTRIBUTING.md", "CHANGELOG.md"]
LOADING = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; a warning fails the build."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return folder


class Tags(HTMLParser):
    """What a page links to and loads, and the places on it."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.places = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.places.add(given.get("id"))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in LOADING and given.get("rel") not in ("canonical", "prev", "next"):
            self.loads.append(given.get(LOADING[tag]) or "")


@pytest.fixture(scope="module")
def pages(site):
    return {file: Tags(file.read_text(encoding="utf-8")) for file in site.rglob("*.html") if file.name != "404.html"}


def text_of(site, name):
    text = (site / "reference" / f"{name}.html").read_text(encoding="utf-8")
    return re.sub(r"<[^>]+>", "", text)


def test_every_page_of_the_folder_is_in_the_navigation(site):
    front = Tags((site / "index.html").read_text(encoding="utf-8")).links
    index = {link.removesuffix(".html") for page in ("index", "how-to/index", "tutorial/index", "explanation/index",
             "reference/index") for link in reached(site, page)}  # fmt: skip
    assert front
    for name in page_names()[1:]:
        if name != "docs/README.md":
            assert name.removeprefix("docs/").removesuffix(".md") in index, name


def reached(site, page):
    """The pages that a page leads to, by their paths in the site."""
    links = Tags((site / f"{page}.html").read_text(encoding="utf-8")).links
    below = [os.path.normpath(Path(page).parent / link.partition("#")[0]) for link in links if "://" not in link]
    return {link for link in below if link.endswith(".html")}


def test_every_link_leads_to_a_page_and_a_place(site, pages):
    """Also from and to the parts that are generated, which the strict build does not see as Markdown."""
    wrong = []
    for file, page in pages.items():
        for link in page.links:
            target, _, place = link.partition("#")
            to = (file.parent / target).resolve() if target else file
            if "://" not in link and not (to.exists() and (not place or to not in pages or place in pages[to].places)):
                wrong.append(f"{file.relative_to(site)}: {link}")
    assert not wrong


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for file, page in pages.items():
        assert not [address for address in page.loads if "//" in address], file
    for file in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", file.read_text(encoding="utf-8")), file


def test_the_reference_has_every_key(site):
    for name, schema in (("space-keys", space_schema()), ("policy-keys", policy_schema())):
        text = text_of(site, name)
        parts = [schema, *schema["$defs"].values()]
        keys = {key for part in parts for key in part.get("properties", {})}
        assert len(keys) > 20 and not {key for key in keys if key not in text}
        described = [entry.get("description") for part in parts for entry in part.get("properties", {}).values()]
        assert all(described)


def test_the_reference_has_every_metric_command_error_and_name(site):
    metrics = {name for one in BUILT_IN for name in evaluator_class(one).metrics}
    assert not {name for name in metrics if name not in text_of(site, "metrics")}
    commands = text_of(site, "command-line")
    assert not {name for name in COMMANDS if name not in commands} and "--resume" in commands
    errors, classes = text_of(site, "errors"), [SkipsearchError]
    for one in classes:
        classes += one.__subclasses__()
    assert not {one.__name__ for one in classes if one.__name__ not in errors}
    python = text_of(site, "python")
    assert not {name for name in skipsearch.__all__ if f"skipsearch.{name}" not in python}


def test_what_a_figure_does_not_say_is_said_of_every_metric():
    text = (ROOT / "docs/explanation/figures.md").read_text(encoding="utf-8")
    assert not {name for one in BUILT_IN for name in evaluator_class(one).metrics if f"| `{name}` |" not in text}


@pytest.mark.parametrize("name", TEXTS)
def test_links_of_a_text_are_well_formed(name):
    """In the repository, without the site: files and headings exist, and addresses name what their text names."""
    for words, target in re.findall(r"\[([^\[\]]*)\]\(([^)\s]+)\)", without_code((ROOT / name).read_text("utf-8"))):
        if "://" in target:
            assert re.fullmatch(r"https?://[\w.-]+(:\d+)?(/[\w./%+-]*)?(#[\w-]+)?", target), target
            number = re.search(r"\d{4}\.\d{5}", words)
            assert not number or "arxiv" not in target or target == f"https://arxiv.org/abs/{number[0]}", target
            continue
        path, _, place = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        if place and file.suffix == ".md" and "<!-- generated: " not in file.read_text(encoding="utf-8"):
            assert place in anchors(file), target


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def anchors(file):
    """The anchors of the headings of a file and of what it includes, as code hosts make them."""
    text = file.read_text(encoding="utf-8")
    text = re.sub(r"^<!-- include: (.+?) -->$", lambda found: (ROOT / found[1]).read_text("utf-8"), text, flags=re.M)
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.M)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
