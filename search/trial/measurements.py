"""Measurements as the JSON of an attribute of a study, and back."""

import json
from collections.abc import Mapping
from dataclasses import asdict

from ...evaluators.base import Measurement


def parse_measurements(text: str | None) -> dict[str, Measurement]:
    """Read measurements from the JSON of an attribute; an attribute that is missing has none."""
    return {name: Measurement(**entry) for name, entry in json.loads(text or "{}").items()}


def measurements_json(measurements: Mapping[str, Measurement]) -> str:
    """Measurements as the JSON of an attribute."""
    return json.dumps({name: asdict(entry) for name, entry in measurements.items()})
