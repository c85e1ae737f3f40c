"""The table of all image-token scores by name, which policies, spaces, JSON Schemas and documentation read."""

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Final, get_args

from pydantic import AfterValidator, WithJsonSchema

from ..errors import PolicyError
from ..plugins import PluginGroup
from .attention import AttentionScore
from .change import ChangeScore
from .diverse import DiverseScore
from .key_norm import KeyNormScore
from .norm import NormScore
from .random import RandomScore
from .relevance import MixedScore, RelevanceScore
from .router import RouterScore
from .score import ImageTokenScore, Record
from .uniform import UniformScore

GROUP: Final = "skipsearch.token_scores"

CLASSES: Final[tuple[type[ImageTokenScore], ...]] = (
    AttentionScore,
    ChangeScore,
    DiverseScore,
    KeyNormScore,
    NormScore,
    RandomScore,
    RelevanceScore,
    UniformScore,
)
SCORES: Final[Mapping[str, ImageTokenScore]] = {score.name: score() for score in CLASSES}
BUILT_IN_CLASSES: Final[tuple[type[ImageTokenScore], ...]] = (*CLASSES, RouterScore)
RELEVANCE: Final = RelevanceScore.name
# It needs trained weights beside a policy, so a search cannot offer it.
ROUTER: Final = RouterScore.name

DESCRIPTION: Final = "; ".join(f"`{name}`: {score.meaning}" for name, score in SCORES.items()) + "."
WITHOUT_RECORDS: Final = tuple(name for name, score in SCORES.items() if score.records is None)


def interface_problems(found: Any, name: str) -> list[str]:
    """What an object lacks to be the score of a name, one line each."""
    if not isinstance(found, type):
        return [f"found {type(found).__name__}, expected a class"]
    records, meaning = ", ".join(get_args(Record)), getattr(found, "meaning", None)
    checks: dict[str, Any] = {
        f"name: expected '{name}'": getattr(found, "name", None) == name,
        "meaning: expected text": isinstance(meaning, str) and meaning,
        f"records: expected None or one of {records}": getattr(found, "records", "") in (None, *get_args(Record)),
        "depends_on_positions_only: expected a method": callable(getattr(found, "depends_on_positions_only", None)),
        "scores: expected a method": callable(getattr(found, "scores", None)),
    }
    return [problem for problem, holds in checks.items() if not holds]


BUILT_IN: Final = {score.name: f"{score.__module__}:{score.__qualname__}" for score in BUILT_IN_CLASSES}
PLUGINS: Final = PluginGroup(GROUP, "token score", BUILT_IN, interface_problems, PolicyError)


@cache
def find_score(name: str, diversity: float = 0.0) -> ImageTokenScore:
    """The score of a `token_selection`, built in or from an installed package.

    Args:
        name: Its name.
        diversity: The weight of `diverse` in a mixture with `relevance`.

    Raises:
        PolicyError: there is no such score, several packages have one, or it lacks a part of the interface.
    """
    found: type[ImageTokenScore] = PLUGINS.find(name)
    return MixedScore(diversity) if name == RELEVANCE and diversity else found()


@cache
def score_names() -> tuple[str, ...]:
    """The names of all scores; those of installed packages are looked up once a process."""
    return PLUGINS.available()


def check_name(name: str) -> str:
    """Refuse a name that no score has.

    Raises:
        ValueError: naming those that exist.
    """
    if name not in SCORES and name not in score_names():
        *others, last = (f"'{known}'" for known in score_names())
        raise ValueError(f"found '{name}', expected {', '.join(others)} or {last}")
    return name


# Editors offer the built-in names, and accept those of other packages.
NAME_SCHEMA: Final = {"anyOf": [{"enum": [*SCORES]}, {"type": "string"}]}
ScoreName = Annotated[str, AfterValidator(check_name), WithJsonSchema(NAME_SCHEMA)]
