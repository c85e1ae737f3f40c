"""Decides which workers a search uses: those that loaded the same model, on one kind of device where it times it."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...policies.errors import StudyError
from ..space.space import Space
from .devices import commonest_kind, is_timing, kind_of

# What all workers of a search have in common, beside the model's commit on the hub.
COMMON = ("num_layers", "parameters", "dtype", "guide", "examples")


class Admission:
    """Admits workers by their descriptions; see `Worker.describe`.

    Args:
        space: The search space.
        kind: The kind of device on which the study's times were measured so far; None for a new study.

    Attributes:
        kind: The kind of device of all workers; None where no times are measured, so that any will do.
    """

    def __init__(self, space: Space, kind: str | None = None) -> None:
        self._measures_times = any(map(is_timing, space.evaluate))
        self._is_tune = space.workers.runner == "tune"
        self.kind = kind if self._measures_times else None
        self._first: Mapping[str, Any] | None = None

    @property
    def is_decided(self) -> bool:
        """True once the first workers have decided."""
        return self._first is not None

    def decide(self, descriptions: Sequence[Mapping[str, Any]]) -> None:
        """Choose the kind of device, by most of the workers that a search starts with, and what all must have loaded.

        Args:
            descriptions: The first workers; at least one.

        Raises:
            StudyError: the study's times were measured on a kind of device that none of them has; or Ray Tune, which
                places its trials itself, would measure times on several kinds.
        """
        kinds = sorted({kind_of(one) for one in descriptions})
        if self._measures_times and self._is_tune and len(kinds) > 1:
            raise StudyError(
                "Ray Tune would measure times on several kinds of device",
                [f"found workers on {', '.join(kinds)}; times of different devices cannot be compared"],
                "use `workers.runner: actors`, which leaves all kinds out but one, or a cluster of one kind",
            )
        if self._measures_times and self.kind is None:
            self.kind = commonest_kind(descriptions)
        fitting = [one for one in descriptions if self.kind in (None, kind_of(one))]
        if not fitting:
            raise StudyError(
                f"the times of the study were measured on {self.kind}",
                [f"found workers on {', '.join(kinds)}; times of different devices cannot be compared"],
                "resume it on a machine with that device, or give a new study another name with `--name`",
            )
        self._first = fitting[0]

    def refusal(self, description: Mapping[str, Any], joins: bool) -> str | None:
        """Why a worker is left out; None where it is used.

        Args:
            description: The worker's.
            joins: True for a worker that starts after the first ones, whose commit of the model is compared too.
        """
        if self._first is None:
            return None
        if self.kind not in (None, kind_of(description)):
            return f"it has {kind_of(description)}, and times are measured on one kind of device, {self.kind}"
        for key in (*COMMON, *(["commit"] if joins else [])):
            if description.get(key) != self._first.get(key):
                return f"found {key} {description.get(key)}, expected {self._first.get(key)} as the other workers have"
        return None
