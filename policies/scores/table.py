"""The table of all image-token scores by name, which policies, spaces, JSON Schemas and documentation read."""

from collections.abc import Mapping
from typing import Final, Literal

from .attention import AttentionScore
from .norm import NormScore
from .score import ImageTokenScore
from .uniform import UniformScore

# A type checker needs the names written out; a test holds them against the table.
ScoreName = Literal["attention", "norm", "uniform"]

SCORES: Final[Mapping[ScoreName, ImageTokenScore]] = {
    "attention": AttentionScore(),
    "norm": NormScore(),
    "uniform": UniformScore(),
}

DESCRIPTION: Final = "; ".join(f"`{name}`: {score.meaning}" for name, score in SCORES.items()) + "."
WITHOUT_ATTENTION: Final = tuple(name for name, score in SCORES.items() if not score.reads_attention)
