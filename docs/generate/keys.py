"""Tables of the keys of spaces and policies, from their JSON Schemas."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tables import table

from skipsearch.policies.schemas import policy_schema
from skipsearch.search.space.json_schema import space_schema

Schema = Mapping[str, Any]
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
NAMES = {
    "integer": "whole number",
    "number": "number",
    "boolean": "`true`, `false`",
    "string": "text",
    "null": "`null`",
}


def space_keys() -> str:
    """The keys of a space."""
    return pages(space_schema())


def policy_keys() -> str:
    """The keys of a policy."""
    return pages(policy_schema())


def pages(schema: Schema) -> str:
    """A table of the keys on top, and a section for each mapping below them, in the order in which they are met."""
    sections = [f"## Top level\n\n{_table(schema)}"]
    named = _named(schema, schema["$defs"], "")
    for name, path in named.items():
        part = schema["$defs"][name]
        text = part.get("description", "")
        sections.append(f"### `{path}` {{ #{_anchor(name)} }}\n\n{text}\n\n{_table(part)}")
    return "\n".join(sections)


def _named(part: Schema, definitions: Schema, path: str, found: dict[str, str] | None = None) -> dict[str, str]:
    """By its name in the schema, the dotted path of the first key that has each mapping as a value."""
    found = {} if found is None else found
    for key, entry in part.get("properties", {}).items():
        here = f"{path}.{key}".lstrip(".")
        _named(entry, definitions, here, found)  # The evaluators below `evaluate`.
        for name in dict.fromkeys(_references(entry)):
            if name not in found:
                found[name] = here
                _named(definitions[name], definitions, here, found)
    return found


def _references(entry: Any) -> Iterator[str]:
    """The names of the mappings that a value may be."""
    if isinstance(entry, Mapping):
        if "$ref" in entry:
            yield entry["$ref"].rpartition("/")[2]
        for value in entry.values():
            yield from _references(value)
    elif isinstance(entry, list):
        for value in entry:
            yield from _references(value)


def _table(part: Schema) -> str:
    rows = [_row(key, entry, key in part.get("required", ())) for key, entry in part.get("properties", {}).items()]
    if not rows and "additionalProperties" in part:
        rows = [("a layer's number", value_of(part["additionalProperties"]))]
    return table(("key", "meaning"), rows)


def _row(key: str, entry: Schema, required: bool) -> tuple[str, str]:
    default = "required" if required else f"default `{json.dumps(entry['default'])}`" if "default" in entry else ""
    # The defaults of a mapping's keys are in its own table.
    is_mapping = isinstance(entry.get("default"), dict) and entry["default"]
    facts = [value_of(entry), *([default] if default and not is_mapping else [])]
    return f"`{key}`", f"{entry.get('description', '')}<br><small>{'; '.join(facts)}</small>"


def value_of(entry: Schema) -> str:
    """What a value may be, in words."""
    for several in ("anyOf", "oneOf"):
        if several in entry:
            return _one_of(entry[several])
    if "$ref" in entry:
        return f"[mapping](#{_anchor(entry['$ref'].rpartition('/')[2])})"
    if "const" in entry:
        return f"`{entry['const']}`"
    if "enum" in entry:
        return ", ".join(f"`{one}`" for one in entry["enum"])
    return _plain(entry)


def _one_of(entries: list[Schema]) -> str:
    """Each value that is possible, and once that a list of values is possible too."""
    lists = [one for one in entries if one.get("type") == "array"]
    alone = list(dict.fromkeys(value_of(one) for one in entries if one not in lists))
    of_these = [one for one in lists if alone and value_of(one["items"]) in (alone[0], ", ".join(alone))]
    texts = [*alone, *(value_of(one) for one in lists if one not in of_these)]
    return ", ".join(texts) + (", or a list of these" if of_these else "")


def _plain(entry: Schema) -> str:
    kind = entry.get("type", "")
    if kind == "array":
        return f"list of: {value_of(entry['items'])}" if entry.get("items") else "list"
    if kind in ("object", ["object", "null"]):
        below, others = entry.get("properties"), entry.get("additionalProperties")
        of_any = f" of {value_of(others)}" if isinstance(others, Mapping) and "$ref" in others else ""
        return f"mapping of {', '.join(f'`{key}`' for key in below)}" if below else f"mapping{of_any}"
    return f"{NAMES[kind]} {_bounds(entry)}".strip() if kind else "any value"


def _bounds(entry: Schema) -> str:
    found = {key: f"{entry[key]:,}".removesuffix(".0") for key in BOUNDS if key in entry}
    if found.keys() == {"minimum", "maximum"}:
        return f"{found['minimum']} to {found['maximum']}"
    return ", ".join(f"{BOUNDS[key]} {bound}" for key, bound in found.items())


def _anchor(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()
