"""Parsing YAML text into nodes, within limits that bound the time."""

import re
from typing import Any, Final

import yaml

MAX_VALUES: Final = 20_000  # in the text itself; aliases may expand to more
MAX_DEPTH: Final = 40
# Up to this many values, a text that libyaml rejects is parsed again by the slow parser, whose messages are better.
REPARSE_LIMIT: Final = 2_000

TAG: Final = "tag:yaml.org,2002:"
# YAML 1.1 reads all of these as numbers; YAML 1.2, and most users, only the decimal ones.
DECIMAL: Final = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
SEXAGESIMAL: Final = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
MAX_DIGITS: Final = 20

# libyaml is written in C and takes a tenth of the time.
FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class DocumentTooLarge(Exception):
    """A text exceeds a limit on values or on nesting.

    Args:
        reason: Which limit, with what was found.
        mark: The place in the text.
    """

    def __init__(self, reason: str, mark: Any) -> None:
        super().__init__(reason)
        self.reason, self.mark = reason, mark


def composed(text: str) -> yaml.Node | None:
    """The root node of a text with one YAML document; None where it is empty.

    Raises:
        DocumentTooLarge: there are too many values, or they are nested too deeply.
        yaml.YAMLError: the text is not YAML, or has several documents.
    """
    values = depth = 0
    try:
        for event in yaml.parse(text, Loader=FAST):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            values += isinstance(event, yaml.NodeEvent)
            if depth > MAX_DEPTH + 1:
                raise DocumentTooLarge(f"nested too deeply, expected at most {MAX_DEPTH} levels", event.start_mark)
            if values > MAX_VALUES:
                raise DocumentTooLarge(f"found over {MAX_VALUES} values, expected fewer", event.start_mark)
        return yaml.compose(text, Loader=FAST)
    except yaml.YAMLError:
        if values > REPARSE_LIMIT:
            raise
        return yaml.compose(text, Loader=yaml.SafeLoader)


def misread(tag: str, text: str) -> str | None:
    """Why a scalar that YAML 1.1 reads as an unexpected number is refused; None where the reading is plain."""
    kind = tag.removeprefix(TAG)
    if kind not in ("int", "float") or (kind == "float" and not SEXAGESIMAL.fullmatch(text)):
        return None
    if SEXAGESIMAL.fullmatch(text):
        meant = text.replace(":", "-", 1) if text.count(":") == 1 else text
        return f"which YAML reads as a number in base 60; write '{meant}' for a range, or a decimal number"
    if not DECIMAL.fullmatch(text):
        base = {"x": "16", "b": "2"}.get(text.lstrip("+-")[1:2].lower(), "8")
        decimal = text.lstrip("+-0").replace("_", "") if base == "8" else ""
        meant = f"write {decimal} where that is meant" if decimal else "write a decimal number"
        return f"which YAML reads as a number in base {base}; {meant}"
    return f"a number of over {MAX_DIGITS} digits, expected a smaller one" if len(text) > MAX_DIGITS else None
