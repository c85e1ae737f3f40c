"""Messages about mistakes in files: found against expected, in the terms of the file and not of pydantic or PyYAML."""

import difflib
import json
import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

Key = str | int

# Control characters except line feed and tab; marks and isolates of writing direction; other zero-width characters.
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)

# A password in a URL, after the user's name or in an option; a variable such as `${NAME}` is none.
PASSWORD = re.compile(r"(://[^:/@\s]*:)(?!\$\{\w+\}@)\S*(?=@)|([?&]\w*password=)(?!\$\{)[^\s&]*")

WHOLE, NUMBER, TEXT, LOGICAL = "a whole number", "a number", "text", "true or false"
MAPPING, LIST = "a mapping of keys to values", "a list"

# What pydantic's error types expect; braces are filled from the error's context.
EXPECTED = {
    "bool_parsing": LOGICAL,
    "bool_type": LOGICAL,
    "dict_type": MAPPING,
    "finite_number": "a finite number",
    "float_parsing": NUMBER,
    "float_type": NUMBER,
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "int_from_float": WHOLE,
    "int_parsing": WHOLE,
    "int_parsing_size": "a smaller whole number",
    "int_type": WHOLE,
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "list_type": LIST,
    "literal_error": "{expected}",
    "mapping_type": MAPPING,
    "model_attributes_type": MAPPING,
    "model_type": MAPPING,
    "set_type": LIST,
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_long": "{max_length} or fewer characters",
    "string_too_short": "{min_length} or more characters",
    "string_type": TEXT,
    "string_unicode": TEXT,
    "too_long": "{max_length} or fewer entries",
    "too_short": "{min_length} or more entries",
    "tuple_type": LIST,
}

# Messages of PyYAML, and what a user can act on instead.
YAML_WORDS = {
    "but found another document": "found a second document, expected one",
    "found character '\\t' that cannot start any token": "found a tab, expected spaces",
    "found character '%' that cannot start any token": "found '%' at the start of a value; put the value in quotes",
    "found character '@' that cannot start any token": "found '@' at the start of a value; put the value in quotes",
    "found character '`' that cannot start any token": "found '`' at the start of a value; put the value in quotes",
    "mapping values are not allowed here": "found a ':' inside a value, or a line that is indented too far",
    "found unexpected end of stream": "found the end of the file inside quotes",
    "second occurrence": "duplicate anchor",
}


def in_yaml(reason: str) -> str:
    """A message of PyYAML in plain words, where there are any."""
    return YAML_WORDS.get(reason, reason.replace("'<stream end>'", "the end of the file"))


def dotted(path: Iterable[Key]) -> str:
    """Format a key path, such as `layers[0].choices`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


def nearest(name: str, known: list[str]) -> str:
    """Name the known name that is most similar, or list all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"the nearest known one is '{close[0]}'" if close else f"known: {', '.join(sorted(known))}"


def expectation(entry: dict[str, Any]) -> str | None:
    """What a pydantic error expects in place of a value; None for errors about keys and whole values."""
    kind, context = entry["type"], entry.get("ctx", {})
    if kind in ("extra_forbidden", "missing", "value_error"):
        return None
    if kind not in EXPECTED:
        message = entry["msg"].removeprefix("Input should be ").removeprefix("Value should be ")
        return str(message[:1].lower() + message[1:])
    filled = {key: int(value) if is_whole(value) else value for key, value in context.items()}
    wanted = EXPECTED[kind].format(**filled)
    return f"the number {float(entry['input']):g}" if wanted in (WHOLE, NUMBER) and is_quoted(entry) else wanted


def is_whole(value: Any) -> bool:
    """True for a float such as 1.0."""
    return isinstance(value, float) and value.is_integer()


def is_quoted(entry: dict[str, Any]) -> bool:
    """True for text that reads as a number: a number in quotes, or `1e-3`, which is text in YAML 1.1."""
    try:
        return isinstance(entry["input"], str) and math.isfinite(float(entry["input"]))
    except ValueError:
        return False


def explain(model: type["BaseModel"], entry: dict[str, Any]) -> str:
    """The message for a pydantic error about a key or a whole value."""
    if entry["type"] == "missing":
        return "the key is missing"
    if entry["type"] == "extra_forbidden":
        known = fields_at(model, entry["loc"][:-1])
        return f"unknown key; {nearest(str(entry['loc'][-1]), known)}" if known else "unknown key"
    return str(entry.get("ctx", {}).get("error", entry["msg"]))


def escape_invisible(text: str) -> str:
    """A text with control characters and marks of writing direction escaped.

    A terminal executes control characters, and marks of direction make one name look like another.
    """
    return HIDDEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def hide_passwords(text: str) -> str:
    """A text whose URLs show `***` for each password that is no variable, so that no message or file holds one."""
    return PASSWORD.sub(r"\1\2***", text)


def first_line(cause: BaseException) -> str:
    """The type of an exception and the first line of its message that is not empty."""
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__


def short(value: Any) -> str:
    """A value as the file would show it, cut to 60 characters and without passwords."""
    if isinstance(value, str):
        text = "'" + repr(hide_passwords(value))[1:-1] + "'"
    elif isinstance(value, float) and not math.isfinite(value):
        text = ".nan" if math.isnan(value) else (".inf" if value > 0 else "-.inf")
    else:
        try:
            text = hide_passwords(json.dumps(value))
        except (TypeError, ValueError):
            text = hide_passwords(repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def fields_at(model: type["BaseModel"], path: Iterable[Key]) -> list[str]:
    """The keys that a mapping at `path` may have; follows the path through the fields of the models."""
    current = [model]
    for part in path:
        fields = [field for one in current for name, field in one.model_fields.items() if part in (name, field.alias)]
        # Other parts of a path are keys of mappings, places in lists or names of union members.
        current = [found for field in fields for found in models_in(field.annotation)] or current
    return sorted({field.alias or name for one in current for name, field in one.model_fields.items()})


def models_in(annotation: Any) -> list[type["BaseModel"]]:
    """Every pydantic model that an annotation mentions."""
    from pydantic import BaseModel  # A shell that completes a command needs this file alone, at once.

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in models_in(part)]
