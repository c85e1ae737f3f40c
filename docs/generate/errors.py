"""The exceptions with their messages, read from the source."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from links import ROOT

from skipsearch.policies.errors import ProofError, RunError, SkipsearchError

ROOMS = ("policies", "evaluators", "exports", "recovery", "search")


def errors() -> str:
    """The tree of classes, and for each class its messages with their hints."""
    messages = sorted({found for room in ROOMS for file in (ROOT / room).rglob("*.py") for found in _raised(file)})
    sections = [_tree(SkipsearchError)]
    for kind in _below(SkipsearchError):
        sections.append(f"## `{kind.__name__}`\n\n{kind.__doc__} {_exit_code(kind)}\n")
        sections += [f"- **{escaped(what)}**  \n  {hint}" for name, what, hint in messages if name == kind.__name__]
    return "\n".join(sections)


def _below(kind: type[Exception]) -> Iterator[type[Exception]]:
    for one in kind.__subclasses__():
        yield one
        yield from _below(one)


def _tree(kind: type[Exception], depth: int = 0) -> str:
    text = f"{'    ' * depth}- [`{kind.__name__}`](#{kind.__name__.lower()})" if depth else f"- `{kind.__name__}`"
    return "\n".join([text, *(_tree(one, depth + 1) for one in kind.__subclasses__())]) + ("" if depth else "\n")


def escaped(text: str) -> str:
    """A text of which no character is taken for Markdown."""
    return re.sub(r"([\\`*_\[\]<>{}#])", r"\\\1", text)


def _exit_code(kind: type[Exception]) -> str:
    return f"The command ends with status {1 if issubclass(kind, (RunError, ProofError)) else 2}."


def _raised(file: Path) -> Iterator[tuple[str, str, str]]:
    """Class, message and hint of each exception that a file makes with a message of its own."""
    names = {kind.__name__ for kind in _below(SkipsearchError)}
    for function in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names and node.args:
                what = _text(node.args[0], function)
                if what:
                    yield node.func.id, what, _text(_hint(node), function)


def _hint(call: ast.Call) -> ast.expr | None:
    named = [keyword.value for keyword in call.keywords if keyword.arg == "hint"]
    return named[0] if named else call.args[2] if len(call.args) > 2 else None


def _text(node: ast.expr | None, function: ast.FunctionDef) -> str:
    """The text of an expression, with the expressions in it in braces; empty where it is no text of its own."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(one.value) if isinstance(one, ast.Constant) else "…" for one in node.values)
    if isinstance(node, ast.Name):
        given = [one.value for one in ast.walk(function) if isinstance(one, ast.Assign)
                 and isinstance(one.targets[0], ast.Name) and one.targets[0].id == node.id]  # fmt: skip
        return _text(given[0], function) if len(given) == 1 and not isinstance(given[0], ast.Name) else ""
    return ""
