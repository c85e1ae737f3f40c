"""MkDocs hooks: generated parts of pages, README files of the repository as pages, and links between all of them."""

import re
from collections.abc import Callable
from typing import Any

from command_line import command_line
from errors import errors
from keys import policy_keys, space_keys
from links import Repository, rewritten
from metrics import metrics
from python_api import python_api

PARTS: dict[str, Callable[[], str]] = {
    "command line": command_line,
    "errors": errors,
    "metrics": metrics,
    "policy keys": policy_keys,
    "python": python_api,
    "space keys": space_keys,
}
repository = Repository()


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each file of the repository that some page links to, so that no link leaves the site."""
    from mkdocs.structure.files import File

    repository.read({file.src_uri: file.abs_src_path for file in files.documentation_pages()})
    for uri, content in repository.linked_files().items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put generated parts and included files into a page, and make its links lead to pages of the site."""
    text = re.sub(r"<!-- generated: (.+?) -->", lambda found: PARTS[found[1]](), markdown)
    return rewritten(repository, text, page.file.src_uri)
