"""JSON Schemas out of pydantic models, with what the docstrings say of each key."""

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
    # A key with nothing below it, as when every line of it is commented out, is an empty mapping.
    for name in ("layers", "measured"):
        schema["properties"][name]["type"] = ["object", "null"]
    schema["properties"]["layers"]["propertyNames"] = {"pattern": f"^[0-9]{{1,{len(str(LAST_LAYER))}}}$"}
    return {"$schema": DIALECT, "title": "skipsearch policy", **schema}


def model_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of a model as it stands in a file, each key described by the model's docstring."""
    schema = model.model_json_schema(by_alias=True)
    for part in (schema, *schema.get("$defs", {}).values()):
        text, _, attributes = part.pop("description", "").partition("Attributes:\n")
        if text:
            part["description"] = " ".join(text.split())
        for name, meaning in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE):
            for key in {name, name.rstrip("_")} & set(part.get("properties", {})):
                part["properties"][key] = {"description": " ".join(meaning.split()), **part["properties"][key]}
        for entry in part.get("properties", {}).values():
            entry.pop("title", None)
        part.pop("title", None)
    return schema
