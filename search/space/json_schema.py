"""The JSON Schemas of space and policy files; `python -m skipsearch.search.space.json_schema` writes them."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ...evaluators.base import BUILT_IN, Metric, evaluator_class
from ...policies.schedules import Schedule
from ...policies.schemas import DIALECT, model_schema, policy_schema
from .models.named_model import NamedModel
from .schedules import (
    DecayOptions,
    DivPruneOptions,
    FastVOptions,
    IntervalOptions,
    PyramidDropOptions,
    SkipVisionOptions,
    VTWOptions,
)
from .search_settings import Recover
from .space import OPTIONAL, Space

ROOT = Path(__file__).resolve().parents[2]
NULL = {"type": "null"}
# By its class in a policy file, the options of each schedule in a space.
SCHEDULES = (
    ("ShiftedCosine", DecayOptions),
    ("FastV", FastVOptions),
    ("PyramidDrop", PyramidDropOptions),
    ("VTW", VTWOptions),
    ("DivPrune", DivPruneOptions),
    ("SkipVision", SkipVisionOptions),
    ("Interval", IntervalOptions),
)


def space_schema() -> dict[str, Any]:
    """The JSON Schema of a space file, with the options and metrics of the built-in evaluators."""
    schema = model_schema(Space)
    keys = schema["properties"]
    _add_evaluators(keys, schema["$defs"])
    for key in ("layers", "model"):  # Another key may take its place.
        schema["required"].remove(key)
    schema["allOf"] = [
        {"anyOf": [{"required": [key]} for key in ("layers", "schedules")]},
        {"oneOf": [{"required": [key]} for key in ("model", "models")]},
    ]
    keys["layers"]["minItems"] = keys["models"]["minItems"] = 1
    keys["models"]["items"] = {"anyOf": [{"type": "string"}, keys["models"]["items"]]}
    _describe_schedules(schema["$defs"])
    for kind in (Recover, NamedModel):
        _describe_inherited(schema["$defs"][kind.__name__], kind)
    for key in OPTIONAL:
        keys[key] = {"description": keys[key].pop("description", ""), "anyOf": [keys[key], NULL]}
    return {"$schema": DIALECT, "title": "skipsearch space", **schema}


def _add_evaluators(keys: dict[str, Any], definitions: dict[str, Any]) -> None:
    """Add the built-in evaluators to `evaluate`, and their metrics to `objectives` and `constraints`."""
    metrics: dict[str, Metric] = {}
    options: dict[str, Any] = {}
    for name in BUILT_IN:
        evaluator = evaluator_class(name)
        metrics |= evaluator.metrics
        described = model_schema(evaluator.options)
        definitions |= described.pop("$defs", {}) | {evaluator.options.__name__: described}
        reference = {"$ref": f"#/$defs/{evaluator.options.__name__}"}
        options[name] = {"description": (evaluator.__doc__ or "").split("\n")[0], "anyOf": [reference, NULL]}
    # Other evaluators and their metrics may come from installed packages.
    keys["evaluate"] |= {"properties": options, "additionalProperties": {"type": ["object", "null"]}}
    keys["objectives"]["properties"] = {
        name: {"description": metric.text, "const": metric.direction} for name, metric in metrics.items()
    }
    bound = keys["constraints"]["additionalProperties"]
    keys["constraints"]["properties"] = {
        name: {"description": metric.text, **bound} for name, metric in metrics.items()
    }


def _describe_schedules(definitions: dict[str, Any]) -> None:
    """Copy the descriptions of a schedule's keys from the schema of policy files."""
    in_policies = model_schema(Schedule)["$defs"]
    for name, in_space in SCHEDULES:
        for key, entry in definitions[in_space.__name__]["properties"].items():
            entry.setdefault("description", in_policies[name]["properties"][key]["description"])


def _describe_inherited(definition: dict[str, Any], kind: type[BaseModel]) -> None:
    """Describe the keys of a mapping that it has from another class."""
    for key, entry in model_schema(kind)["properties"].items():
        definition["properties"][key].setdefault("description", entry["description"])


FILES = {
    ROOT / "policies" / "policy.schema.json": policy_schema,
    ROOT / "search" / "space" / "space.schema.json": space_schema,
}


def text_of(schema: dict[str, Any]) -> str:
    """The text of a schema's file."""
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    for path, schema in FILES.items():
        path.write_text(text_of(schema()), encoding="utf-8")
