"""JSON Schemas of pydantic models, with descriptions from their docstrings."""

import inspect
import re
from typing import Any

from pydantic import BaseModel

from .choice import LAST_LAYER
from .policy import Policy

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def policy_schema() -> dict[str, Any]:
    """The JSON Schema of a policy file, for editors that complete and check YAML."""
    schema = model_schema(Policy)
    schema["required"] = ["schema"]
    # A key without a value is an empty mapping, for example when all lines below it are commented out.
    for name in ("layers", "measured"):
        schema["properties"][name]["type"] = ["object", "null"]
    schema["properties"]["layers"]["propertyNames"] = {"pattern": f"^[0-9]{{1,{len(str(LAST_LAYER))}}}$"}
    return {"$schema": DIALECT, "title": "skipsearch policy", **schema}


def model_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of a model in a file; the `Attributes` of its docstring and of its bases' describe its keys.

    A description in the field itself has precedence.
    """
    schema = model.model_json_schema(by_alias=True)
    for part in (schema, *schema.get("$defs", {}).values()):
        text, _, attributes = part.pop("description", "").partition("Attributes:\n")
        if text:
            part["description"] = " ".join(text.split())
        _describe_keys(part, attributes)
        for entry in part.get("properties", {}).values():
            entry.pop("title", None)
        part.pop("title", None)
    for base in model.__mro__[1 : model.__mro__.index(BaseModel)]:
        _describe_keys(schema, inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2])
    return schema


def _describe_keys(part: dict[str, Any], attributes: str) -> None:
    """Describe the keys of one mapping that have no description yet by the `Attributes` of a docstring."""
    for name, description in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE):
        for key in {name, name.rstrip("_")} & set(part.get("properties", {})):
            part["properties"][key] = {"description": " ".join(description.split()), **part["properties"][key]}
