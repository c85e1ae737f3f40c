"""Completes commands, options, and the names of spaces, studies and policies in bash, zsh and fish.

The shell starts `skipsearch` at every press of the tab key, so nothing heavy is loaded here.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import argcomplete
from argcomplete.completers import DirectoriesCompleter, FilesCompleter

from .options import command_parser
from .places import RESULTS, shipped_spaces, study_folders

YAML = FilesCompleter(allowednames=(".yaml", ".yml"))


def complete() -> None:
    """Write what may stand at the cursor and end the process; return at once where no shell asks."""
    argcomplete.autocomplete(completing_parser())


def completing_parser() -> argparse.ArgumentParser:
    """The parser of the command line; each argument that names something knows what there is."""
    top = command_parser()
    for command in commands(top):
        for action in command._actions:
            completer = COMPLETERS.get(str(action.metavar))
            if completer is not None:
                action.completer = completer  # type: ignore[attr-defined]
    return top


def commands(top: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser of each command."""
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def spaces(prefix: str, **_: object) -> list[str]:
    """The shipped spaces, and YAML files."""
    return [*shipped_spaces(), *YAML(prefix)]


def studies(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """The studies under `--out`, and folders."""
    out = _out(parsed_args)
    names = [str(folder.relative_to(out)) for folder in study_folders(out)]
    return [*names, *DirectoriesCompleter()(prefix)]


def policies(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """The policies of the studies, and YAML files."""
    found = [file for folder in study_folders(_out(parsed_args)) for file in sorted(folder.glob("policies/*.yaml"))]
    return [*map(str, found), *YAML(prefix)]


def _out(parsed_args: argparse.Namespace) -> Path:
    given = getattr(parsed_args, "out", None)
    return given if given is not None and given.is_dir() else RESULTS


Completer = Callable[..., list[str]]
# By what the help calls an argument.
COMPLETERS: Mapping[str, Completer] = {"SPACE": spaces, "STUDY": studies, "POLICY": policies}
