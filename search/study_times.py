"""What a study holds of times beside its trials: dense against dense, and which cost stands in for which time."""

import json
from collections.abc import Mapping
from typing import Any

from ..evaluators.base import Measurement
from .space import Space
from .stand_ins import StandIn
from .times import Times

NOISE = "dense_against_dense"
STAND_INS = "stand_ins"


def null_of(attrs: Mapping[str, Any]) -> dict[str, list[Measurement]]:
    """By metric what dense took beside itself, from the attributes of a study."""
    return {
        name: [Measurement(**one) for one in entries] for name, entries in json.loads(attrs.get(NOISE, "{}")).items()
    }


def stand_ins_of(attrs: Mapping[str, Any]) -> list[StandIn]:
    """Which times a cost stands in for, from the attributes of a study."""
    return [StandIn(**one) for one in attrs.get(STAND_INS, [])]


def machine_times(attrs: Mapping[str, Any], space: Space, num_layers: int) -> Times:
    """What smooths the times of a study."""
    return Times(num_layers, space.constraints, null_of(attrs), [one.metric for one in stand_ins_of(attrs)])
