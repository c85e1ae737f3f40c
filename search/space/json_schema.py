"""The JSON Schemas of spaces and policies; `python -m skipsearch.search.space.json_schema` writes them."""

import json
from pathlib import Path
from typing import Any

from ...evaluators.base import BUILT_IN, Metric, evaluator_class
from ...policies.schedules import Schedule
from ...policies.schemas import DIALECT, model_schema, policy_schema
from .schedules import DecayOptions, FastVOptions, IntervalOptions
from .space import OPTIONAL, Space

ROOT = Path(__file__).resolve().parents[2]
NULL = {"type": "null"}


def space_schema() -> dict[str, Any]:
    """The JSON Schema of a space file, with the options and metrics of the evaluators that come with skipsearch."""
    schema = model_schema(Space)
    keys, definitions = schema["properties"], schema["$defs"]
    metrics: dict[str, Metric] = {}
    options: dict[str, Any] = {}
    for name in BUILT_IN:
        kind = evaluator_class(name)
        metrics |= kind.metrics
        described = model_schema(kind.options)
        definitions |= described.pop("$defs", {}) | {kind.options.__name__: described}
        reference = {"$ref": f"#/$defs/{kind.options.__name__}"}
        options[name] = {"description": (kind.__doc__ or "").split("\n")[0], "anyOf": [reference, NULL]}
    # Other evaluators and their metrics may come from installed packages.
    keys["evaluate"] |= {"properties": options, "additionalProperties": {"type": ["object", "null"]}}
    keys["objectives"]["properties"] = {
        name: {"description": metric.text, "const": metric.direction} for name, metric in metrics.items()
    }
    bound = keys["constraints"]["additionalProperties"]
    keys["constraints"]["properties"] = {
        name: {"description": metric.text, **bound} for name, metric in metrics.items()
    }
    # Either is enough.
    schema["required"].remove("layers")
    schema["anyOf"] = [{"required": [key]} for key in ("layers", "schedules")]
    keys["layers"]["minItems"] = 1
    plain = model_schema(Schedule)["$defs"]
    for name, offered in (("ShiftedCosine", DecayOptions), ("FastV", FastVOptions), ("Interval", IntervalOptions)):
        for key, entry in definitions[offered.__name__]["properties"].items():
            entry.setdefault("description", plain[name]["properties"][key]["description"])
    for key in OPTIONAL:
        keys[key] = {"description": keys[key].pop("description", ""), "anyOf": [keys[key], NULL]}
    return {"$schema": DIALECT, "title": "skipsearch space", **schema}


FILES = {
    ROOT / "policies" / "policy.schema.json": policy_schema,
    ROOT / "search" / "space" / "space.schema.json": space_schema,
}


def text_of(schema: dict[str, Any]) -> str:
    """A schema as its file holds it."""
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    for path, made in FILES.items():
        path.write_text(text_of(made()), encoding="utf-8")
